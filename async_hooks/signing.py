"""Tokens and verdicts on the wire: signed text, verified before anything in it is believed.

A token is ``<JSON>.<signature>``. The signature is HMAC-SHA256 under a key derived from the
app's ``SECRET_KEY`` and a salt of our own, so no other token of that key can be taken for one
of ours. Everything that decides anything (version, audience, id, attempt, depth, issued_at)
stands inside. The data is readable: signing is not encryption.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from flask import Flask
from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, base64_encode, want_bytes

from .envelope import Envelope, Origin
from .errors import TokenError, TokenExpired
from .secret_keys import secrets_of, warn_of_weak_key
from .verdict import ERROR_LENGTH, Outcome, Verdict

#: The version of the wire format; a pinned test holds its bytes.
VERSION = 2

#: A token is a POST's body of this type; the verdict on it is a header of the answer.
CONTENT_TYPE = "application/vnd.async-hooks.token"
VERDICT_HEADER = "Async-Hooks-Verdict"

_TOKEN, _VERDICT = b"async_hooks.token", b"async_hooks.verdict"

#: What need not travel because it is usual.
_DEFAULTS = {"priority": 10, "queue": "default"}

#: Seconds that the sender's clock may be ahead of the endpoint's.
SKEW = 60.0


class WrongVersion(TokenError):
    """A token is genuine but written by a version of the library that this one can't read."""


class Signing:
    """Signs and verifies for one app. Keys are read at each use, so that they can rotate."""

    def __init__(self, app: Flask, audiences: Sequence[str]) -> None:
        """Tokens are signed for the first of ``audiences``, and taken for all."""
        warn_of_weak_key(app)
        self._app = app
        self.audiences = audiences

    def sign(self, envelope: Envelope, *, now: float) -> bytes:
        """Return the token of ``envelope``, issued at ``now`` (seconds since the epoch)."""
        origin = envelope.origin
        head = {
            "v": VERSION,
            "aud": self.audiences[0],
            "iat": now,
            "id": envelope.id,
            "task": envelope.task,
            "attempt": envelope.attempt,
            "depth": envelope.depth,
            "origin": [origin.scheme, origin.host, origin.root],
            "user": envelope.user,
            "parent": envelope.parent_id,
            "receiver": envelope.receiver,
            "lease": envelope.lease,
            "root": envelope.root_id,
            "finishes": envelope.finishes or None,
            "priority": envelope.priority,
            "queue": envelope.queue,
            "ref": envelope.ref,
            "waiting": envelope.waiting_key,
            "limit": envelope.limit_key,
            "rate": envelope.rate_key,
        }
        head = {key: value for key, value in head.items() if value != _DEFAULTS.get(key)}
        # The two texts are JSON already: they are put in as they are, not decoded and encoded.
        text = f'{_json(head)[:-1]},"carried":{envelope.carried},"data":{envelope.body}}}'
        return _signer(secrets_of(self._app), _TOKEN).sign(text)

    def verify(self, token: bytes, *, now: float, max_age: float) -> tuple[Envelope, float]:
        """Return the envelope of ``token``, and when the token was issued.

        :raises TokenError: if it is not a token of this app for this audience; its subclasses
            WrongVersion, TokenExpired tell genuine tokens apart.
        """
        payload = _parsed(_unsign(_signer(secrets_of(self._app), _TOKEN), token))
        if payload.get("aud") not in self.audiences:
            raise TokenError(f"A token for {payload.get('aud')!r} came to {self.audiences[0]!r}.")
        if payload.get("v") != VERSION:
            raise WrongVersion(
                f"The token has version {payload.get('v')!r}; this code reads {VERSION}. "
                "Is an older or newer release running beside this one?"
            )
        try:
            _check_age(payload, now, max_age)
            return _envelope(payload), float(payload["iat"])
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise TokenError("The token is signed but its content is invalid.") from error

    def sign_verdict(self, token: bytes, verdict: Verdict) -> str:
        """Return ``verdict`` about ``token``, and no other, as one line of ASCII.

        It is signed with the token's own key, which its sender knows; the newest it may not yet.
        """
        body = {
            "outcome": verdict.outcome,
            "of": _digest(token),
            "error": None if verdict.error is None else verdict.error[:ERROR_LENGTH],
            "after": verdict.after,
            "at": verdict.host_id,
            "kept": verdict.is_recorded or None,
        }
        body = {key: value for key, value in body.items() if value is not None}
        secrets = secrets_of(self._app)
        own = next((s for s in reversed(secrets) if _signer((s,), _TOKEN).validate(token)), None)
        signer = _signer((own,) if own is not None else secrets, _VERDICT)
        return signer.sign(_json(body)).decode("ascii")

    def verify_verdict(self, token: bytes, text: str) -> Verdict | None:
        """Return the verdict in ``text``, or None if the endpoint did not give it on ``token``."""
        try:
            signer = _signer(secrets_of(self._app), _VERDICT)
            body = json.loads(_unsign(signer, text.encode("latin-1")))
        except (TokenError, UnicodeEncodeError):
            return None
        if body["of"] != _digest(token):
            return None
        return Verdict(
            Outcome(body["outcome"]),
            body.get("error"),
            body.get("after"),
            body.get("at"),
            body.get("kept", False),
        )


def _unsign(signer: Signer, signed: bytes) -> bytes:
    try:
        payload = signer.unsign(signed)
    except BadSignature:
        raise TokenError("The signature does not match. Do both sides share a key?") from None
    signature = signed[len(payload) + 1 :]
    if base64_encode(base64_decode(signature)) != signature:
        # Base64 has several spellings for the same bytes; only the one that was signed counts.
        raise TokenError("The signature's encoding is not canonical.")
    return payload


def _parsed(text: bytes) -> dict[str, Any]:
    """Return the JSON object in ``text``, which knew the key but may still be nonsense."""
    try:
        payload = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise TokenError("The token is signed but is not JSON.") from error
    if isinstance(payload, dict):
        return payload
    raise TokenError("The token is signed but is not a JSON object.")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


@lru_cache(maxsize=32)
def _signer(secrets: tuple[str | bytes, ...], salt: bytes) -> Signer:
    """Return what signs with the last of ``secrets`` and verifies with all."""
    keys = [hmac.digest(want_bytes(secret), salt, "sha256") for secret in secrets]
    return Signer(keys, key_derivation="none", digest_method=hashlib.sha256)


def _check_age(payload: dict[str, Any], now: float, max_age: float) -> None:
    age = now - payload["iat"]
    if age > max_age:
        found = f"{age:.0f} seconds old; 'ASYNC_HOOKS_MAX_AGE' allows {max_age:.0f}"
    elif age < -SKEW:
        found = f"from {-age:.0f} seconds in the future; {SKEW:.0f} are allowed"
    else:
        return
    token = f"The token of envelope {payload['id']!r}"
    raise TokenExpired(f"{token} is {found}. Is this machine's clock right?")


def _envelope(payload: dict[str, Any]) -> Envelope:
    return Envelope(
        id=payload["id"],
        task=payload["task"],
        body=_json(payload["data"]),
        attempt=payload["attempt"],
        depth=payload["depth"],
        user=payload.get("user"),
        carried=_json(payload["carried"]),
        origin=Origin(*payload["origin"]),
        parent_id=payload.get("parent"),
        receiver=payload.get("receiver"),
        lease=payload.get("lease"),
        root_id=payload.get("root"),
        finishes=payload.get("finishes", False),
        priority=payload.get("priority", 10),
        queue=payload.get("queue", "default"),
        ref=payload.get("ref"),
        waiting_key=payload.get("waiting"),
        limit_key=payload.get("limit"),
        rate_key=payload.get("rate"),
    )


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()[:32]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
