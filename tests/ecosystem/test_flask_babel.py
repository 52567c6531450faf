"""Flask-Babel: a run speaks the language, and lives in the time zone, of the visitor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import flask
import pytest
from flask import request

from async_hooks import AsyncHooks
from tests.support.apps import make_task, plain_app
from tests.support.services import require_module

require_module("flask_babel")

import babel
import pytz
from babel.messages import Catalog
from babel.messages.mofile import write_mo
from flask_babel import Babel, force_locale, format_datetime, get_locale, gettext

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)

SPANISH = {"Accept-Language": "es"}


def best_locale() -> str | None:
    return request.accept_languages.best_match(["en", "es", "zh_Hans_CN"])


def own_timezone() -> str | None:
    return request.args.get("timezone")


class Shop:
    """An app that speaks English and Spanish, whose page launches a mail."""

    def __init__(self, action: str, folder: Path, **selectors: Any) -> None:
        self.app = plain_app(
            ASYNC_HOOKS_TRANSPORT="eager", BABEL_TRANSLATION_DIRECTORIES=str(folder)
        )
        self.hooks = AsyncHooks(self.app)
        # As in many factories, set up after us.
        Babel(self.app, **{"locale_selector": best_locale, **selectors})
        task = self.task = make_task(self.hooks, action)
        self.app.add_url_rule("/", "page", lambda: task.dispatch({}))
        self.mails: list[str] = []
        self.hooks.receiver(action)(lambda sender: self.mails.append(mail()))

    def visit(self, path: str = "/", **options: Any) -> None:
        self.app.test_client().get(path, **options)


def mail() -> str:
    return f"{gettext('Thank you')} {format_datetime(NOON, 'EEEE HH:mm')}"


@pytest.fixture
def make_shop(action: str, tmp_path: Path) -> Callable[..., Shop]:
    catalog = Catalog(locale=babel.Locale("es"))
    catalog.add("Thank you", "Gracias")
    path = tmp_path / "es" / "LC_MESSAGES" / "messages.mo"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        write_mo(cast(Any, file), catalog)
    return lambda **selectors: Shop(action, tmp_path, **selectors)


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    return make_shop(timezone_selector=own_timezone)


def test_the_mail_is_in_the_visitors_language_and_time_zone(shop: Shop) -> None:
    shop.visit("/?timezone=Europe/Madrid", headers=SPANISH)
    shop.visit()
    assert shop.mails == ["Gracias miércoles 14:00", "Thank you Wednesday 12:00"]


def test_a_before_request_knows_the_language_already(shop: Shop) -> None:
    seen: list[str] = []
    shop.app.before_request(lambda: seen.append(str(get_locale())))
    shop.visit(headers={"Accept-Language": "zh-Hans-CN"})
    assert seen == ["zh_Hans_CN", "zh_Hans_CN"]


def test_what_a_run_launches_is_in_the_same_language(shop: Shop, action: str) -> None:
    inner = make_task(shop.hooks, f"{action}_inner", name="inner")
    shop.hooks.receiver(f"{action}_inner", name="inner")(lambda sender: shop.mails.append(mail()))
    shop.hooks.receiver(action, name="outer")(lambda sender: inner.dispatch({}))
    shop.visit(headers=SPANISH)
    assert shop.mails == ["Gracias miércoles 12:00"] * 2


def test_a_language_that_is_forced_travels_from_a_command_too(shop: Shop) -> None:
    @shop.app.cli.command("remind")
    def remind() -> None:
        shop.task.dispatch({})
        with force_locale("es"):
            shop.task.dispatch({})

    result = shop.app.test_cli_runner().invoke(remind)
    assert result.exception is None
    assert shop.mails == ["Thank you Wednesday 12:00", "Gracias miércoles 12:00"]


def test_outside_a_request_the_app_is_not_asked(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with shop.app.app_context():
        shop.task.dispatch({})
    assert shop.mails == ["Thank you Wednesday 12:00"]
    assert caplog.records == []


def test_a_launch_before_the_page_knows_its_language_settles_nothing(
    make_shop: Callable[..., Shop],
) -> None:
    shop = make_shop(locale_selector=lambda: flask.g.get("language", "en"))

    def page() -> str:
        shop.task.dispatch({})
        flask.g.language = "es"
        return str(gettext("Thank you"))

    shop.app.view_functions["page"] = page
    assert shop.app.test_client().get("/").text == "Gracias"


def test_a_selector_that_raises_loses_no_launch(
    make_shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    def select() -> str:
        return str(flask.g.language)

    shop = make_shop(locale_selector=select)
    shop.app.before_request(lambda: flask.g.setdefault("language", "es") and None)
    shop.app.view_functions["page"] = lambda: str(flask.g.pop("language") + shop.task.dispatch({}))
    shop.visit()
    assert shop.mails == ["Gracias miércoles 12:00"]
    [warned] = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert warned == (
        "The capture of 'async_hooks.language' failed; it is not carried. This is said once."
    )


def test_a_time_zone_without_a_name_stays_behind(make_shop: Callable[..., Shop]) -> None:
    zones = [get_offset(120), get_offset(60)]
    shop = make_shop(timezone_selector=lambda: zones.pop(0))
    shop.visit(headers=SPANISH)
    assert shop.mails == ["Gracias miércoles 13:00"]  # By what the app says in the run.


def get_offset(minutes: int) -> Any:
    return pytz.FixedOffset(minutes)


def test_what_the_app_itself_carries_has_the_last_word(shop: Shop) -> None:
    from flask_babel import refresh

    def restore(language: str) -> None:
        flask.g.language = language
        refresh()

    shop.hooks.carry("language", lambda: "es", restore)
    shop.app.extensions["babel"].locale_selector = lambda: flask.g.get("language", "en")
    shop.visit()
    assert shop.mails == ["Gracias miércoles 12:00"]


def test_an_app_without_it_carries_no_language(action: str) -> None:
    app = plain_app()
    hooks = AsyncHooks(app)
    task = make_task(hooks, action)
    with hooks.testing(app) as launched, app.test_request_context():
        task.dispatch({})
    assert launched.envelopes[0].carried == "{}"
