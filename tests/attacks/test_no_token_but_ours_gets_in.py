"""Tokens that are not ours, not whole, not now or not once.

Bits, prefixes and spellings of a signature are tried in tests/test_signing.py as well, one room
further in; methods, lengths and fifty replays within one process in tests/test_endpoint.py.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import itsdangerous
import pytest
from flask.sessions import SecureCookieSessionInterface

from async_hooks.envelope import Envelope, new_id
from async_hooks.secret_keys import secrets_of
from async_hooks.signing import _TOKEN, CONTENT_TYPE, _signer
from tests.attacks.attacking import (
    BOUND,
    URL,
    Target,
    exchange,
    listening,
    no_connections,
    read_request,
    request,
    serving,
    shop_token,
    signing,
)
from tests.support.apps import KEY, make_task
from tests.support.facts import Facts
from tests.support.waiting import wait_until


@pytest.fixture
def target() -> Target:
    return Target()


class TestUnsigned:
    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 401),
            (b"\0", 401),
            (b"." * 1000, 401),
            (b"x" * 2**20, 401),
            (b"[" * 100_000, 401),
            (b'{"a":' * 100_000, 401),
            (b'{"v":2,"v":1}', 401),
            (b'{"iat":NaN}', 401),
            (b'{"iat":' + b"9" * 100_000 + b"}", 401),
            (b'"\\ud800"', 401),
            ("größe ☃ \U0001f600".encode(), 401),
            (b"\xff\xfe\x00\x80" * 1000, 401),
            (b"\x1f\x8b\x08" + b"\0" * 1000, 401),
            (b"\x80\x04\x95" + b"cos\nsystem\n(S'id'\ntR.", 401),
            (b"x" * (2**20 + 64 * 1024), 401),
            (b"x" * (2**20 + 64 * 1024 + 1), 413),
        ],
    )
    def test_bytes_of_any_kind_are_refused(
        self, target: Target, body: bytes, status: int, facts: Facts
    ) -> None:
        target.refuses(body, status, environ_overrides={"CONTENT_LENGTH": str(len(body))})
        assert len(facts.of("rejected")) == 1

    @pytest.mark.parametrize(
        "content_type",
        [
            "text/plain",
            "application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            CONTENT_TYPE + "; charset=utf-8",
            CONTENT_TYPE.upper(),
            f" {CONTENT_TYPE}",
            f"{CONTENT_TYPE},{CONTENT_TYPE}",
        ],
    )
    def test_a_token_of_another_content_type_is_malformed(
        self, target: Target, content_type: str
    ) -> None:
        target.refuses(target.token(), 400, content_type=content_type)

    @pytest.mark.parametrize("length", ["+5", "0x10", "1_0", "5,5", "٣", "1.0", "\t", "-0"])
    def test_a_length_that_is_no_number_is_malformed(self, target: Target, length: str) -> None:
        target.refuses(target.token(), 400, environ_overrides={"CONTENT_LENGTH": length})

    def test_a_token_in_another_encoding_is_refused(self, target: Target) -> None:
        token = target.token()
        for encoded in (
            token.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + token,
            gzip.compress(token),
            base64.b64encode(token),
            token.replace(b'"', b"%22"),
            b"token=" + token,
            token.replace(b":", b": "),
        ):
            target.refuses(encoded, 401)


class TestForged:
    def test_one_flipped_bit_at_every_position_is_refused(self, target: Target) -> None:
        token = target.token(age=0)
        client = target.app.test_client()
        with no_connections():
            for position, bit in itertools.product(range(len(token)), range(8)):
                forged = bytearray(token)
                forged[position] ^= 1 << bit
                answer = client.post(URL, data=bytes(forged), content_type=CONTENT_TYPE)
                assert (answer.status_code, answer.data) == (401, b""), (position, bit)
        assert target.reached == []
        assert target.post(token).status_code == 204

    def test_every_prefix_and_every_suffix_is_refused(self, target: Target) -> None:
        token = target.token()
        for cut in range(1, len(token)):
            target.refuses(token[:cut], 401)
            target.refuses(token[cut:], 401)

    def test_one_tokens_signature_does_not_sign_another(self, target: Target) -> None:
        one, other = (target.token().rpartition(b".") for _ in range(2))
        target.refuses(one[0] + b"." + other[2], 401)
        target.refuses(b".".join((one[0], one[2], one[2])), 401)
        target.refuses(one[0] + b"." + one[2] + b"." + other[0] + b"." + other[2], 401)

    def test_a_signature_that_is_empty_or_short_signs_nothing(self, target: Target) -> None:
        payload, _, signature = target.token().rpartition(b".")
        for short in (b"", signature[:1], signature[:-1], signature[:22], b"=" * 43, b"A" * 43):
            target.refuses(payload + b"." + short, 401)

    def test_all_refusals_look_alike(self, target: Target) -> None:
        token = target.token()
        tokens = (
            b"",
            b"x",
            token[:-1],
            token.replace(b'"t"', b'"u"'),
            Target(ASYNC_HOOKS_AUDIENCE="staging").token(),
            signing("another key, thirty-two bytes long").sign(
                Envelope(id="1", task="t", body="{}"), now=time.time()
            ),
        )
        answers = {
            (answer.status, str(answer.headers), answer.data)
            for answer in (
                target.post(bad, environ_overrides={"CONTENT_LENGTH": str(len(bad))})
                for bad in tokens
            )
        }
        assert len(answers) == 1
        assert target.reached == []


class TestOfOthers:
    def test_another_actions_token_runs_that_action_only(self, target: Target) -> None:
        others: list[Any] = []
        make_task(
            target.hooks, "other", name="other", run_action=lambda _, data: others.append(data)
        )
        token = target.token(Envelope(id=new_id(), task="other", body="{}"))
        target.refuses(token.replace(b'"task":"other"', b'"task":"t"'), 401)
        assert target.post(token).status_code == 204
        assert (others, target.reached) == ([{}], ["before_request"])

    def test_stagings_token_is_refused_in_production(self, target: Target) -> None:
        staging = Target(ASYNC_HOOKS_AUDIENCE="staging")
        target.refuses(staging.token(), 401)
        staging.refuses(target.token(), 401)

    def test_another_apps_token_is_refused(self, target: Target) -> None:
        other = Target(SECRET_KEY="another key, thirty-two bytes long")
        target.refuses(other.token(), 401)

    def test_an_audience_that_is_quoted_into_the_name_is_another(self) -> None:
        tricky = Target(ASYNC_HOOKS_AUDIENCE='tests.app","x":"')
        Target().refuses(tricky.token(), 401)

    def test_a_session_cookie_is_no_token(self, target: Target) -> None:
        serializer = SecureCookieSessionInterface().get_signing_serializer(target.app)
        assert serializer is not None
        claims = {"v": 2, "aud": "tests.app", "iat": time.time(), "id": "1", "task": "t"}
        cookie = serializer.dumps(claims)
        target.refuses(str(cookie).encode(), 401)

    @pytest.mark.parametrize("salt", ["async_hooks.token", "cookie-session", "itsdangerous", ""])
    @pytest.mark.parametrize("derivation", ["none", "concat", "django-concat", "hmac"])
    @pytest.mark.parametrize("digest", ["sha1", "sha256"])
    def test_no_other_signer_of_the_same_key_makes_tokens(
        self, target: Target, salt: str, derivation: str, digest: str
    ) -> None:
        payload = target.token().rpartition(b".")[0]
        signer = itsdangerous.Signer(
            KEY,
            salt=salt or b"itsdangerous.Signer",
            key_derivation=derivation,
            digest_method=getattr(hashlib, digest),
        )
        if (salt, derivation, digest) == ("async_hooks.token", "hmac", "sha256"):
            pytest.skip("This is our own derivation, spelled out.")
        target.refuses(signer.sign(payload), 401)

    def test_our_token_is_no_session_cookie(self, target: Target) -> None:
        @target.app.route("/session")
        def view() -> dict[str, Any]:
            return dict(flask.session)

        client = target.app.test_client()
        token = target.token()
        payload, _, signature = token.rpartition(b".")
        for value in (token, base64.urlsafe_b64encode(payload).rstrip(b"=") + b".aa." + signature):
            client.set_cookie("session", value.decode())
            assert client.get("/session").json == {}

    def test_our_token_is_no_other_token(self, target: Target) -> None:
        token = target.token()
        for salt in (b"itsdangerous", b"cookie-session", b"async_hooks.verdict"):
            for theirs in (
                itsdangerous.URLSafeTimedSerializer(KEY, salt=salt),
                itsdangerous.Serializer(KEY, salt=salt),
            ):
                with pytest.raises(itsdangerous.BadSignature):
                    theirs.loads(token)

    def test_a_verdict_is_no_token(self, target: Target) -> None:
        answer = target.post(target.token())
        target.reached.clear()
        target.refuses(answer.headers["Async-Hooks-Verdict"].encode(), 401)


class TestOutOfTime:
    @pytest.mark.parametrize("age", [301, 1e6, -61, -1e6])
    def test_the_expired_and_the_future_are_410(self, target: Target, age: float) -> None:
        response = target.post(target.token(age=age))
        assert (response.status_code, response.data, target.reached) == (410, b"", [])

    def test_an_expired_token_learns_nothing_of_its_task(self, target: Target) -> None:
        known = target.token(age=400)
        unknown = target.token(Envelope(id="2", task="no.such", body="{}"), age=400)
        assert target.post(known).status_code == target.post(unknown).status_code == 410


class TestSignedNonsense:
    """Signed with the right key and salt: what another release or a confused tool may send."""

    @pytest.mark.parametrize(
        "payload",
        [
            "",
            "null",
            "[]",
            "{}",
            '"token"',
            "[" * 100_000,
            '{"a":' * 100_000,
            "not JSON",
            "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
            '{"v":2,"aud":"tests.app"}',
            '{"v":2,"aud":"tests.app","iat":"now"}',
            '{"v":2,"aud":"tests.app","iat":NaN,<rest>}',
            '{"v":2,"aud":"tests.app","iat":[],<rest>}',
            '{"v":2,"aud":"tests.app","iat":true,<rest>}',
            '{"v":2,"aud":"tests.app","iat":' + "9" * 5000 + ",<rest>}",
            '{"v":2,"aud":"tests.app","iat":<now>}',
            '{"v":2,"aud":"tests.app","iat":<now>,<rest>,"origin":[]}',
        ],
        ids=lambda payload: payload[:60],
    )
    def test_is_refused_without_a_crash(self, target: Target, payload: str) -> None:
        whole = json.loads(target.token().rpartition(b".")[0])
        rest = json.dumps({key: whole[key] for key in whole.keys() - {"v", "aud", "iat"}})[1:-1]
        text = payload.replace("<rest>", rest).replace("<now>", repr(time.time()))
        token = state_signer(target).sign(text.encode("latin-1"))
        response = target.post(token)
        assert response.status_code in (400, 401, 410)
        assert response.data == b""
        assert target.reached == []

    def test_of_duplicate_keys_what_was_signed_last_counts_for_all(self, target: Target) -> None:
        token = target.token().rpartition(b".")[0]
        doubled = token[:-1] + b',"task":"no.such"}'
        answer = target.post(state_signer(target).sign(doubled))
        assert answer.status_code == 404
        assert {"lead": 7} not in target.reached


def state_signer(target: Target) -> itsdangerous.Signer:
    return _signer(secrets_of(target.app), _TOKEN)


class TestImitations:
    """Data, names and ids that look like parts of a token."""

    @pytest.mark.parametrize(
        "text",
        [
            '"}},"task":"os.system","data":{"x":"',
            '","task":"os.system',
            "\\",
            '\\"',
            "}" * 100 + "." + "A" * 43,
            '{"v":2,"aud":"tests.app","task":"os.system"}',
            "async_hooks.ping",
            "\r\n\r\nPOST /async-hooks/run HTTP/1.1\r\n",
            "\ud800 lone",
            "\0\x1b[31m\u2028\u202e",
        ],
    )
    def test_data_stays_data(self, target: Target, text: str) -> None:
        data = {"text": text, text: [text, {text: text}]}
        with target.app.app_context():
            target.task.dispatch(data)
        assert target.reached == ["before_request", data]

    @pytest.mark.parametrize(
        "name",
        [
            "os.system",
            "builtins.eval",
            "subprocess.Popen",
            "__class__",
            "t.__init__",
            "../../etc/passwd",
            "",
            "T",
            "t\0",
            "async_hooks.run",
            "async_hooks.extension.AsyncHooks",
        ],
    )
    def test_a_task_name_is_looked_up_and_nothing_else(self, target: Target, name: str) -> None:
        response = target.post(target.token(Envelope(id=new_id(), task=name, body='{"a":"id"}')))
        assert (response.status_code, response.data) == (404, b"")
        assert target.reached == ["before_request"]

    @pytest.mark.parametrize("name", ["os.system", "builtins.print", "__call__", "only#2", ""])
    def test_a_receiver_name_is_looked_up_and_nothing_else(
        self, target: Target, name: str, action: str
    ) -> None:
        reached: list[Any] = []
        make_task(target.hooks, action, name="sends")
        target.hooks.receiver(action, name="only")(lambda sender, **data: reached.append(data))
        envelope = Envelope(id=new_id(), task="sends", body='{"command":"id"}', receiver=name)
        assert target.post(target.token(envelope)).status_code == 500
        assert reached == []

    def test_the_ping_runs_nothing(self, target: Target) -> None:
        response = target.post(
            target.token(Envelope(id=new_id(), task="async_hooks.ping", body='{"lead":7}'))
        )
        assert response.status_code == 204
        assert target.reached == ["before_request"]


def test_a_huge_age_limit_does_not_let_a_timeless_token_in() -> None:
    target = Target(ASYNC_HOOKS_MAX_AGE=timedelta(days=3650))
    head = target.token().rpartition(b".")[0]
    payload = json.loads(head) | {"iat": math.nan}
    token = state_signer(target).sign(json.dumps(payload))
    assert target.post(token).status_code in (400, 401, 410)
    assert target.reached == []


@pytest.mark.slow
class TestReplays:
    """Over real worker processes."""

    def test_to_the_other_worker_once_its_runner_was_killed(self, tmp_path: Path) -> None:
        with serving(tmp_path) as (site, port, _):
            token = shop_token(1)
            assert exchange(port, request(token)).status == 204
            [note] = site.notes("method")
            os.kill(note["pid"], signal.SIGKILL)
            assert exchange(port, request(token)).status == 409
            assert len(site.notes("method")) == 1

    def test_fifty_at_once_over_two_workers_run_once(self, tmp_path: Path) -> None:
        with serving(tmp_path, SITE_ASYNC_HOOKS_CONCURRENCY="50") as (site, port, _):
            token = shop_token(1)
            statuses = at_once(port, token, 50)
            assert statuses == {204: 1, 409: 49}
            assert len(site.notes("method")) == 1

    def test_a_token_caught_on_the_wire_is_of_no_use(self, tmp_path: Path) -> None:
        caught: list[bytes] = []
        site_port: list[int] = []

        def pass_on(connection: Any) -> None:
            _, body = read_request(connection)
            caught.append(body)
            answer = exchange(site_port[0], request(body))
            connection.sendall(answer.head.encode("latin-1") + b"\r\n\r\n")

        with (
            listening(pass_on) as tap,
            serving(tmp_path, SITE_ASYNC_HOOKS_URL=tap.url) as (site, port, _),
        ):
            site_port.append(port)
            get(port, "/visit/1")
            site.wait_for("done", 1)
            wait_until(lambda: len(caught) == 1)
            assert at_once(port, caught[0], 20).keys() <= {409, 503}
            other = tmp_path / "other"
            other.mkdir()
            with serving(other) as (elsewhere, other_port, _):
                assert exchange(other_port, request(caught[0])).status == 409
                assert elsewhere.ledger == []
            assert len(site.notes("method")) == 1


def get(port: int, path: str) -> None:
    line = f"GET {path} HTTP/1.1"
    assert exchange(port, request(b"", line=line, length=False)).status == 200


def at_once(port: int, token: bytes, count: int) -> Counter[int]:
    statuses: list[int] = []
    start = threading.Barrier(count)

    def strike() -> None:
        start.wait(BOUND)
        statuses.append(exchange(port, request(token)).status)

    threads = [threading.Thread(target=strike) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert len(statuses) == count
    return Counter(statuses)
