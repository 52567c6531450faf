"""Loopback: a POST over the network to the app's own endpoint."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
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
    TokenReplayed,
    TransportError,
    Unreachable,
)
from ..host.per_process import PerProcess
from ..receivers import options_of
from ..signing import VERDICT_HEADER
from ..state import state_of
from ..verdict import Verdict
from .address import Address
from .client import Client
from .foreign import explain_foreign_answer
from .http_client import LeanClient

#: Seconds that a guessed address has to answer a ping.
PING_TIMEOUT = 5.0


class Loopback:
    """Posts envelopes to where the app listens, each thread over a connection of its own."""

    def __init__(self, app: Flask, config: Config, address: Address) -> None:
        self._app = app
        self._config = config
        self._address = address
        self._threads = threading.local()
        self._posts = PerProcess(_Posts)
        self._shares_record = False

    def send(self, envelope: Envelope) -> Verdict:
        """Post ``envelope`` and return the endpoint's verdict.

        :raises TransportError: if it can't be posted, or anything but our endpoint answers.
        """
        url = self._address.url
        if url is None:
            url = self._confirm()
        return self._post(url, envelope, options_of(state_of(self._app), envelope).timeout)

    def ping(self, url: str) -> Verdict:
        """Ask at ``url`` whether this app is there. It runs nothing.

        The verdict is completed, with an error where something is to be warned of.

        :raises TransportError: as :meth:`send` does.
        """
        ping = Envelope(id=new_id(), task=PING, body="{}", origin=origin(self._app))
        return self._post(url, ping, PING_TIMEOUT)

    def cancel_unstarted(self) -> None:
        """Take back what is posted and not begun: a server that ends may never read it.

        From now on nothing is posted by this process, and ``send`` raises NotConsumed.
        """
        posts = self._posts.get()
        posts.is_ending = True
        for post in list(posts.in_flight.values()):
            if self._reclaim(post):
                post.client.cut()

    def _post(self, url: str, envelope: Envelope, timeout: float) -> Verdict:
        state = state_of(self._app)
        now = round(time.time(), 6)
        post = _Post(envelope, state.signing.sign(envelope, now=now), now, self._client(url))
        posts, me = self._posts.get(), threading.get_ident()
        posts.in_flight[me] = post
        try:
            if posts.is_ending:
                raise NotConsumed("The process ends.")
            answer = post.client.post(post.token, timeout)
        except TransportError as error:
            if self._never_began(post, error):
                raise NotConsumed(str(error)) from error
            raise
        finally:
            del posts.in_flight[me]
        if post.was_reclaimed():
            raise NotConsumed("It was taken back while the process ended.")
        text = answer.headers.get(VERDICT_HEADER.lower())
        verdict = state.signing.verify_verdict(post.token, text) if text is not None else None
        if verdict is None:
            raise explain_foreign_answer(url, answer)
        self._shares_record = (
            verdict.host_id is not None and verdict.host_id == state.replay_guard.host_id
        )
        return verdict

    def _never_began(self, post: _Post, error: TransportError) -> bool:
        if isinstance(error, Unreachable) and self._address.is_own:
            return True
        if isinstance(error, ConnectionBroken) and post.envelope.lease is None:
            return self._reclaim(post)
        return post.was_reclaimed()

    def _reclaim(self, post: _Post) -> bool:
        """Consume ``post`` unless the endpoint has; return whether it now never will.

        That tells only where both look into the same record: where this process's own server
        listens, or where the last verdict said so.
        """
        state = state_of(self._app)
        replay_guard = state.replay_guard
        with post.lock:
            if post.is_reclaimed:
                return True
            if post.envelope.lease is not None and state.ledger is not None:
                with suppress(OutboxUnavailable):
                    post.is_reclaimed = state.ledger.give_back([post.envelope]) == 1
            elif self._shares_record or self._address.is_own:
                with suppress(TokenReplayed):
                    post.is_reclaimed = replay_guard.take(post.token, post.issued_at)
            return post.is_reclaimed

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
            "'ASYNC_HOOKS_URL' is not set, and where this app listens is not known. Set it to the "
            "base URL under which this machine reaches the app, e.g. 'http://127.0.0.1:8000'."
        )

    def _client(self, url: str) -> Client:
        known: tuple[str, Client] | None = getattr(self._threads, "client", None)
        if known is not None and known[0] == url:
            return known[1]
        client = client_for(f"{url}{self._config.url_prefix}/run", self._config)
        self._threads.client = (url, client)
        return client


class _Post:
    """One POST under way. The lock is for who withdraws it: its own thread, or who recalls."""

    def __init__(self, envelope: Envelope, token: bytes, issued_at: float, client: Client) -> None:
        self.envelope = envelope
        self.token = token
        self.issued_at = issued_at
        self.client = client
        self.lock = threading.Lock()
        self.is_reclaimed = False

    def was_reclaimed(self) -> bool:
        # The endpoint can answer that it was, before who withdraws it has come to note it here.
        with self.lock:
            return self.is_reclaimed


class _Posts:
    """What one process has under way, by thread."""

    def __init__(self) -> None:
        self.in_flight: dict[int, _Post] = {}
        self.is_ending = False


def client_for(url: str, config: Config) -> Client:
    """Return the client that fits ``url``: TLS and auth objects are requests' business."""
    scheme = urlsplit(url).scheme
    if scheme == "http+unix" or (scheme == "http" and not callable(config.auth)):
        return LeanClient(url, config)
    # Here, because it takes megabytes and time to start that few apps need to spend.
    from .requests_client import RequestsClient

    return RequestsClient(url, config)
