from __future__ import annotations

import json

import pytest
from flask import Flask
from itsdangerous import URLSafeTimedSerializer

from async_hooks import TokenError, TokenExpired
from async_hooks.envelope import Envelope, Origin
from async_hooks.signing import _TOKEN, Signing, WrongVersion, _signer
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import KEY

NOW = 1_790_000_000.0

ENVELOPE = Envelope(
    id="0123456789abcdef0123456789abcdef",
    task="shop.tasks.LeadTask",
    body='{"lead_id":7}',
    attempt=2,
    depth=1,
    user="42",
    carried='{"locale":"de"}',
    origin=Origin("https", "shop.example", "/de"),
    parent_id="f" * 32,
    receiver="crm",
)

#: The wire format of version 2. If this must change, so must the version.
TOKEN = (
    b'{"v":2,"aud":"shop","iat":1790000000.0,"id":"0123456789abcdef0123456789abcdef",'
    b'"task":"shop.tasks.LeadTask","attempt":2,"depth":1,'
    b'"origin":["https","shop.example","/de"],'
    b'"user":"42","parent":"ffffffffffffffffffffffffffffffff","receiver":"crm",'
    b'"carried":{"locale":"de"},"data":{"lead_id":7}}'
    b".Wuy9ntzLQ0REtnw72IysOnkv_102yfVsE0irTXAQxzs"
)


def signing(key: str = KEY, *, old: list[str] | None = None, audience: str = "shop") -> Signing:
    app = Flask("tests.app")
    app.config.update(SECRET_KEY=key, SECRET_KEY_FALLBACKS=old)
    return Signing(app, [audience])


def verify(token: bytes, by: Signing, now: float = NOW) -> Envelope:
    return by.verify(token, now=now, max_age=300)[0]


def test_wire_format_is_pinned() -> None:
    assert signing().sign(ENVELOPE, now=NOW) == TOKEN


def test_an_envelope_comes_out_as_it_went_in() -> None:
    assert verify(TOKEN, signing()) == ENVELOPE


def test_optional_parts_may_be_missing() -> None:
    plain = Envelope(id="1", task="t", body="{}")
    assert verify(signing().sign(plain, now=NOW), signing()) == plain


def test_the_version_stands_inside_the_signature() -> None:
    newer = _signer((KEY,), _TOKEN).sign(TOKEN.rpartition(b".")[0].replace(b'"v":2', b'"v":3'))
    with pytest.raises(WrongVersion, match="version 3; this code reads 2"):
        verify(newer, signing())


@pytest.mark.parametrize("position", range(len(TOKEN)))
def test_one_flipped_bit_anywhere_is_refused(position: int) -> None:
    for bit in range(8):
        forged = bytearray(TOKEN)
        forged[position] ^= 1 << bit
        with pytest.raises(TokenError, match="signature"):
            verify(bytes(forged), signing())


def test_every_prefix_is_refused() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(TokenError):
            verify(TOKEN[:length], signing())


@pytest.mark.parametrize("extra", [b"=", b" ", b"\n", b"!", b"A"])
def test_a_signature_has_one_spelling(extra: bytes) -> None:
    with pytest.raises(TokenError):
        verify(TOKEN + extra, signing())


def test_another_key_is_refused() -> None:
    with pytest.raises(TokenError, match="Do both sides share a key"):
        verify(TOKEN, signing("another key"))


def test_another_audience_is_refused() -> None:
    with pytest.raises(TokenError, match="A token for 'shop' came to 'staging'"):
        verify(TOKEN, signing(audience="staging"))


def test_keys_rotate() -> None:
    assert verify(TOKEN, signing("new", old=["older", KEY])) == ENVELOPE
    with pytest.raises(TokenError):
        verify(TOKEN, signing("new", old=["older"]))
    assert verify(signing("new", old=[KEY]).sign(ENVELOPE, now=NOW), signing("new")) == ENVELOPE


def test_other_tokens_of_the_same_key_are_not_ours() -> None:
    for salt in ("cookie-session", "itsdangerous", "async_hooks.verdict"):
        foreign = URLSafeTimedSerializer(KEY, salt=salt).dumps({"id": 1})
        with pytest.raises(TokenError):
            verify(str(foreign).encode(), signing())


def test_age_is_limited_and_skew_allowed() -> None:
    verify(TOKEN, signing(), NOW + 300)
    verify(TOKEN, signing(), NOW - 60)
    with pytest.raises(TokenExpired, match="301 seconds old; 'ASYNC_HOOKS_MAX_AGE' allows 300"):
        verify(TOKEN, signing(), NOW + 301)
    with pytest.raises(TokenExpired, match="61 seconds in the future"):
        verify(TOKEN, signing(), NOW - 61)


def test_a_verdict_is_about_one_token_only() -> None:
    ours = signing()
    verdict = Verdict(Outcome.RETRY, "later, grüße\r\n", 2.5, "here")
    text = ours.sign_verdict(TOKEN, verdict)
    assert text.isascii()
    assert text.isprintable()
    assert ours.verify_verdict(TOKEN, text) == verdict
    assert ours.verify_verdict(ours.sign(ENVELOPE, now=NOW + 1), text) is None
    assert ours.verify_verdict(TOKEN, text[:-1] + "A") is None
    assert ours.verify_verdict(TOKEN, "completed") is None
    assert ours.verify_verdict(TOKEN, "größe") is None


def test_a_token_is_no_verdict() -> None:
    assert signing().verify_verdict(TOKEN, TOKEN.decode()) is None


def test_an_error_in_a_verdict_is_cut() -> None:
    text = signing().sign_verdict(TOKEN, Verdict(Outcome.FAILED, "x" * 10_000))
    assert len(json.loads(text.rpartition(".")[0])["error"]) == 500
