from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks, ConfigError
from async_hooks.config import Config, read
from tests.support.apps import make_app


def test_defaults_are_the_documented_ones() -> None:
    config = read({})
    assert config == Config()
    assert (config.url, config.url_prefix, config.transport) == (None, "/async-hooks", "loopback")
    assert (config.fallback, config.concurrency, config.queue_size) == ("in_process", 2, 1000)
    assert (config.timeout, config.grace, config.max_age) == (30, 10, 300)
    assert (config.max_bytes, config.max_depth) == (2**20, 5)


def test_times_are_seconds_or_timedeltas() -> None:
    assert read({"ASYNC_HOOKS_TIMEOUT": timedelta(minutes=2)}).timeout == 120
    assert read({"ASYNC_HOOKS_TIMEOUT": 0.5}).timeout == 0.5


def test_zero_grace_is_a_value() -> None:
    assert read({"ASYNC_HOOKS_GRACE": 0}).grace == 0


def test_other_keys_are_not_ours() -> None:
    assert read({"SECRET_KEY": "x", "ASYNC": 1}) == Config()


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ASYNC_HOOKS_MAX_AGE'"):
        read({"ASYNC_HOOKS_MAXAGE": 3})
    with pytest.raises(ConfigError, match="Take it out"):
        read({"ASYNC_HOOKS_XYZ": 1})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MAX_AGE", -1, "a positive number of seconds, at most ten years, got: -1"),
        ("MAX_AGE", True, "a positive number of seconds, at most ten years, got: True"),
        ("TIMEOUT", sys.maxsize, f"at most ten years, got: {sys.maxsize}"),
        ("MAX_AGE", float("inf"), "a positive number of seconds, at most ten years, got: inf"),
        ("GRACE", -1, "a number of seconds, 0 or more"),
        ("CONCURRENCY", 0, "a positive whole number, got: 0"),
        ("QUEUE_SIZE", 1.5, "a positive whole number"),
        ("URL", "localhost:8000", "a base URL such as"),
        ("URL", "ftp://localhost", "a base URL such as"),
        ("URL_PREFIX", "hooks", "a path such as"),
        ("URL_PREFIX", "/hooks/", "a path such as"),
        ("TRANSPORT", "carrier pigeon", "'loopback', 'in_process', 'eager' or an object"),
        ("FALLBACK", "eager", "'in_process' or None"),
        ("VERIFY", 3, "True, False or the path"),
        ("URL", "http://localhost:80o0", "a base URL such as"),
        ("URL", "http://localhost:99999", "a base URL such as"),
        ("URL", "http://a b", "a base URL such as"),
        ("URL", "http://[::1", "a base URL such as"),
        ("URL_PREFIX", "/<x>", "a path such as"),
        ("URL_PREFIX", "/a?b", "a path such as"),
        ("URL_PREFIX", "//a", "a path such as"),
        ("URL_PREFIX", "/хук", "a path such as"),
        ("HEADERS", {"X-A": "b\r\nX-C: d"}, "without line breaks"),
        ("HEADERS", {"X-A:": "b"}, "without line breaks"),
        ("HEADERS", {"X-A": "хук"}, "without line breaks"),
        ("AUTH", "user:password", "a (user, password) pair"),
        ("AUDIENCE", "", "a name"),
    ],
)
def test_wrong_value_is_an_error_that_says_what_was_expected(
    key: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"expected 'ASYNC_HOOKS_{key}' to be ")) as e:
        read({f"ASYNC_HOOKS_{key}": value})
    assert expected in str(e.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("URL", "http://user:hunter2@localhost"),
        ("HEADERS", {"Authorization": "hunter2\n"}),
        ("AUTH", ("user", "hunter2", "x")),
    ],
)
def test_no_secret_stands_in_the_message(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        read({f"ASYNC_HOOKS_{key}": value})
    assert "hunter2" not in str(error.value)


def test_configuration_is_validated_at_init_app() -> None:
    with pytest.raises(ConfigError, match="ASYNC_HOOKS_TIMEOUT"):
        make_app(ASYNC_HOOKS_TIMEOUT="soon")


def test_missing_secret_key_is_refused_at_init_app() -> None:
    with pytest.raises(ConfigError, match="'SECRET_KEY' is not set"):
        AsyncHooks(Flask("tests.app"))


def test_second_init_app_on_one_app_is_refused() -> None:
    app, hooks = make_app()
    with pytest.raises(ConfigError, match="has an AsyncHooks already"):
        hooks.init_app(app)


def test_prefix_may_be_the_root() -> None:
    assert read({"ASYNC_HOOKS_URL_PREFIX": "/"}).url_prefix == ""


@pytest.mark.parametrize("key", ["dev", b"secret", "x" * 15, "You-will-never-guess"])
def test_a_weak_secret_key_is_warned_of(key: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    make_app(SECRET_KEY=key)
    [record] = caplog.records
    assert "'SECRET_KEY' is short or well known" in record.getMessage()
    assert str(key) not in record.getMessage()


def test_a_strong_secret_key_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_app(SECRET_KEY="0f" * 32)
    assert caplog.records == []
