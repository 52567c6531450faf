"""The moment of hand-over: after the response.

Launches of a request are collected and handed to the relay when the server closes the response's
body. Where no server will close it (the test client), the request's teardown is the last moment.
Where there is no request, and after that moment, an envelope goes at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from ..context import current_run, request_of
from ..endpoint.attempt import RUN
from ..envelope import Envelope
from ..state import current_state, state_of
from ..wsgi import close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where a request's launches lie in its environ.
LAUNCHES = "async_hooks.launches"


def hand_over(app: Flask, envelope: Envelope) -> None:
    """Hand ``envelope`` over after this request's response; at once if there is none."""
    request = request_of(app)
    if request is None:
        state_of(app).relay.put(envelope)
        return
    if LAUNCHES not in request.environ:
        request.environ[LAUNCHES] = Pending(app, closes=False)
    request.environ[LAUNCHES].add(envelope)


def wake(app: Flask) -> None:
    """Tell this process' relay, after this request's response, that the outbox has something."""
    request = request_of(app)
    launches: Pending | None = request.environ.get(LAUNCHES) if request is not None else None
    if launches is None:
        state_of(app).relay.wake()
    else:
        launches.wake()


class Pending:
    """The launches of one request, handed over once, and singly thereafter.

    Any thread may add while another closes: each envelope is popped, and so put, once.
    ``closes`` says that a server will close the response.
    """

    __slots__ = ("_app", "_closed", "_waiting", "_wakes", "closes")

    def __init__(self, app: Flask, *, closes: bool) -> None:
        self.closes = closes
        self._app = app
        self._closed = False
        self._waiting: deque[Envelope] = deque()
        self._wakes = False

    def __bool__(self) -> bool:
        return bool(self._waiting) or self._wakes

    def add(self, envelope: Envelope) -> None:
        self._waiting.append(envelope)
        if self._closed:
            self._put_all()

    def wake(self) -> None:
        self._wakes = True
        if self._closed:
            self.close()

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._put_all()
        if self._wakes:
            self._wakes = False
            state_of(self._app).relay.wake()

    def _put_all(self) -> None:
        envelopes = sorted(_popped(self._waiting), key=attrgetter("priority"))
        run = current_run.get(None)
        if run is not None and envelopes and run.envelope.lease is None:
            share = run.share(len(envelopes))
            envelopes = [envelope._replace(budget=share) for envelope in envelopes]
        put = state_of(self._app).relay.put
        failed: list[BaseException] = []
        for envelope in envelopes:
            try:
                put(envelope)
            except Exception as error:  # An eager run's own: raised when the others had theirs.
                failed.append(error)
        if failed:
            raise failed[0]


def _popped(waiting: deque[Envelope]) -> Iterator[Envelope]:
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return


class HandOver:
    """WSGI middleware: collects a request's launches, hands them over when its body is closed."""

    def __init__(self, app: Flask, wsgi_app: WSGIApplication) -> None:
        self._app = app
        self._wsgi_app = wsgi_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        launches = environ[LAUNCHES] = Pending(self._app, closes=_closes(environ))
        try:
            body = self._wsgi_app(environ, start_response)
        except BaseException:
            launches.close()
            raise
        if launches:
            return _Closing(body, launches.close)
        launches.close()
        return body


def keep(response: Response) -> Response:
    """Keep what was launched and no commit will keep; an after_request function.

    :raises OutboxUnavailable: so that the visitor learns of it.
    """
    if RUN not in request.environ:  # A run's go with its completion.
        flush()
    return response


def flush(*, is_last: bool = False) -> None:
    """Do the same where no response is made."""
    ledger = current_state().ledger
    if ledger is not None:
        ledger.flush(is_last=is_last)


def at_context_end(error: BaseException | None) -> None:
    """Do it for the last time; a teardown_appcontext function."""
    flush(is_last=True)


def at_teardown(error: BaseException | None) -> None:
    """Hand over where no server will close the response; a teardown_request function."""
    flush()
    launches: Pending | None = request.environ.get(LAUNCHES)
    if launches is not None and not launches.closes:
        launches.close()


def is_served(environ: Mapping[str, Any]) -> bool:
    """Tell whether a server serves this request: they name themselves, the test client doesn't."""
    return "SERVER_SOFTWARE" in environ or "uwsgi.version" in environ


def _closes(environ: Mapping[str, Any]) -> bool:
    # Of a server that does not name itself, the launches are only handed over a little early.
    return is_served(environ) or RUN in environ


class _Closing:
    """A response body that calls ``then`` once, after it was closed, whatever closing it does.

    A middleware outside may read the body and never close it: then its end as an object counts.
    """

    def __init__(self, body: Iterable[bytes], then: Callable[[], None]) -> None:
        self._body = body
        self._then: Callable[[], None] | None = then

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

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
