"""Loopback: a POST over the network to the app's own endpoint."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Flask

from ..config import Config
from ..context import origin
from ..endpoint.attempt import PING
from ..envelope import Envelope, new_id
from ..errors import (
    AddressUnknown,
    ConnectionBroken,
    NotConsumed,
    OutboxUnavailable,
    Overdue,
    TimedOut,
    TokenReplayed,
    TransportError,
    Unreachable,
)
from ..host.per_process import PerProcess
from ..receivers import options_of
from ..signing import VERDICT_HEADER
from ..state import State, state_of
from ..verdict import Verdict
from .address import Address
from .client import Client
from .foreign import explain_foreign_answer
from .http_client import LeanClient

#: Seconds that a guessed address has to answer a ping.
PING_TIMEOUT = 5.0

#: Seconds after which a sender hangs up on a run that may take as long as it likes.
_LONGEST_POST = 3600.0


class Loopback:
    """Posts envelopes to where the app listens, each thread over a connection of its own."""

    def __init__(self, app: Flask, config: Config, address: Address) -> None:
        self._app = app
        self._config = config
        self._address = address
        self._threads = threading.local()
        self._stopping = PerProcess(threading.Event)
        #: Where the last verdict was given.
        self._seen_host_id: str | None = None

    def send(self, envelope: Envelope) -> Verdict:
        """Post ``envelope`` and return the endpoint's verdict.

        :raises TransportError: if it can't be posted, or anything but our endpoint answers.
        """
        state = state_of(self._app)
        url = self._address.url or self._confirm()
        timeout = min(options_of(state, envelope).timeout, _LONGEST_POST)
        return self._post(state, url, envelope, timeout)

    def ping(self, url: str) -> Verdict:
        """Ask at ``url`` whether this app is there. It runs nothing.

        The verdict is completed, with an error where something is to be warned of.

        :raises TransportError: as :meth:`send` does.
        """
        ping = Envelope(id=new_id(), task=PING, body="{}", origin=origin(self._app))
        return self._post(state_of(self._app), url, ping, PING_TIMEOUT)

    def cancel_unstarted(self) -> None:
        """Have each thread of this process take back what it posted and the endpoint never began.

        A server that ends may never read it. ``send`` raises NotConsumed then.
        """
        self._stopping[os.getpid()].set()

    def _post(self, state: State, url: str, envelope: Envelope, timeout: float) -> Verdict:
        now = round(time.time(), 6)
        post = _Post(envelope, state.signing.sign(envelope, now=now), now)
        try:
            answer = self._client(url).post(post.token, timeout, lambda: self._check(post))
        except TransportError as error:
            never_began = self._never_began(post, error)
            if never_began:
                raise NotConsumed(str(error)) from error
            if isinstance(error, TimedOut) and never_began is not None:
                raise Overdue(str(error)) from error
            raise
        text = answer.headers.get(VERDICT_HEADER.lower())
        verdict = state.signing.verify_verdict(post.token, text) if text is not None else None
        if verdict is None:
            raise explain_foreign_answer(url, answer)
        self._seen_host_id = verdict.host_id
        return verdict

    def _check(self, post: _Post) -> None:
        """Try once to take ``post`` back if the process ends; what has begun stays begun."""
        if not post.is_checked and self._stopping[os.getpid()].is_set():
            post.is_checked = True
            if self._reclaim(post):
                raise NotConsumed("It was taken back while the process ended.")

    def _never_began(self, post: _Post, error: TransportError) -> bool | None:
        """Tell whether the endpoint never began with ``post``, None where that can't be told."""
        if isinstance(error, Unreachable):
            return self._address.is_own or None
        envelope = post.envelope
        if envelope.lease is not None or envelope.task == PING:
            return None  # The outbox knows, and nothing runs.
        return self._reclaim(post) if isinstance(error, (ConnectionBroken, TimedOut)) else None

    def _reclaim(self, post: _Post) -> bool | None:
        """Consume ``post`` unless the endpoint has; return whether it now never will.

        That tells only where both look into the same record: where this process's own server
        listens, or where the last verdict said so. Elsewhere it is None.
        """
        state = state_of(self._app)
        if post.envelope.lease is not None and state.store is not None:
            with suppress(OutboxUnavailable):
                return state.store.release([post.envelope]) == 1
            return False
        guard = state.replay_guard
        is_shared = self._seen_host_id is not None and self._seen_host_id == guard.host_id
        if not (is_shared or self._address.is_own):
            return None
        try:
            return guard.consume(post.token, post.issued_at) or None
        except TokenReplayed:
            return False

    def _confirm(self) -> str:
        """Return the guessed address, once our own endpoint has answered a ping from there."""
        guesses = self._address.guesses()
        for guess in guesses:
            with suppress(TransportError):
                self.ping(guess)  # Whatever the verdict is, only this app can have given it.
                self._address.confirm(guess)
                return guess
        if guesses:
            self._address.refute()
        raise AddressUnknown(
            "'ASYNC_HOOKS_URL' is not set, and this app's address is unknown. Set it to the "
            "base URL under which this machine reaches the app, e.g. 'http://127.0.0.1:8000'."
        )

    def _client(self, url: str) -> Client:
        known: tuple[str, Client] | None = getattr(self._threads, "client", None)
        if known is None or known[0] != url:
            known = url, client_for(f"{url}{self._config.url_prefix}/run", self._config)
            self._threads.client = known
        return known[1]


@dataclass(slots=True)
class _Post:
    """One POST under way. ``is_checked`` tells whether its thread tried to take it back."""

    envelope: Envelope
    token: bytes
    issued_at: float
    is_checked: bool = False


def client_for(url: str, config: Config) -> Client:
    """Return the client that fits ``url``: TLS and auth objects are requests' business."""
    scheme = urlsplit(url).scheme
    if scheme == "http+unix" or (scheme == "http" and not callable(config.auth)):
        return LeanClient(url, config)
    # Here, because it takes megabytes and time to start that few apps need to spend.
    from .requests_client import RequestsClient

    return RequestsClient(url, config)
