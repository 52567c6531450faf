"""The errors: one class for each decision of the caller."""

from __future__ import annotations


class AsyncHooksError(Exception):
    """The root of every error that this library raises."""


class ConfigError(AsyncHooksError):
    """A configuration key, a task or a receiver is declared wrongly; raised when it is declared."""


class OutboxRequired(ConfigError):
    """An option that needs an outbox, such as a delay or a retry, was used without one."""


class OutboxUnavailable(AsyncHooksError):
    """The outbox's database can't be reached, is locked, or lacks our tables: nothing was kept."""


class DataError(AsyncHooksError, TypeError):
    """The data of a task can't travel as JSON, or is too large. The message holds the path."""


class NoAppContext(AsyncHooksError):
    """A task was dispatched where no application context is pushed."""


class DepthExceeded(AsyncHooksError):
    """A run launched a run that launched a run …, deeper than ``ASYNC_HOOKS_MAX_DEPTH``."""


class Interrupted(BaseException):
    """Raised by a checkpoint: this run ends here, and the next one goes on at the cursor.

    Its delivery was cancelled or paused, its process ends, or its ``slice_seconds`` are over. No
    ``except Exception`` catches it: let it pass.
    """


class TokenError(AsyncHooksError):
    """A token is missing, malformed, or was not signed by this app."""


class TokenExpired(TokenError):
    """A token is genuine but too old, or from too far in the future."""


class TokenReplayed(TokenError):
    """A token is genuine but was already used."""


class TransportError(AsyncHooksError):
    """An envelope did not reach the endpoint, or no verdict came back.

    ``unsent`` is true when no byte of it left this process, so that it is safe to run it
    elsewhere; false when the endpoint may have run it. ``cause`` names what went wrong in a word
    or two: ``"unreachable"``, ``"timeout"``, ``"proxy"``…
    """

    unsent = False
    cause = "other"

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.cause = cause


class AddressUnknown(TransportError):
    """This app's address is not configured, and no request has shown it."""

    unsent = True
    cause = "address-unknown"


class Unreachable(TransportError):
    """No connection to the endpoint could be made."""

    unsent = True
    cause = "unreachable"


class Untrusted(TransportError):
    """The endpoint's certificate is not trusted; nothing was sent to it."""

    unsent = True
    cause = "tls"


class NotTaken(TransportError):
    """This process can't take the envelope: its queue is full, or it is ending."""

    unsent = True
    cause = "not-taken"


class TimedOut(TransportError):
    """No verdict came in time; the task may be running."""

    cause = "timeout"


class Overdue(TimedOut):
    """No verdict came in time, and the endpoint has begun: it says itself what becomes of it."""


class ConnectionBroken(TransportError):
    """The connection ended after the envelope was sent and before a verdict came."""

    cause = "connection-broken"


class NotConsumed(TransportError):
    """This app's own server is being stopped or replaced: the endpoint never began with it.

    It is safe, and likely to help, to send it again.
    """

    unsent = True
    cause = "server-replaced"
