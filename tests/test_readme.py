"""What README.md says, executed."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import requests

import async_hooks.signals
from async_hooks.config import PREFIX, Config, read
from tests.support.servers import answers, free_port
from tests.support.site import running
from tests.support.waiting import wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_complete_app_answers_at_once_and_tells_everyone_later(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BLOCKS[0])
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", "app", "run", "--port", str(port)]
    is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
    with running(tmp_path, command, is_up, tmp_path) as site:
        answer = requests.get(f"http://127.0.0.1:{port}/ada@example.com", timeout=30)
        assert answer.text == "Thank you!"
        assert "the CRM knows" not in site.log
        wait_until(lambda: "the newsletter knows ada@example.com" in site.log)
        assert "the CRM knows" not in site.log
        wait_until(lambda: "the CRM knows ada@example.com" in site.log)
        assert site.log.count("POST /async-hooks/run") >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_code_block_is_python(number: int) -> None:
    ast.parse(BLOCKS[number])


def test_the_configuration_table_is_the_configuration() -> None:
    rows = dict(re.findall(r"^\| `(ASYNC_HOOKS_\w+)` \| `(.*?)` \|", README, re.MULTILINE))
    config = read({})
    assert rows == {
        PREFIX + field.name.upper(): repr(getattr(config, field.name)) for field in fields(Config)
    }


def test_every_signal_and_file_it_names_exists() -> None:
    for name in re.findall(r"`(task_\w+)`", README):
        assert hasattr(async_hooks.signals, name), name
    for path in set(re.findall(r"\]\((?!http)([^)]+)\)", README)):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:tests|example_site)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    documents = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?:`|^    )make (\w+)", documents, re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
