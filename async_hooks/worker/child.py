"""The child of a worker: it works, and says how it ends.

A socket pair connects it with its parent. It says there how it ends, right before it leaves in
order, because its exit code may be a receiver's. If the parent dies, it finds the other end closed.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import click

from ..errors import AsyncHooksError, OutboxUnavailable
from ..log import one_line
from ..texts import log_exception
from .worker import Exit, Work

#: The signals that end a worker; the last one is its own alarm.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)

logger = logging.getLogger("async_hooks")


def work_as_child(make_work: Callable[[], Work], child_end: int, died: int | None = None) -> int:
    """Run deliveries in this process, a child, until it is told to end or its parent dies.

    ``died`` is the exit code of the child before it, if that died.
    """
    os.set_inheritable(child_end, False)
    # Ignored, because a terminal sends them to both processes: the parent forwards them.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # Nothing runs yet.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Output is seen at once, also in a file.
            stream.reconfigure(line_buffering=True)
    try:
        work = make_work()
    except BaseException as error:
        _show(error)
        return _say(Exit.MISCONFIGURED, child_end)

    def end_soon(*_: object) -> None:
        # In a thread, because a handler interrupts the thread that waits for the end.
        threading.Thread(target=work.end, daemon=True).start()

    def end_with_parent() -> None:
        os.read(child_end, 1)
        work.end()

    signal.signal(signal.SIGTERM, end_soon)
    threading.Thread(target=end_with_parent, name="async_hooks-parent", daemon=True).start()
    try:
        code = work.run(died)
    except OutboxUnavailable as error:
        _show(error)
        code = Exit.FAILED
    _say(code, child_end)
    if work.is_overdue:  # The interpreter's own exit would wait for it once more.
        leave(code)
    return code


def _say(ending: Exit, child_end: int) -> Exit:
    """Say to the parent, if it lives, how this process ends, which it is about to do."""
    with suppress(OSError):
        os.write(child_end, bytes([ending]))
    return ending


def _show(error: BaseException) -> None:
    """Say why there is no work: in a line, if the error is made for that."""
    if isinstance(error, AsyncHooksError):
        error = click.ClickException(one_line(error))
    if isinstance(error, click.ClickException):
        error.show()
    else:
        log_exception(logger, error, "Worker: the app can't be loaded.")


def leave(code: int) -> NoReturn:
    """End this process at once, whatever still runs in it."""
    try:
        flush()
    finally:
        os._exit(code)


def flush() -> None:
    """Write out what was printed, so that no fork prints it twice, and no end loses it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
