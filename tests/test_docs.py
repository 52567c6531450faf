"""What stands in docs/, executed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from async_hooks.relay.outcomes import OTHERWISE, RULES, Action, Rule
from async_hooks.verdict import Outcome

DOCS = Path(__file__).parent.parent / "docs"


def test_the_testing_howto_runs_as_it_stands(tmp_path: Path) -> None:
    shop, test_shop = re.findall(
        r"```python\n(.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL
    )
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "test_shop.py").write_text(test_shop)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "4 passed" in run.stdout


def test_the_table_of_endings_is_the_rules() -> None:
    """Each row says what :data:`RULES` says, in their order, and none is missing."""
    text = (DOCS / "outbox.md").read_text().partition("## What each ending means")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    expected = [_row(f"`{ending}`", rule, str(ending)) for ending, rule in RULES.items()]
    expected.append(_row("anything else: refused, a login page, another app", OTHERWISE, ""))
    assert rows[: len(expected)] == expected


def test_each_promise_about_a_fault_names_tests_that_are_there() -> None:
    text = (DOCS.parent / "tests" / "faults.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    assert rows
    for _, file, names in rows:
        [path] = re.findall(r"`(tests/[a-z_/]+\.py)`", file)
        code = (DOCS.parent / path).read_text()
        tests = re.findall(r"`(test_\w+)`", names)
        assert tests, path
        assert [name for name in tests if f"def {name}(" not in code] == [], path


def _row(name: str, rule: Rule, ending: str) -> str:
    slower = ", slower" if rule.slows else ""
    begun = rule.action + (slower if rule.action is Action.WAIT else "")
    runs = (
        *(Outcome.COMPLETED, Outcome.FAILED, Outcome.RETRY, Outcome.DISCARDED),
        *(Outcome.INTERRUPTED, Outcome.CONTINUED),
    )
    not_begun = "" if ending in runs else f"sent again{slower}"
    return f"| {name} | {begun} | {rule.counts} | {not_begun} |".replace("|  |", "| |")
