"""Names of tasks and receivers: who has one, and who takes whose place."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

import pytest
from flask import Flask

from async_hooks import AsyncHooks, ConfigError, OutboxRequired, async_signal
from async_hooks.registry import Registry
from tests.support.apps import make_app, make_task, plain_app


class Named:
    def __init__(self, name: str, *aliases: str) -> None:
        self.name = name
        self.aliases: Iterable[str] = aliases


TAKEN = "is already the name of another thing. Give one of them a 'name' of its own"


def registry() -> Registry[Named]:
    return Registry("thing")


def test_an_entry_is_found_by_its_name_and_its_former_ones() -> None:
    names, entry = registry(), Named("new", "old", "older")
    assert names.add(entry, period=None) is None
    assert [names.find(name) for name in ("new", "old", "older", "none")] == [entry] * 3 + [None]
    assert names.all() == {"new": entry, "old": entry, "older": entry}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [(None, None), (None, 1), (0, None), (1, 1)],
    ids=["both of modules", "a module's first", "a module's last", "both of one call"],
)
def test_two_entries_of_one_name_are_refused(earlier: int | None, later: int | None) -> None:
    names, first = registry(), Named("one")
    names.add(first, period=earlier)
    for entry in (Named("one"), Named("two", "one")):
        with pytest.raises(ConfigError, match=f"'one' {TAKEN}"):
            names.add(entry, period=later)
    assert names.all() == {"one": first}


def test_what_a_factory_defines_again_takes_the_place_of_what_it_defined() -> None:
    names, first, second = registry(), Named("one", "former"), Named("one")
    names.add(first, period=0)
    assert names.add(second, period=1) is first
    assert names.all() == {"one": second}
    assert names.newest(first) is names.newest(second) is second
    assert names.newest(Named("one")) is None


def test_a_name_of_another_definition_is_not_taken_by_an_alias() -> None:
    names = registry()
    names.add(Named("one", "former"), period=0)
    for entry in (Named("two", "one"), Named("two", "former"), Named("former")):
        with pytest.raises(ConfigError, match=TAKEN):
            names.add(entry, period=1)


def test_what_is_replaced_may_come_back() -> None:
    names, first, second = registry(), Named("one"), Named("one")
    names.add(first, period=0)
    names.add(second, period=1)
    assert names.add(first, period=2) is second
    assert names.newest(second) is first


def test_what_is_replaced_is_forgotten() -> None:
    names, first = registry(), Named("one")
    gone = weakref.ref(first)
    names.add(first, period=0)
    names.add(Named("one"), period=1)
    del first
    gc.collect()
    assert gone() is None


def test_a_loop_of_local_receivers_without_names_is_refused(action: str) -> None:
    _, hooks = make_app()

    def connect() -> None:
        @hooks.receiver(action)
        def receive(sender: Flask) -> None: ...

    connect()
    with pytest.raises(ConfigError, match="is already the name of another receiver"):
        connect()
    assert len(async_signal(action).receivers) == 1


def test_a_task_of_a_module_serves_every_app(action: str) -> None:
    hooks = AsyncHooks()
    task = make_task(hooks, action)
    ran: list[Flask] = []
    hooks.receiver(action, name="ran")(ran.append)
    apps = [Flask(name) for name in ("one", "two")]
    for app in apps:
        app.config.update(SECRET_KEY="k" * 32, ASYNC_HOOKS_TRANSPORT="eager")
        hooks.init_app(app)
        assert hooks.register(task) is task
    for app in apps:
        with app.app_context():
            task.dispatch({})
    assert ran == apps


def test_an_app_ends_although_its_receivers_close_over_it(action: str) -> None:
    def make() -> weakref.ref[Flask]:
        app, hooks = make_app()
        make_task(hooks, action)

        @hooks.receiver(action, name="log")
        def log(sender: Flask) -> None:
            app.logger.info("received")

        return weakref.ref(app)

    apps = [make() for _ in range(3)]
    gc.collect()
    assert [app() for app in apps] == [None] * 3
    assert not async_signal(action).receivers


def test_a_refused_app_changes_nothing(action: str) -> None:
    hooks = AsyncHooks()
    make_task(hooks, action, name="before", max_attempts=3)
    with pytest.raises(OutboxRequired):
        hooks.init_app(plain_app())
    hooks.init_app(plain_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db"))
    make_task(hooks, action, name="after", max_attempts=3)
