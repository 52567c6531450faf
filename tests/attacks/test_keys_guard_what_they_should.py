"""Weak, missing, misspelt and rotated keys. A missing one at init: tests/test_config.py."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks, ConfigError
from async_hooks.envelope import Envelope, new_id
from async_hooks.signing import VERDICT_HEADER
from tests.attacks.attacking import Target, signing
from tests.support.apps import KEY, make_app

OLD, OLDER = "the key of last month, thirty-two", "the key of last year, thirty-two b"


def token_by(key: str | bytes) -> bytes:
    envelope = Envelope(id=new_id(), task="t", body="{}")
    return signing(key).sign(envelope, now=time.time())


@pytest.mark.parametrize("key", [None, "", b""])
def test_a_missing_key_is_refused_at_init(key: Any) -> None:
    app = Flask("tests.app")
    app.secret_key = key
    with pytest.raises(ConfigError, match="'SECRET_KEY' is not set"):
        AsyncHooks(app)


class TestRotation:
    def test_a_key_in_the_window_is_accepted_and_one_out_of_it_is_not(self) -> None:
        target = Target(SECRET_KEY_FALLBACKS=[OLDER, OLD])
        assert target.post(token_by(OLD)).status_code == 204
        assert target.post(token_by(OLDER)).status_code == 204
        target.app.config["SECRET_KEY_FALLBACKS"] = [OLD]
        target.reached.clear()
        target.refuses(token_by(OLDER), 401)
        target.app.config["SECRET_KEY_FALLBACKS"] = None
        target.refuses(token_by(OLD), 401)
        assert target.post(token_by(KEY)).status_code == 204

    def test_a_replay_is_a_replay_after_the_rotation(self) -> None:
        target = Target(SECRET_KEY=OLD)
        token = target.token()
        assert target.post(token).status_code == 204
        target.app.config.update(SECRET_KEY=KEY, SECRET_KEY_FALLBACKS=[OLD])
        assert target.post(token).status_code == 409

    def test_a_sender_that_has_the_old_key_only_believes_the_verdict(self) -> None:
        """The old release posts to the new one while a deploy is under way."""
        target = Target(SECRET_KEY_FALLBACKS=[OLD])
        token = token_by(OLD)
        response = target.post(token)
        assert response.status_code == 204
        assert signing(OLD).verify_verdict(token, response.headers[VERDICT_HEADER]) is not None


class TestFallbacksThatAreNone:
    """What a deployment's unset variable easily becomes; each would be a key that all know."""

    @pytest.mark.parametrize("fallbacks", [[""], [b""], ["", OLD], [None], [OLD, None]])
    def test_an_empty_fallback_is_no_key(self, fallbacks: list[Any]) -> None:
        try:
            target = Target(SECRET_KEY_FALLBACKS=fallbacks)
        except ConfigError as error:
            assert "'SECRET_KEY_FALLBACKS'" in str(error)  # noqa: PT017
            return
        signer = signing()
        signer._app.secret_key = ""
        forged = signer.sign(Envelope(id=new_id(), task="t", body="{}"), now=time.time())
        target.refuses(forged, 401)

    def test_a_text_is_no_list_of_one_letter_keys(self) -> None:
        try:
            target = Target(SECRET_KEY_FALLBACKS=OLD)
        except ConfigError as error:
            assert "'SECRET_KEY_FALLBACKS'" in str(error)  # noqa: PT017
            return
        for letter in set(OLD):
            target.refuses(token_by(letter), 401)

    @pytest.mark.parametrize("key", ["", b"", None])
    def test_a_key_that_is_taken_away_leaves_nothing_to_forge_with(self, key: Any) -> None:
        target = Target()
        target.app.secret_key = key
        signer = signing()
        signer._app.secret_key = ""
        try:
            forged = signer.sign(Envelope(id=new_id(), task="t", body="{}"), now=time.time())
        except ConfigError:
            return
        try:
            target.refuses(forged, 401)
        except ConfigError as error:
            assert "'SECRET_KEY'" in str(error)  # noqa: PT017


class TestWeakKeys:
    @pytest.mark.parametrize(
        "key",
        ["dev", b"dev", "secret", "changeme", "change me", "development", "x", "fifteen letters"],
    )
    def test_a_short_or_well_known_one_is_warned_of_with_the_remedy(
        self, key: str | bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_app(SECRET_KEY=key)
        [warned] = [r for r in caplog.records if "'SECRET_KEY'" in r.getMessage()]
        assert (warned.levelno, warned.name) == (logging.WARNING, "async_hooks")
        assert "secrets.token_hex()" in warned.getMessage()

    def test_the_warning_does_not_show_the_key(self, caplog: pytest.LogCaptureFixture) -> None:
        make_app(SECRET_KEY="hunter2-hunter2")
        assert "'SECRET_KEY'" in caplog.text
        assert "hunter2" not in caplog.text

    @pytest.mark.parametrize(
        "key", ["sixteen letters.", KEY, b"\x00" * 8 + b"binary k", "ключ" * 2]
    )
    def test_one_that_is_neither_is_not_warned_of(
        self, key: str | bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_app(SECRET_KEY=key)
        assert "SECRET_KEY" not in caplog.text
