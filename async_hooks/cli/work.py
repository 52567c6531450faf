"""``flask async-hooks worker``: run the outbox's deliveries in a process of their own."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from typing import Any

import click
from flask.cli import ScriptInfo

from ..worker.child import work_as_child
from ..worker.supervisor import CHILD, forked, started_anew, supervise
from ..worker.worker import Options, Work
from .options import cli, count, name, needed_outbox, period


def _host_and_pid() -> str:
    """Return a name that all children of one worker share: its host and its parent's pid."""
    return f"{socket.gethostname()} {os.getppid() if CHILD in os.environ else os.getpid()}"


# The app is loaded by the children: no connection, lock or thread of its import is shared by them.
@cli.command(with_appcontext=False)
@click.option(
    "--queue", "queues", multiple=True, type=name, help="Only this queue; repeatable, in order."
)
@click.option(
    "--name",
    type=name,
    default=_host_and_pid,
    show_default="host and pid",
    help="Name in 'status'.",
)
@click.option(
    "--concurrency",
    type=count,
    default=1,
    show_default=True,
    help="Number of threads; 1 is serial.",
)
@click.option("--once", is_flag=True, help="End after one delivery, or if none is due.")
@click.option("--drain", is_flag=True, help="End when no more deliveries are due.")
@click.option("--fresh", is_flag=True, help="New process, with the current code, per delivery.")
@click.option("--max-deliveries", "quota", type=count, help="Restart after this many deliveries.")
@click.option("--max-rss", type=count, metavar="MIB", help="Restart when memory exceeds this.")
@click.option("--max-time", type=period, metavar="SECONDS", help="End after this long, or e.g. 1h.")
@click.option(
    "--kill-overdue",
    type=period,
    metavar="SECONDS",
    help="Restart when a run exceeds its timeout by this much; it counts as a crash.",
)
@click.pass_context
def worker(context: click.Context, /, queues: tuple[str, ...], **chosen: Any) -> int:
    """Run a worker.

    It runs the outbox's deliveries without a web server, each as a fresh request of the app. TERM
    or Ctrl-C lets runs finish (for up to ASYNC_HOOKS_GRACE seconds) and releases the rest; a
    second one ends it at once. If a receiver kills its process, the worker and other deliveries
    continue.

    Exits with 0, with 1 if the one delivery of --once did not succeed, or if --once or --drain
    can't use the database, with 2 if there is no app or it has no outbox, and with 130 if it was
    ended at once.
    """
    if chosen["max_time"] == 0:
        raise click.BadParameter("expected more than 0 seconds", param_hint="'--max-time'")
    options = Options(queues=list(queues) or None, **chosen)
    if options.fresh or options.once:
        options = options._replace(quota=1)
    given = os.environ.pop(CHILD, None)

    def make_work() -> Work:
        app = context.ensure_object(ScriptInfo).load_app()
        with app.app_context():
            needed_outbox()
        return Work(app, options)

    if given is not None:
        return work_as_child(make_work, *map(int, given.split()))
    if not options.fresh:
        return supervise(partial(forked, make_work), options)
    # A test's runner, say, is not what to start again.
    if not {"async-hooks", "worker"} <= set(sys.argv):
        raise click.UsageError("--fresh works only from a command line.")
    command = [sys.executable, *sys.orig_argv[1:]]
    return supervise(partial(started_anew, command), options)
