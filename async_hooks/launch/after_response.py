"""The moment after the response, for what a request puts off until then.

It has come when the server closes the response's body. Where no server will close it (the test
client), the request's teardown is the last moment. Where there is no request, and after that
moment, what is put off is done at once.

A body may stay open for hours: it is a stream, or its reader is slow. So the moment comes at the
latest about a second after the view returned. The view of a WebSocket returns when that ends, so
there the second counts from the call. The moment also comes when the process ends in order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from flask import Flask, Request, request

from ..context import request_of
from ..endpoint.attempt import ATTEMPT
from ..host.per_process import PerProcess
from ..host.threads import started
from ..host.timer import Call, call_later, cancel
from ..wsgi import close, is_served

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where a request's Pending lies in its environ.
PENDING = "async_hooks.pending"

#: Seconds for which an open response, or a WebSocket, holds back what its request put off.
LONGEST_WAIT = 1.0

#: The requests of each process that have put something off and whose response is still open.
_open: PerProcess[dict[Pending, Flask]] = PerProcess(dict)

logger = logging.getLogger("async_hooks")


def after_response(app: Flask, call: Callable[[], object], *, priority: int = 0) -> None:
    """Make ``call`` after this request's response; at once if there is none."""
    request = request_of(app)
    if request is None:
        call()
        return
    pending = _pending(request.environ)
    if pending.closes:
        _open[os.getpid()][pending] = app
    pending.add(call, priority)
    if pending.is_bounded or _is_websocket(request):
        pending.bound()


def at_teardown(error: BaseException | None) -> None:
    """Make the calls where no server will close the response; a teardown_request function."""
    pending = _pending(request.environ)
    if not pending.closes:
        pending.close()


def close_open(app: Flask) -> None:
    """Make the calls that open requests of ``app`` put off in this process, which ends."""
    for pending, whose in list(_open[os.getpid()].items()):
        if whose is app:
            _guarded(pending.close)


def _pending(environ: WSGIEnvironment) -> Pending:
    found: Pending | None = environ.get(PENDING)
    if found is None:  # A request that no server made, e.g. a test_request_context.
        found = environ[PENDING] = Pending(closes=False)
    return found


def _is_websocket(request: Request) -> bool:
    rule = request.url_rule
    return (rule is not None and rule.websocket) or "wsgi.websocket" in request.environ


def _guarded(make: Callable[[], None]) -> None:
    try:
        make()
    except Exception:
        logger.exception("What a request put off until after its response failed.")


class Pending:
    """The calls that one request puts off: made once, in the order of priority; later ones singly.

    Any thread may add while another closes: each call is popped, and so made, once.
    ``closes`` says that a server will close the response, ``is_bounded`` that the calls wait no
    longer than :data:`LONGEST_WAIT`: the view has returned, or is a WebSocket's. Another view that
    runs may have yet to commit what the calls are about.
    """

    __slots__ = ("_calls", "_closed", "_limit", "closes", "is_bounded")

    def __init__(self, *, closes: bool) -> None:
        self.closes = closes
        self.is_bounded = False
        #: What makes the calls if nobody closes before.
        self._limit: Call | None = None
        self._closed = False
        self._calls: dict[Callable[[], object], int] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call: Callable[[], object], priority: int) -> None:
        """Let ``call`` wait; of equal ones, one is made."""
        self._calls[call] = priority
        if self._closed:
            self.close()

    def bound(self) -> None:
        """Let the calls, if there are any, wait no longer than that from now on."""
        self.is_bounded = True
        if self._calls and self._limit is None:
            self._limit = call_later(LONGEST_WAIT, self._at_limit)

    def close(self) -> None:
        """Make the calls, and from now on each at once."""
        self._closed = True
        _open[os.getpid()].pop(self, None)
        if self._limit is not None:
            cancel(self._limit)
        self._make()

    def _at_limit(self) -> None:
        """Make the calls in a thread of their own: one may run what it finds no room for."""
        self._limit = None  # First, so that what is added from here on has a limit of its own.
        if not self._calls:
            return
        if started("async_hooks-open-request", partial(_guarded, self._make)) is None:
            self.bound()  # The response may end before the next.

    def _make(self) -> None:
        """Make the calls; raise what the first of those that failed raised, after the last."""
        failed: list[Exception] = []
        calls = [*self._popped()]
        calls.reverse()
        calls.sort(key=itemgetter(1))
        for call, _ in calls:
            try:
                call()
            except Exception as error:  # An eager run's own.
                failed.append(error)
        if failed:
            raise failed[0]

    def _popped(self) -> Iterator[tuple[Callable[[], object], int]]:
        while self._calls:
            try:
                yield self._calls.popitem()
            except KeyError:  # Another thread was first.
                return


class AfterResponse:
    """WSGI middleware: makes what a request puts off when the body of its response is closed."""

    def __init__(self, wsgi_app: WSGIApplication) -> None:
        self._wsgi_app = wsgi_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        pending = environ[PENDING] = Pending(closes=ATTEMPT in environ or is_served(environ))
        try:
            body = self._wsgi_app(environ, start_response)
        except BaseException:
            pending.close()
            raise
        if pending:
            pending.bound()
            return _Closing(body, pending.close)
        pending.close()
        return body


class _Closing:
    """A response body that calls ``then`` once, after it was closed, whatever closing it does.

    A middleware outside may read the body and never close it: then its end as an object counts.
    """

    def __init__(self, body: Iterable[bytes], then: Callable[[], None]) -> None:
        self._body = body
        self._then: Callable[[], None] | None = then

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body  # Holds self until who reads has come to the end.

    def close(self) -> None:
        try:
            close(self._body)
        finally:
            self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()
