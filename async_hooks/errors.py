"""What can go wrong, a class per decision that a caller can take."""

from __future__ import annotations


class AsyncHooksError(Exception):
    """The root of every error that this library raises."""


class ConfigError(AsyncHooksError):
    """A configuration key, a task or a receiver is declared wrongly; raised when it is declared."""


class OutboxRequired(ConfigError):
    """Something was asked for that only an outbox can keep, such as a delay or a retry."""


class DataError(AsyncHooksError, TypeError):
    """The data of a task can't travel as JSON, or is too large. The message holds the path."""


class NoAppContext(AsyncHooksError):
    """A task was dispatched where no application context is pushed."""


class DepthExceeded(AsyncHooksError):
    """A run launched a run that launched a run …, deeper than ``ASYNC_HOOKS_MAX_DEPTH``."""


class TokenError(AsyncHooksError):
    """A token is missing, malformed, or was not signed by this app."""


class TokenExpired(TokenError):
    """A token is genuine but too old, or from too far in the future."""


class TokenReplayed(TokenError):
    """A token is genuine but was already used."""


class TransportError(AsyncHooksError):
    """An envelope did not reach the endpoint, or no verdict came back.

    ``unsent`` is true when no byte of it left this process, so that it is safe to run it
    elsewhere; false when the endpoint may have run it.
    """

    def __init__(self, message: str, *, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class ConnectionBroken(TransportError):
    """The connection ended after the envelope was sent and before a verdict came."""


class Unreachable(TransportError):
    """No connection to the endpoint could be made."""

    def __init__(self, message: str) -> None:
        super().__init__(message, unsent=True)


class NotConsumed(TransportError):
    """This app's own server is being stopped or replaced: the endpoint never began with it.

    It is safe, and likely to help, to send it again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, unsent=True)


class AddressUnknown(TransportError):
    """Nobody has told, and no request has shown yet, where this app listens."""

    def __init__(self, message: str) -> None:
        super().__init__(message, unsent=True)
