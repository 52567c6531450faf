"""What ``python -m example_site`` promises to who starts and stops it."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.running_example import Example, Visitor, run, until
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

StartExample = Callable[..., Example]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartExample]:
    started: list[Example] = []

    def start(**settings: str) -> Example:
        quick = {"NEWSLETTER_SECONDS": "0", "NEWSLETTER_FAILS": "0", "SALES_SECONDS": "0"}
        example = Example(tmp_path / "instance", **quick | settings)
        started.append(example)
        return example

    yield start
    for example in started:
        example.stop()


def test_first_start_says_where_and_shows_an_empty_list(start: StartExample) -> None:
    example = start()
    assert example.log.strip() == f"The example runs on {example.url} (stop it with Ctrl-C)"
    page = Visitor(example).get("/leads")
    assert page.status == 200
    assert "Nobody has written to us yet." in page.words


def test_secret_key_is_made_once_for_its_owner_only(start: StartExample) -> None:
    first = start()
    key = first.folder / "secret_key"
    made = key.read_text()
    assert len(made) >= 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first.stop()
    start()
    assert key.read_text() == made


def test_second_start_keeps_the_leads(start: StartExample) -> None:
    first = start(CRM_SECONDS="0")
    visitor = Visitor(first)
    visitor.wait_for_all(visitor.submit_lead(name="Mary Somerville"))
    first.stop()
    assert "Mary Somerville Delivered" in Visitor(start()).get("/leads").words


def test_taken_port_ends_it_with_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(tmp_path / "instance", port)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Port {port} can't be used (Address already in use). Choose another: PORT=8080 make demo\n"
    )
    assert not ended.stdout
    assert not (tmp_path / "instance").exists()


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "eighty", "²"])
def test_invalid_port_ends_it_with_one_sentence(tmp_path: Path, port: str) -> None:
    ended = run(tmp_path / "instance", port)
    assert ended.returncode == 1
    assert ended.stderr == f"PORT must be a number from 1 to 65535, not {port!r}.\n"
    assert not (tmp_path / "instance").exists()


def test_ctrl_c_stops_all_once_calls_under_way_have_finished(start: StartExample) -> None:
    example = start(CRM_SECONDS="1")
    visitor = Visitor(example)
    lead = visitor.submit_lead()
    visitor.wait_for(lead, "crm", "executing")
    example.press_ctrl_c()
    assert example.process.wait(60) == 0
    assert not example.processes()
    assert state_in_outbox(example, "crm") == "completed"
    assert "Traceback" not in example.log
    assert "ended" not in example.log
    assert is_free(example.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_parent_leaves_nothing_behind(start: StartExample, number: int) -> None:
    example = start()
    until(lambda: len(example.processes()) == 4, "the start of both workers")
    example.process.send_signal(number)
    until(lambda: not example.processes(), "the end of all processes")
    assert is_free(example.port)


def test_end_of_the_partner_server_is_reported(start: StartExample) -> None:
    example = start()
    os.kill(example.partner_pid(), signal.SIGKILL)
    until(lambda: "The partner server has ended" in example.log, "the report")
    visitor = Visitor(example)
    page = visitor.wait_for_all(visitor.submit_lead())
    for partner in ("crm", "newsletter", "sales"):
        assert page.state(partner) == "discarded"
        assert "The partner could not be reached." in page.call(partner)


def test_call_given_up_after_its_last_attempt_can_be_sent_again(start: StartExample) -> None:
    visitor = Visitor(start(NEWSLETTER_FAILS="3", CRM_SECONDS="0"))
    lead = visitor.submit_lead(name="Grace Hopper")
    page = visitor.wait_for_all(lead)
    assert "Given up" in page.call("newsletter")
    assert page.attempts("newsletter") == 3
    assert "The partner answered 503 (Service unavailable)." in page.call("newsletter")
    assert "Send again" in page.call("newsletter")
    assert "Send again" not in page.call("crm") + page.call("sales")
    assert "Grace Hopper Given up" in visitor.get("/leads").words

    assert visitor.send_again(lead, "newsletter").status == 303
    assert "Newsletter: we are calling again." in visitor.get(lead).words
    page = visitor.wait_for_all(lead)
    assert page.state("newsletter") == "completed"
    assert page.attempts("newsletter") == 1
    assert "Grace Hopper Delivered" in visitor.get("/leads").words


def test_call_that_a_crash_interrupted_is_made_again(start: StartExample) -> None:
    example = start(CRM_SECONDS="1")
    visitor = Visitor(example)
    lead = visitor.submit_lead()
    visitor.wait_for(lead, "crm", "executing")
    until(lambda: visitor.get(lead).attempts("crm") == 1, "the first attempt's begin")
    workers = set(example.worker_pids())
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: workers.isdisjoint(example.processes()), "the end of the workers")
    visitor = Visitor(example)
    visitor.wait_for(lead, "crm", "completed")
    assert visitor.get(lead).attempts("crm") == 2


def test_calls_complete_after_everything_was_killed_and_started_again(start: StartExample) -> None:
    first = start(CRM_SECONDS="60", NEWSLETTER_SECONDS="60")
    visitor = Visitor(first)
    lead = visitor.submit_lead(name="Mary Somerville")
    for partner, state in ("crm", "executing"), ("newsletter", "executing"), ("sales", "completed"):
        visitor.wait_for(lead, partner, state)
    # What is claimed shows as executing a moment before it begins.
    wait_until(lambda: all(has_begun(first, each) for each in ("crm", "newsletter")))
    first.kill()

    second = start(CRM_SECONDS="0")
    page = Visitor(second).wait_for_all(lead)
    assert "Mary Somerville" in page.words
    for partner, attempts in ("crm", 2), ("newsletter", 2), ("sales", 1):
        assert page.state(partner) == "completed"
        assert page.attempts(partner) == attempts
    # What a partner took is there once: it was committed with its delivery's end.
    with second.database() as connection:
        rows = connection.execute("SELECT partner FROM call ORDER BY partner").fetchall()
    connection.close()
    assert rows == [("crm",), ("newsletter",), ("sales",)]


def has_begun(example: Example, partner: str) -> bool:
    with example.database() as connection:
        query = "SELECT attempts FROM async_hooks_deliveries WHERE receiver = ?"
        (attempts,) = connection.execute(query, (partner,)).fetchone()
    connection.close()
    return bool(attempts)


def state_in_outbox(example: Example, partner: str) -> str:
    with example.database() as connection:
        query = "SELECT state FROM async_hooks_deliveries WHERE receiver = ?"
        (state,) = connection.execute(query, (partner,)).fetchone()
    connection.close()
    return str(state)


def is_free(port: int) -> bool:
    with socket.create_server(("127.0.0.1", port)):
        return True
