"""What stands in docs/, executed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
