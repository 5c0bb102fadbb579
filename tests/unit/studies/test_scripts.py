"""Scripts beside the package say what they do, and do it only when they are asked."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("studies", "docs", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)


def test_scripts_are_found() -> None:
    assert {"studies/goal_threshold.py", "docs/study_picture.py", "benchmarks/gpu.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--no-such-option", 2)])
def test_a_script_that_is_asked_for_help_does_nothing_else(
    script: str, option: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / script
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [script, option])
    monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: pytest.fail("writes a file"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert "usage:" in (printed.err if code else printed.out)
