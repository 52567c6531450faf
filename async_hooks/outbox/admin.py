"""``hooks.outbox``: to look after what waits, runs and has finished."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Flask

from ..delivery import UNFINISHED, Delivery, DeliveryState, Group
from ..envelope import Envelope
from ..host.liveness import ProcessLock
from ..receivers import kinds_of, options_of
from ..state import state_of
from ..validation import checked, seconds
from . import audiences
from .changes import Changes
from .checkpoints import last_moved
from .groups import Groups
from .keys.standing import explain_held, neglected_since
from .processes import Processes, ProcessRow
from .queries import Queries
from .report import Backlog, Health, RelaySeen, lateness, moment, problem_of, reason
from .shown import delivery_of
from .sql import schema
from .sql.engines import identity_of
from .store import Store
from .until_finished import wait_until_finished

#: What a relay has from its row as it is.
_OF_A_PROCESS = ("id", "name", "host", "pid", "problem")


#: Parts of a group that are named.
_NAMED = 5


class Outbox(Changes):
    """The deliveries of one app. Every method reads or writes the database at once.

    :raises OutboxUnavailable: from each, if that can't be used.
    """

    def __init__(self, app: Flask, store: Store, processes: Processes) -> None:
        super().__init__(app, store.database, store.audiences, store.now)
        self._processes = processes
        self._groups = Groups(store.database, store.audiences, store.now)

    def get(self, delivery_id: str) -> Delivery | None:
        """Return the delivery of this id, None if there is none (any more)."""
        found = self.rows(limit=1, ids=[delivery_id])
        return self._delivery(found[0]) if found else None

    def wait(self, delivery_id: str, timeout: float | timedelta) -> Delivery:
        """Return the delivery of this id once it has finished.

        :raises TimeoutError: if it has not in ``timeout`` seconds.
        :raises AsyncHooksError: if there is none; in a run; and in a request, unless
            'ASYNC_HOOKS_RELAY' is False: it would keep the thread that it waits for.
        """
        return wait_until_finished(state_of(self._app).config, self.get, delivery_id, timeout)

    def find(
        self,
        *,
        ref: str | None = None,
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        limit: int | None = 100,
    ) -> list[Delivery]:
        """Return the deliveries that all of these fit, newest first.

        ``parent`` is the id of a launch whose parts are wanted; with ``root``, what tells of their
        end is among them.
        """
        states = None if state is None else [DeliveryState(state)]
        rows = self.rows(
            limit, states=states, root=root, ref=ref, task=task, queue=queue, parent_id=parent
        )
        return [self._delivery(row) for row in rows]

    def group(self, launch_id: str, *, max_age: float = 1.0) -> Group | None:
        """Return how far a launch is with its parts; None if it is unknown.

        They are counted anew if that was done longer ago than ``max_age`` (seconds). A launch that
        has no receivers, or one, is a group of one.
        """
        return self._groups.find(launch_id, max_age)

    def open_groups(self, limit: int = 10) -> list[Group]:
        """Return the newest launches whose parts have not all come to an end."""
        found = [self.group(row.id) for row in self.rows(limit, states=[DeliveryState.WAITING])]
        return [group for group in found if group is not None]

    @property
    def version(self) -> int:
        """The version of the tables that this code uses."""
        return schema.VERSION

    def create(self, *, recreate: bool = False) -> bool:
        """Make the tables, or what is missing of them; return whether anything was made.

        ``recreate`` deletes those that are there, of whatever version, with all that waits.
        """
        return self._database.create(recreate=recreate)

    def check_tables(self) -> bool:
        """Tell whether the tables are there. None are made; SQLite's are at their first use.

        :raises OutboxUnavailable: if this code can't use them as they are.
        """
        return self._database.check()

    def skew(self) -> float | None:
        """Return by how many seconds this host's clock is ahead of the database's, if by one."""
        self._database.compare_clocks()
        return self._database.clock.skew

    def losses(self) -> list[str]:
        """Say that the tables had vanished, as far as this machine remembers; see ``create``."""
        return self._database.losses()

    def adopt(self, former: str) -> int:
        """Move the deliveries of this app's ``former`` audience to its own; return how many."""
        return audiences.adopt(self._database, former, self._audiences[0], self._now())

    def orphaned(self) -> list[str]:
        """Say which audiences that this app does not read have unfinished deliveries of its tasks.

        One with a living process is another app, or another release of this one.
        """
        tasks = state_of(self._app).tasks
        alive = {row.audience for row in self._processes.everybody() if self._is_alive(row)}
        problems: list[str] = []
        for audience in audiences.others(self._database, {*self._audiences, *alive}):
            theirs = Queries(self._database, [audience], self._now).unfinished()
            number = sum(count for task, _, count, _ in theirs if tasks.find(task) is not None)
            if number:
                problems.append(
                    f"{audience!r} has unfinished deliveries of this app's tasks ({number}), "
                    "'ASYNC_HOOKS_AUDIENCE' does not name it, and no process of that name lives. "
                    f"Add it there, or run: flask async-hooks adopt {audience}"
                )
        return problems

    def why(self, delivery_id: str) -> str:
        """Say in one sentence why the delivery is where it is."""
        rows = self.rows(limit=1, ids=[delivery_id])
        if not rows:
            return f"No delivery {delivery_id!r} (it never existed, or has been purged)."
        delivery, state, now = self._delivery(rows[0]), state_of(self._app), self._now()
        return reason(
            delivery,
            moment(now),
            is_known=(delivery.task, delivery.receiver or "") in kinds_of(state),
            is_paused=delivery.queue in self.paused(),
            held=explain_held(state, self._database, self._audiences, rows[0], now),
            relays=self.relays(),
            unfinished=self._unfinished_of(delivery),
        )

    def _unfinished_of(self, delivery: Delivery) -> list[Delivery]:
        """Return the parts that a group waits for, as many as can be named."""
        if delivery.state is not DeliveryState.WAITING:
            return []
        rows = self.rows(_NAMED, states=UNFINISHED, parent_id=delivery.id)
        return [self._delivery(row) for row in rows]

    def backlog(self) -> list[Backlog]:
        """Return what is unfinished, by task and receiver."""
        known = kinds_of(state_of(self._app))
        return [
            Backlog(
                task=task,
                receiver=receiver or None,
                count=number,
                due_at=moment(due),
                is_known=(task, receiver) in known,
            )
            for task, receiver, number, due in self.unfinished()
        ]

    def overdue(self) -> timedelta | None:
        """Return since how long the longest waiting delivery is due, None if none is.

        What a limit holds does not count, unless nothing of that limit runs.
        """
        now = self._now()
        neglected = neglected_since(self._database, self._audiences, self.paused(), now)
        due = [at for at in (self.oldest_due(), neglected) if at is not None]
        return lateness(min(due), now) if due else None

    def health(self, *, patience: float | timedelta = 60) -> Health:
        """Tell whether deliveries are sent: something relays, and none is due for too long.

        ``patience`` (seconds) says how long is too long.
        """
        late, relays = self.overdue(), self.relays()
        problem = problem_of(late, relays, checked(seconds, patience, "patience"))
        if problem is None:
            problem = next(iter([*self.losses(), *self.orphaned()]), None)
        return Health(
            ok=problem is None,
            oldest_due=late,
            relays=relays,
            overdue=[one for relay in relays if relay.is_alive for one in relay.overdue],
            problem=problem,
        )

    def relays(self) -> list[RelaySeen]:
        """Return the processes that relay or run something, or died and were not yet missed."""
        return [self._seen(row) for row in self._processes.all()]

    def _seen(self, row: ProcessRow) -> RelaySeen:
        running = self._processes.running(row.id)
        executing = [one for one in running if one.state == DeliveryState.EXECUTING]
        return RelaySeen(
            **{name: getattr(row, name) for name in _OF_A_PROCESS},
            queues=row.queues.split(),
            deliveries=[one.id for one in executing],
            overdue=[one.id for one in executing if self._is_overdue(one)],
            cancelled=[one.id for one in running if one not in executing],
            started_at=moment(row.started_at),
            seen_at=moment(row.seen_at),
            is_alive=self._is_alive(row),
            claims=bool(row.relays),
        )

    def _is_overdue(self, row: Any) -> bool:
        envelope = Envelope(row.id, row.task, "", receiver=row.receiver or None)
        timeout = options_of(state_of(self._app), envelope).timeout
        return self._now() - last_moved(row) > timeout

    def _is_alive(self, row: ProcessRow) -> bool:
        is_silent = self._now() - row.seen_at > 2 * state_of(self._app).config.lease
        lock = ProcessLock(identity_of(self._database.engine))
        return not (is_silent or lock.has_ended(row.id, row.host_id))

    def _delivery(self, row: Any) -> Delivery:
        return delivery_of(state_of(self._app), row)
