"""What a visitor of the example site is promised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.acceptance.running_example import ADA, BOUND, Example, Visitor

pytestmark = pytest.mark.slow

CRM_SECONDS = 2


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    example = Example(
        tmp_path_factory.mktemp("site") / "instance",
        CRM_SECONDS=str(CRM_SECONDS),
        NEWSLETTER_SECONDS="0",
        NEWSLETTER_FAILS="1",
        SALES_SECONDS="0",
    )
    yield example
    example.stop()


@pytest.fixture
def visitor(example: Example) -> Visitor:
    return Visitor(example)


def test_wrong_input_is_explained_and_kept(visitor: Visitor) -> None:
    page = visitor.submit(name="Ada Lovelace", email="ada@", message=" ")
    assert page.status == 422
    assert "Please check the 2 fields marked below." in page.words
    assert "This does not look like an e-mail address." in page.words
    assert "Please write us a line or two." in page.words
    assert 'value="Ada Lovelace"' in page.text
    assert 'value="ada@"' in page.text
    email = re.search(r'<input[^>]*id="email"[^>]*>', page.text)
    assert email
    assert 'aria-invalid="true"' in email[0]
    assert 'aria-describedby="email-error"' in email[0]
    assert 'id="email-error"' in page.text


def test_right_input_is_not_marked(visitor: Visitor) -> None:
    assert "aria-invalid" not in visitor.get("/").text


@pytest.mark.parametrize("path", ["/", "/leads/1/calls/crm/again"])
def test_post_without_csrf_token_is_refused(visitor: Visitor, path: str) -> None:
    before = visitor.get("/leads").words
    page = visitor.post(path, **ADA)
    assert page.status == 400
    assert "Go back, reload it, and send it again." in page.words
    assert visitor.get("/leads").words == before


def test_answer_comes_before_the_slow_partner_is_done(visitor: Visitor) -> None:
    lead = visitor.submit_lead()
    answered_at = datetime.now(UTC)
    page = visitor.wait_for_all(lead)
    assert page.time("crm", "finished") > answered_at
    assert page.state("crm") == "completed"


def test_partners_are_called_at_the_same_time(visitor: Visitor) -> None:
    page = visitor.wait_for_all(visitor.submit_lead())
    assert page.time("sales", "finished") < page.time("crm", "finished")


def test_thank_you_page_compares_our_answer_with_the_calls(visitor: Visitor) -> None:
    lead = visitor.submit_lead()
    page = visitor.get(f"{lead}/thanks")
    assert "Thank you, Ada Lovelace" in page.words
    assert f'href="{lead}"' in page.text
    assert re.search(r"This answer took \d+ ms", page.words)
    assert " so far" in page.words
    done = visitor.wait_for_all(f"{lead}/times")
    assert done.words in visitor.get(f"{lead}/thanks").words
    series = re.search(r"one after another ([\d.]+) s", done.words)
    assert series
    assert float(series[1]) >= CRM_SECONDS


def test_failed_call_shows_its_error_and_is_tried_again_by_itself(visitor: Visitor) -> None:
    lead = visitor.submit_lead(name="Grace Hopper")
    visitor.wait_for(lead, "newsletter", "retrying")
    page = visitor.get(lead)
    assert "Waiting for its next try" in page.call("newsletter")
    assert "The partner answered 503 (Service unavailable)." in page.call("newsletter")
    assert page.attempts("newsletter") == 1
    assert page.time("newsletter", "next") > datetime.now(UTC)
    assert "Send again" not in page.text

    page = visitor.wait_for_all(lead)
    assert page.state("newsletter") == "completed"
    assert page.attempts("newsletter") == 2
    assert page.attempts("crm") == page.attempts("sales") == 1
    assert "Grace Hopper Delivered" in visitor.get("/leads").words


def test_failure_is_logged(example: Example, visitor: Visitor) -> None:
    visitor.wait_for_all(visitor.submit_lead())
    assert "receiver 'newsletter'" in example.log
    assert "HTTPError: 503" in example.log


def test_delivered_call_is_not_sent_again(visitor: Visitor) -> None:
    lead = visitor.submit_lead()
    visitor.wait_for(lead, "sales", "completed")
    visitor.send_again(lead, "sales")
    assert "Sales desk: there is no need to call again." in visitor.get(lead).words
    assert visitor.wait_for_all(lead).attempts("sales") == 1


def test_list_shows_the_newest_lead_first(visitor: Visitor) -> None:
    visitor.submit_lead(name="Older")
    newer = visitor.submit_lead(name="Newer")
    page = visitor.get("/leads")
    assert page.text.index(">Newer<") < page.text.index(">Older<")
    assert f'href="{newer}"' in page.text
    visitor.wait_for_all(newer)
    assert "3 of 3 calls delivered" in visitor.get("/leads").words


def test_pages_refresh_without_javascript_while_calls_are_unfinished(visitor: Visitor) -> None:
    refresh = '<noscript><meta http-equiv="refresh"'
    lead = visitor.submit_lead()
    for path in (lead, f"{lead}/thanks"):
        assert refresh in visitor.get(path).text
    visitor.wait_for_all(lead)
    for path in (lead, f"{lead}/thanks"):
        assert refresh not in visitor.get(path).text


def test_what_visitors_write_is_escaped(visitor: Visitor) -> None:
    lead = visitor.submit_lead(name="<b>Ada</b>", message="<script>alert(1)</script>")
    for path in (lead, f"{lead}/thanks", "/leads"):
        page = visitor.get(path)
        assert "<b>Ada" not in page.text
        assert "<script>alert" not in page.text
        assert "&lt;b&gt;Ada" in page.text


@pytest.mark.parametrize(
    "path", ["/nothing", "/leads/999999", "/leads/99999999999999999999", "/leads?page=99999999999"]
)
def test_unknown_page_is_a_404_that_leads_back(visitor: Visitor, path: str) -> None:
    page = visitor.get(path)
    assert page.status == 404
    assert "There is no such page" in page.words
    assert 'href="/"' in page.text


def test_page_follows_its_calls_in_a_browser(
    example: Example, visitor: Visitor, tmp_path: Path
) -> None:
    lead = visitor.submit_lead()
    assert visitor.get(lead).is_unfinished
    page = dumped_dom(example.url + lead, tmp_path)
    assert "All calls were delivered." in page
    assert "data-unfinished" not in page
    # What the page was served with still stands: nothing but its live part was fetched anew.
    assert '<noscript><meta http-equiv="refresh"' in page


def dumped_dom(url: str, profile: Path) -> str:
    """Return what a real browser makes of a page, once that waits for nothing any more."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        if os.environ.get("ASYNC_HOOKS_REQUIRE_SERVICES") == "1":
            pytest.fail("Chromium is not installed.")
        pytest.skip("Chromium is not installed.")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        # Timers run at once, so this hour of them is short; it is over when no timer is left.
        "--virtual-time-budget=3600000",
        f"--user-data-dir={profile}",
    ]
    dumped = subprocess.run(
        [browser, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=2 * BOUND
    )
    return dumped.stdout
