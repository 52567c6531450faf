"""The app's secret keys: all that verify, the last of which signs."""

from __future__ import annotations

import logging

from flask import Flask
from itsdangerous.encoding import want_bytes

from .errors import ConfigError

_RANDOM = "python -c 'import secrets; print(secrets.token_hex())'"

#: Keys that stand in tutorials and templates, long enough to look like one.
_WELL_KNOWN = (
    b"192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf change-me-in-production "
    b"supersecretkey1234567890 this-is-a-secret-key this-really-needs-to-be-changed "
    b"you-will-never-guess your-secret-key-here"
).split()

logger = logging.getLogger("async_hooks")


def secrets_of(app: Flask) -> tuple[str | bytes, ...]:
    """Return the app's keys, oldest first, the one that signs last.

    :raises ConfigError: if one is empty: everybody knows that.
    """
    if not app.secret_key:
        raise ConfigError(
            "'SECRET_KEY' is not set, so nothing can be signed. Set it to a random value, e.g. "
            f"from: {_RANDOM}"
        )
    fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or ()
    if isinstance(fallbacks, (str, bytes)) or not all(
        isinstance(key, (str, bytes)) and key for key in fallbacks
    ):
        raise ConfigError(
            "expected 'SECRET_KEY_FALLBACKS' to be a list of former keys, none of them empty. "
            "Remove it, or list the keys."
        )
    return (*fallbacks, app.secret_key)


def warn_of_weak_key(app: Flask) -> None:
    """Warn of a key that others may guess.

    :raises ConfigError: as :func:`secrets_of`.
    """
    newest = secrets_of(app)[-1]
    if _is_weak(newest) and not app.testing:
        logger.warning(
            "'SECRET_KEY' is short or well known: whoever guesses it can run any task as any "
            "user. Set it to a random value, e.g. from: %s",
            _RANDOM,
        )


def _is_weak(key: str | bytes) -> bool:
    key = want_bytes(key)
    return len(key) < 16 or key.lower() in _WELL_KNOWN
