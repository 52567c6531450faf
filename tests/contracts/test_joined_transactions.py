"""A launch exists if and only if what was written beside it does.

Each launch of this machine has a marker beside it, written in the same transaction: a row that is
added, changed or deleted. A launch that has none goes the way of its transaction.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import close_all_sessions

from tests.support.databases import KINDS, fresh_database
from tests.support.joined_shop import CHANGES, INSERTS, READS, Shop, losses_heard, waiting

#: The numbers of the rows that are there before: some to change or delete, and one to read.
ROWS = range(-8, 1)

ACTS = st.sampled_from(["write launch", "launch write", "launch", "launch", "write", "look launch"])
WAYS = st.sampled_from([*INSERTS, *CHANGES])
LOOKS = st.sampled_from([*READS, "flush", "flush"])
ENDS = st.sampled_from(
    ["commit", "commit root", "rollback", "close", "remove", "respond", "raise", "raise, respond"]
)
FAILURES = st.sampled_from([None, None, None, None, None, "flush", "commit", "late commit"])


@dataclass
class Frame:
    """What belongs to a savepoint or, without one, to the root transaction, this or the next."""

    savepoint: Any = None
    launches: set[int] = field(default_factory=set)
    has_written: bool = False


class Transactions(RuleBasedStateMachine):
    """One request, or script, after the other. The shops differ in their session alone."""

    shops: list[Shop]
    outside: Engine
    context: Any = None

    def __init__(self) -> None:
        super().__init__()
        rows = ", ".join(f"({n})" for n in ROWS)
        with self.outside.begin() as connection:
            connection.execute(text("DELETE FROM async_hooks_deliveries"))
            connection.execute(text("DELETE FROM orders"))
            connection.execute(text(f"INSERT INTO orders (number) VALUES {rows}"))
        self.hearing = losses_heard()
        self.losses = self.hearing.__enter__()
        self.new, self.old = count(1), iter(ROWS[:-1])
        self.frames = [Frame()]
        #: Whether a transaction has ended since the last look.
        self.has_ended = True
        #: Whether the session holds what neither a flush nor a launch has looked at.
        self.is_unseen = False
        #: The launches that have a marker; that are kept; that are lost loudly.
        self.marked: set[int] = set()
        self.kept: set[int] = set()
        self.lost: set[int] = set()

    @initialize(shop=st.integers(0, 3), is_script=st.booleans())
    def begin(self, shop: int, is_script: bool) -> None:
        self.shop = self.shops[shop]
        self.session = self.shop.session
        self.begin_context(is_script)

    def begin_context(self, is_script: bool) -> None:
        app, self.is_script = self.shop.app, is_script
        self.context = app.app_context() if is_script else app.test_request_context()
        self.context.push()

    def teardown(self) -> None:
        self.hearing.__exit__(None, None, None)
        try:
            if self.context is not None:
                self.context.pop()
        finally:
            close_all_sessions()  # Whatever went wrong, the next story finds no lock.

    # -- what an app does

    @rule(acts=ACTS, way=WAYS, look=LOOKS)
    def act(self, acts: str, way: str, look: str) -> None:
        """Write, launch, or write a marker and launch beside it, in one order or the other."""
        n = next(self.old, None) if way in CHANGES else next(self.new)
        if n is None:
            n, way = next(self.new), "add"
        if "write" in acts and "launch" in acts:
            self.marked.add(n)
        for each in acts.split():
            if each == "launch":
                self.launch(n)
            elif each == "write":
                {**INSERTS, **CHANGES}[way](self.shop, n)
                self.frames[-1].has_written = self.is_unseen = True
            elif look == "flush":
                self.session.flush()
            else:
                READS[look](self.shop)

    def launch(self, n: int) -> None:
        if n % 2:
            self.shop.launch(n)
        else:
            self.shop.task.dispatch({"n": n})
        self.frames[-1].launches.add(n)
        self.is_unseen = False

    @precondition(lambda self: len(self.frames) < 4)
    @rule(acts=ACTS, way=WAYS, look=LOOKS)
    def begin_nested(self, acts: str, way: str, look: str) -> None:
        self.frames.append(Frame(self.session.begin_nested()))
        self.act(acts, way, look)

    @precondition(lambda self: len(self.frames) > 1)
    @rule(depth=st.integers(1, 3), is_released=st.booleans())
    def end_nested(self, depth: int, is_released: bool) -> None:
        """Leave the block of a savepoint, and of those in it, with or without an exception."""
        depth = min(depth, len(self.frames) - 1)
        with suppress(LookupError), self.frames[depth].savepoint:
            if not is_released:
                raise LookupError
        if is_released:
            self.released(depth)
        del self.frames[depth:]

    @precondition(lambda self: any(each.has_written or each.launches for each in self.frames))
    @rule(how=ENDS, failure=FAILURES, is_script=st.booleans())
    def end(self, how: str, failure: str | None, is_script: bool) -> None:
        """End the transaction, some ways with its request or script; another begins then."""
        if failure is not None:
            self.fail(failure)
            if how.startswith("commit") or failure == "late commit":
                how = "rollback"
            if "respond" in how and len(self.frames) == 1 and not self.is_script:
                self.launch(next(self.new))  # Nothing is written by now.
        if "respond" in how or "raise" in how:
            self.end_context(how)
            self.begin_context(is_script)
        elif how == "rollback":
            if self.session().in_transaction():
                self.ended()
            self.session.rollback()
        elif how in ("close", "remove"):
            self.end_session(how)
        else:
            root: Any = self.session().get_transaction()
            (self.session if root is None or how == "commit" else root).commit()
            self.kept |= self.ended().launches

    def fail(self, failure: str) -> None:
        """Write what is refused: by the flush, which undoes the innermost, or by the commit."""
        if failure == "late commit":
            with pytest.raises(IntegrityError):  # noqa: PT012 - MariaDB refuses it at once
                self.shop.break_at_commit()
                self.session.commit()
            return
        self.shop.order(0)  # It is there already.
        with pytest.raises(IntegrityError):
            getattr(self.session, failure)()
        self.frames[-1] = Frame(self.frames[-1].savepoint)
        self.is_unseen = False

    def end_session(self, how: str) -> None:
        if self.is_unseen:
            self.session.flush()  # The module says so: what nothing has looked at is not seen.
        if self.session().in_transaction():
            self.forget()
            getattr(self.session, how)()

    def end_context(self, how: str) -> None:
        if self.is_script and self.is_unseen:
            self.session.flush()
        if not self.is_script and "respond" in how:
            self.shop.app.process_response(Response())
        self.forget()
        context, self.context = self.context, None
        context.pop(LookupError() if "raise" in how else None)

    # -- what always holds

    @precondition(lambda self: self.has_ended)
    @invariant()
    def a_launch_exists_iff_its_marker_does(self) -> None:
        found = self.shop.hooks.outbox.find(limit=None)
        launches = waiting(found)
        assert len(set(launches)) == len(launches) == len(found)
        assert all(each.attempts == 0 for each in found)
        with self.outside.connect() as connection:
            rows = connection.execute(text("SELECT number, note FROM orders")).all()
        changed = {number for number, _ in {(n, None) for n in ROWS}.symmetric_difference(rows)}
        assert self.marked.intersection(launches) == self.marked & changed
        assert set(launches) - self.marked == self.kept - self.marked
        self.has_ended = False

    @invariant()
    def what_a_forgotten_commit_lost_is_said(self) -> None:
        assert self.losses() == sorted(self.lost)

    # -- what the model makes of it

    def released(self, depth: int) -> None:
        """Let what is of a savepoint, and of those in it, be of the one around it."""
        outer = self.frames[depth - 1]
        for inner in self.frames[depth:]:
            outer.launches |= inner.launches
            outer.has_written |= inner.has_written

    def ended(self) -> Frame:
        """Let all belong to the root transaction, return that, and begin another."""
        self.released(1)
        root, self.frames = self.frames[0], [Frame()]
        self.is_unseen, self.has_ended = False, True
        return root

    def forget(self) -> None:
        """Let the root transaction end without a commit or a rollback."""
        root = self.ended()
        (self.lost if root.has_written else self.kept).update(root.launches)


@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_exists_iff_the_marker_beside_it_does(
    kind: str, action: str, tmp_path: Path
) -> None:
    with fresh_database(kind, tmp_path) as url:
        shops = [
            Shop(url, f"{action}_{n}", is_plain=n > 1, hooks_first=n % 2 == 1, says_begin=True)
            for n in range(4)
        ]
        assert shops[0].sent() == []  # SQLite's tables are made at the first use.
        outside = create_engine(url)
        # Hypothesis tells other stories to a machine of another name.
        machine = type(kind, (Transactions,), {"shops": shops, "outside": outside})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=17,
                deadline=None,
                derandomize=True,
                suppress_health_check=[HealthCheck.too_slow],
                database=None,
            ),
        )
        for engine in (outside, *(shop.engine for shop in shops)):
            engine.dispose()
