"""``flask async-hooks …``: the commands that change something, and what all share."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup, ScriptInfo

from ..delivery import FINAL, DeliveryState
from ..errors import AsyncHooksError
from ..log import one_line
from ..state import current_state
from ..task import needs_outbox
from ..worker.supervisor import CHILD, forked, started_anew, supervise, work_as_child
from ..worker.worker import Options, Work

if TYPE_CHECKING:  # Comes with an optional extra.
    from ..outbox.admin import Outbox

# Texts: click calls the members of an enum by their Python names.
STATES = [state.value for state in DeliveryState]
_UNFINISHED = [state.value for state in DeliveryState if state not in FINAL]
_RETRIABLE = [state for state in STATES if state != DeliveryState.EXECUTING]

_PERIOD = re.compile(r"(\d{1,10}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

cli = AppGroup("async-hooks", help="Look after what runs after the response.")

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


class Guarded(click.Command):
    """A command that ends with a sentence where the library raises."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AsyncHooksError as error:
            raise click.ClickException(one_line(error)) from None


def period(text: str) -> float:
    """Return the seconds that ``text`` names, by itself or with a unit: 45s, 30m, 12h, 7d."""
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise click.BadParameter(
            f"expected seconds, 0 or more, or such as 45s, 30m, 12h, 7d, got: {text!r}"
        )
    return float(match[1]) * _UNITS[match[2]]


def name(text: str) -> str:
    """Return ``text``, a name or an id, if a database can take it."""
    if not text or one_line(text) != text:
        raise click.BadParameter(f"expected text without control characters, got: {text!r}")
    return text


def _names(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(name(text) for text in texts)


class _NoOutbox(click.ClickException):
    exit_code = 2


def needed_outbox() -> Outbox:
    """Return the app's outbox, or end the command with 2."""
    outbox: Outbox | None = current_state().outbox
    if outbox is None:
        command = f"flask async-hooks {click.get_current_context().info_name}"
        raise _NoOutbox(needs_outbox(command, repr(current_app.name)))
    return outbox


@cli.command("init-db", cls=Guarded)
def init_db() -> None:
    """Make the outbox's tables, or bring them up to date.

    Run it at each deploy, before the new code serves; it may run any number of times.

    Exits with 0 if they are up to date now, with 1 if the database can't be used, and with 2 if
    the app has no outbox.
    """
    before, now = needed_outbox().migrate()
    if before == 0:
        click.echo(f"The outbox's tables were made, version {now}.")
    elif before < now:
        click.echo(f"The outbox's tables were updated from version {before} to {now}.")
    else:
        click.echo(f"The outbox's tables are up to date, version {now}.")


_many: list[Callable[[Any], Any]] = [
    click.argument("ids", metavar="[ID]...", type=name, nargs=-1),
    click.option("--task", type=name, help="With --state: only those of the task of this name."),
    click.option("--queue", type=name, help="With --state: only those in this queue."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.pass_context,
]


def _of_many(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed(_many):
        function = decorate(function)
    return function


@cli.command(cls=Guarded)
@click.option("--state", type=click.Choice(_RETRIABLE), help="All in this state, instead of IDs.")
@_of_many
def retry(
    context: click.Context,
    ids: tuple[str, ...],
    state: str | None,
    task: str | None,
    queue: str | None,
    yes: bool,
) -> None:
    """Make deliveries due now, with all their attempts before them.

    Name IDs, or --state for all that are in it. What executes is left alone. Of a fan-out, the
    children that did not succeed are retried.

    Exits with 0, with 1 if an ID is not there or was not retried, if the answer was no or the
    database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    _check_choice(ids, state, task, queue)
    if state is None:
        refused = "executes, or all its children succeeded or execute"
        context.exit(_one_by_one(outbox, ids, "retried", refused))
    number = outbox.count([state], task=task, queue=queue)
    _in_steps("Retry", "Retried", number, outbox.retrying([state], task=task, queue=queue), yes)


@cli.command(cls=Guarded)
@click.option("--state", type=click.Choice(_UNFINISHED), help="All in this state, instead of IDs.")
@_of_many
def cancel(
    context: click.Context,
    ids: tuple[str, ...],
    state: str | None,
    task: str | None,
    queue: str | None,
    yes: bool,
) -> None:
    """End deliveries, and their children, that have not finished.

    Name IDs, or --state for all that are in it. An attempt that runs can't be stopped, but what
    it says no longer counts.

    Exits with 0, with 1 if an ID is not there or had finished, if the answer was no or the
    database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    _check_choice(ids, state, task, queue)
    if state is None:
        context.exit(_one_by_one(outbox, ids, "cancelled", "had finished"))
    number = outbox.count([state], task=task, queue=queue)
    _in_steps(
        "Cancel", "Cancelled", number, outbox.cancelling([state], task=task, queue=queue), yes
    )


@cli.command(cls=Guarded)
@click.argument("queue", type=name)
def pause(queue: str) -> None:
    """Let nothing of QUEUE begin until it is resumed. What runs goes on.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    needed_outbox().pause(queue)
    click.echo(f"The queue {queue!r} is paused.")


@cli.command(cls=Guarded)
@click.argument("queue", type=name)
def resume(queue: str) -> None:
    """Let what waits in QUEUE begin again.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    was_paused = queue in outbox.paused()
    outbox.resume(queue)
    click.echo(f"The queue {queue!r} {'is resumed' if was_paused else 'was not paused'}.")


@cli.command(cls=Guarded)
@click.option(
    "--older-than",
    type=period,
    help="Seconds since they finished, or such as 12h, 7d; default: ASYNC_HOOKS_KEEP.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(older_than: float | None, yes: bool) -> None:
    """Delete deliveries that finished some time ago. The relays do that by ASYNC_HOOKS_KEEP.

    Exits with 0, with 1 if the answer was no or the database can't be used, and with 2 if the app
    has no outbox.
    """
    outbox = needed_outbox()
    if older_than is None:
        older_than = current_state().config.keep
    number = outbox.purgeable(older_than)
    since = f" that finished more than {_in_words(older_than)} ago"
    _in_steps("Purge", "Purged", number, outbox.purging(older_than), yes, since)


def _check_choice(
    ids: tuple[str, ...], state: str | None, task: str | None, queue: str | None
) -> None:
    if not ids and state is None:
        raise click.UsageError("Name an ID, or --state for all that are in it.")
    if state is None and (task is not None or queue is not None):
        raise click.UsageError("--task and --queue go with --state.")
    if ids and state is not None:
        raise click.UsageError("Name IDs or --state, not both.")


def _one_by_one(outbox: Outbox, ids: Iterable[str], done: str, refused: str) -> int:
    change = outbox.retry if done == "retried" else outbox.cancel
    code = 0
    for delivery_id in ids:
        if change(delivery_id):
            click.echo(f"Delivery {delivery_id} is {done}.")
            continue
        code = 1
        if outbox.get(delivery_id) is None:
            click.echo(outbox.why(delivery_id), err=True)
        else:
            click.echo(f"Delivery {delivery_id} is not {done}: it {refused}.", err=True)
    return code


def _in_steps(
    do: str, done: str, number: int, steps: Iterable[int], yes: bool, which: str = ""
) -> None:
    """Ask, go through ``steps``, and show how far they are where there are many."""
    if number == 0:
        click.echo(f"There is nothing to {do.lower()}.")
        return
    if not yes:
        click.confirm(f"{do} {_counted(number)}{which}?", abort=True)
    total = 0
    if sys.stdout.isatty():
        with click.progressbar(length=number, label=do) as bar:
            for step in steps:
                total += step
                bar.update(step)
    else:
        for step in steps:
            if 0 < total < number:
                click.echo(f"{done} {total} of {number} ...")
            total += step
    click.echo(f"{done} {_counted(total)}.")


def _counted(number: int) -> str:
    return "1 delivery" if number == 1 else f"{number} deliveries"


def _in_words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} seconds"


def _worker_name(text: str) -> str:
    if len(text) > 255:
        raise click.BadParameter(f"expected at most 255 characters, got: {len(text)}")
    return name(text)


# The app is loaded by the children: no connection, lock or thread of its import is shared by them.
@cli.command(cls=Guarded, with_appcontext=False)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    callback=_names,
    help="Work this queue only; several, in this order.",
)
@click.option(
    "--name", "named", type=_worker_name, help="What 'status' calls it; by default host and pid."
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Deliveries at once; 1 is strictly one after the other.",
)
@click.option("--once", is_flag=True, help="End after one delivery, or if none is due.")
@click.option("--drain", is_flag=True, help="End when nothing more is due.")
@click.option(
    "--fresh", is_flag=True, help="A new process, with the code as it is then, for each delivery."
)
@click.option(
    "--max-deliveries",
    "quota",
    type=click.IntRange(min=1),
    help="A new process after so many deliveries.",
)
@click.option(
    "--max-rss",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="A new process, once one has taken so much memory.",
)
@click.pass_context
def worker(
    context: click.Context,
    queues: tuple[str, ...],
    named: str | None,
    concurrency: int,
    once: bool,
    drain: bool,
    fresh: bool,
    quota: int | None,
    max_rss: int | None,
) -> None:
    """Carry what waits in the outbox, in a process without a web server.

    Each delivery is a fresh request of the app. TERM or Ctrl-C lets what runs finish (for up to
    ASYNC_HOOKS_GRACE seconds) and gives back the rest; a second one ends at once. A receiver that
    takes its process with it ends neither the worker nor other deliveries.

    Exits with 0, with 1 if the one delivery of --once did not succeed, or if --once or --drain
    can't use the database, with 2 if there is no app or it has no outbox, and with 130 if it was
    ended at once.
    """
    pipe = os.environ.pop(CHILD, None)
    pid = os.getpid() if pipe is None else os.getppid()
    options = Options(
        name=named if named is not None else f"{socket.gethostname()} {pid}",
        queues=list(queues) or None,
        concurrency=concurrency,
        quota=1 if fresh or once else quota,
        max_rss=max_rss,
        once=once,
        drain=drain,
        fresh=fresh,
    )

    def make_work() -> Work:
        app = context.ensure_object(ScriptInfo).load_app()
        with app.app_context():
            needed_outbox()
        return Work(app, options)

    if pipe is not None:
        context.exit(work_as_child(make_work, int(pipe)))
    if not fresh:
        context.exit(supervise(lambda: forked(make_work), options))
    # A test's runner, say, is not what to start again.
    if not {"async-hooks", "worker"} <= set(sys.argv):
        raise click.UsageError("--fresh needs a command line of its own.")
    command = [sys.executable, *sys.orig_argv[1:]]
    context.exit(supervise(lambda: started_anew(command), options))
