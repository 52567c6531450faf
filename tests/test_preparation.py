"""What is done once, before an app serves: late keys, imports, receivers that nobody will call."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask, current_app

from async_hooks import AsyncHooks, Auth, ConfigError, async_signal
from async_hooks.actions import nopriv_signal
from async_hooks.cli import cli
from async_hooks.state import state_of
from tests.support.apps import make_app, make_task


def serve(app: Flask) -> None:
    app.test_client().get("/")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# -- keys that come late


@pytest.mark.parametrize(
    ("key", "value"),
    [("TIMEOUT", 5), ("TIMEOTU", 5), ("TRANSPORT", "in_process"), ("HEADERS", {"X-Y": "z"})],
    ids=["new", "unknown", "changed", "a dict"],
)
def test_a_key_that_is_set_after_init_app_is_an_error_at_the_first_request(
    key: str, value: Any
) -> None:
    app, _ = make_app(ASYNC_HOOKS_HEADERS={})
    app.config[f"ASYNC_HOOKS_{key}"] = value
    expected = f"'ASYNC_HOOKS_{key}' was set after init_app, .* Set it before init_app."
    for _ in range(2):
        with pytest.raises(ConfigError, match=expected):
            serve(app)


def test_a_key_that_is_taken_out_or_changed_in_place_is_late_as_well() -> None:
    app, _ = make_app(ASYNC_HOOKS_HEADERS={"X-Y": "z"})
    app.config["ASYNC_HOOKS_HEADERS"]["X-Y"] = "another"
    with pytest.raises(ConfigError, match="'ASYNC_HOOKS_HEADERS' was set after"):
        serve(app)
    app.config["ASYNC_HOOKS_HEADERS"] = {"X-Y": "z"}
    del app.config["ASYNC_HOOKS_TRANSPORT"]
    with pytest.raises(ConfigError, match="'ASYNC_HOOKS_TRANSPORT' was set after"):
        serve(app)


def test_other_keys_and_equal_values_may_be_set_at_any_time() -> None:
    app, _ = make_app(ASYNC_HOOKS_TIMEOUT=5, ASYNC_HOOKS_AUDIENCE=["one"])
    app.config.update(TESTING=True, MINE=1, ASYNC_HOOKS_TIMEOUT=5.0, ASYNC_HOOKS_AUDIENCE=["one"])
    serve(app)


def test_whether_launches_are_held_back_is_said_at_any_time_but_rightly() -> None:
    app, _ = make_app()
    app.config["ASYNC_HOOKS_TESTING"] = "alive"
    with pytest.raises(ConfigError, match="expected 'ASYNC_HOOKS_TESTING' to be"):
        serve(app)
    app.config["ASYNC_HOOKS_TESTING"] = "live"
    serve(app)


def test_after_the_first_request_nobody_looks_any_more() -> None:
    app, _ = make_app()
    serve(app)
    app.config["ASYNC_HOOKS_TIMEOUT"] = 5
    serve(app)


def test_a_late_key_is_an_error_in_a_test_and_in_check(action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action, run_action=lambda self, data: None)
    app.config["ASYNC_HOOKS_TIMEOUT"] = 5
    with pytest.raises(ConfigError, match="'ASYNC_HOOKS_TIMEOUT' was set"), hooks.testing(app):
        pass
    result = app.test_cli_runner().invoke(cli, ["check"])
    assert result.exit_code == 1
    assert "Error: 'ASYNC_HOOKS_TIMEOUT' was set after init_app" in result.stderr


# -- imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> Path:
    """The path of a module that does not exist yet; it is named after the action."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, action, raising=False)
    return tmp_path / f"{action}.py"


def test_modules_are_imported_once_before_the_first_request_and_in_an_app_context(
    module: Path,
) -> None:
    module.write_text("from flask import current_app\ncurrent_app.extensions['seen'] += 1\n")
    app, _ = make_app(ASYNC_HOOKS_IMPORTS=[module.stem])
    app.extensions["seen"] = 0  # What comes after init_app is there.
    seen: list[int] = []

    @app.get("/")
    def view() -> str:
        seen.append(current_app.extensions["seen"])
        return ""

    serve(app)
    serve(app)
    assert seen == [1, 1]


def test_a_module_that_cannot_be_imported_is_an_error_that_names_key_and_module(
    module: Path,
) -> None:
    app, _ = make_app(ASYNC_HOOKS_IMPORTS=[module.stem])
    expected = rf"'ASYNC_HOOKS_IMPORTS' names '{module.stem}', .*\({{}}"
    with pytest.raises(ConfigError, match=expected.format("ModuleNotFoundError: No module")):
        serve(app)
    module.write_text("1 / 0")
    with pytest.raises(ConfigError, match=expected.format("ZeroDivisionError")):
        serve(app)
    module.write_text("x = 'mended, and of another length'")
    serve(app)


@pytest.mark.parametrize("value", ["shop.tasks", ["shop tasks"], [".tasks"], [1], [""], {"a": 1}])
def test_what_is_no_list_of_modules_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"'ASYNC_HOOKS_IMPORTS' to be a list of modules' names"):
        make_app(ASYNC_HOOKS_IMPORTS=value)


def test_a_test_launches_what_is_imported_at_the_start(module: Path, action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_IMPORTS=[module.stem])
    module.write_text(
        "from flask import current_app\n"
        "from tests.support.apps import make_task\n"
        f"make_task(current_app.extensions['hooks'], {action!r})\n"
    )
    app.extensions["hooks"] = hooks
    with hooks.testing(app) as launched, app.app_context():
        blinker.signal(action).send(app)
        assert len(launched.envelopes) == 1


def test_requests_that_come_at_once_all_find_it_imported(module: Path) -> None:
    module.write_text("import time\ntime.sleep(0.2)\nready = True\n")
    app, _ = make_app(ASYNC_HOOKS_IMPORTS=[module.stem])
    found: list[bool] = []

    @app.get("/")
    def view() -> str:
        found.append(sys.modules[module.stem].ready)
        return ""

    threads = [threading.Thread(target=serve, args=(app,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


# -- receivers that nobody will call


def test_a_plain_receiver_whose_action_nothing_defers_is_warned_of_and_fails_check(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    hooks.receiver(action, name="fine")(lambda sender: None)
    hooks.receiver(f"{action}_alone", name="alone")(lambda sender: None)

    def plain(sender: Flask) -> None: ...

    with (
        async_signal(f"{action}_typo").connected_to(plain),
        async_signal(f"{action}_alone").connected_to(plain),
    ):
        serve(app)
        serve(app)
        result = app.test_cli_runner().invoke(cli, ["check"])
    [line] = warnings(caplog)
    assert "plain' is connected to" in line
    assert f"'wp_async_{action}_typo', which no task fires so far, so it is not called." in line
    assert line.endswith(f"Did you mean 'wp_async_{action}'?")
    assert result.exit_code == 1
    [problem] = result.stderr.splitlines()
    assert problem == f"Error: {line}"


def test_a_receiver_of_an_async_hooks_that_no_app_has_is_warned_of(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    mixed_up = AsyncHooks()
    mixed_up.receiver(action, name="crm")(lambda sender: None)
    gc.collect()  # Those that other tests have left.
    serve(app)
    [line] = warnings(caplog)
    assert line.startswith("Receiver 'crm' is registered with an AsyncHooks that no app has")
    assert app.test_cli_runner().invoke(cli, ["check"]).exit_code == 1


def test_receivers_of_other_apps_are_theirs(action: str, caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # What other tests have left.
    _, others = make_app()
    make_task(others, action)
    others.receiver(f"{action}_typo", name="theirs")(lambda sender: None)

    def plain(sender: Flask) -> None: ...

    async_signal(action).connect(plain)
    app, _ = make_app()
    serve(app)
    assert warnings(caplog) == []


@pytest.mark.parametrize("level", Auth)
def test_a_receiver_for_anonymous_visitors_needs_a_task_for_them(
    action: str, level: Auth, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action, auth_level=level)
    hooks.receiver(f"nopriv_{action}", name="nopriv")(lambda sender: None)
    assert nopriv_signal(action).receivers
    serve(app)
    assert len(warnings(caplog)) == (1 if level is Auth.LOGGED_IN else 0)


def test_who_is_prepared_stays_so() -> None:
    app, _ = make_app()
    state = state_of(app)
    state.prepare()
    app.config["ASYNC_HOOKS_TIMEOUT"] = 5
    state.prepare()
