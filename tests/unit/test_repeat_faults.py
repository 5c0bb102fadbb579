"""The record of repeated fault drills: what counts as a run that passed, and what the page says of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from tests.ray import repeat_faults
from tests.ray.repeat_faults import Run, busy_processes, main, page, read_outcomes, read_record, streak

PASSED = Run("abc", "2026-01-02T03:04:05+00:00", 61.4, (2.5, 3.0), 2, 40.0, {"test_a::one": 1.0, "test_b::two[x]": 9.0}, (), ())
FAILED = replace(PASSED, failed=("test_b::two[x]",))

SUITE = """
import pytest
@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError
@pytest.mark.fault
def test_passes(): pass
@pytest.mark.fault
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.fault
@pytest.mark.skipif("FAILS", reason="")
def test_breaks(breaks_later): raise ValueError
def test_of_another_kind(): raise ValueError
"""


@pytest.mark.parametrize(
    ("runs", "count"),
    [
        ([], 0),
        ([PASSED, PASSED], 2),
        ([PASSED, FAILED], 0),
        ([PASSED, FAILED, PASSED], 1),
        ([replace(PASSED, commit="older"), PASSED], 1),
        ([PASSED, replace(PASSED, commit="abc+")], 0),
    ],
)
def test_only_runs_in_a_row_of_one_commit_count(runs: list[Run], count: int) -> None:
    assert len(streak(runs, "abc")) == count


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    assert read_record(record) == []
    record.write_text("".join(json.dumps(asdict(run)) + "\n" for run in (PASSED, FAILED)))
    assert read_record(record) == [PASSED, FAILED]


def test_the_page_names_failures_and_the_slowest_tests_of_the_runs_that_passed() -> None:
    slower = replace(PASSED, tests={"test_a::one": 4.0, "test_b::two[x]": 2.0})
    text = page([FAILED, PASSED, slower], 5)
    assert text.startswith("# Fault drills, 2026-01-02\n\n2 of 5 runs in a row passed on commit abc, each beside 2 processes")
    assert "| 1 | 2026-01-02 03:04:05 | abc | 1 | 0 | test_b::two[x] | 61 | 40 | 2.5, 3.0 |" in text
    assert "| 2 | 2026-01-02 03:04:05 | abc | 2 | 0 | 0 | 61 | 40 | 2.5, 3.0 |" in text
    assert text.index("| test_b::two[x] | 2 | 9 |") < text.index("| test_a::one | 1 | 4 |")
    assert "slowest" not in page([PASSED, FAILED], 5)


def test_busy_processes_are_busy_and_end() -> None:
    # By id: a process that was started a moment ago has no readable command line yet.
    before = set(psutil.Process().children())
    with busy_processes(1) as spent:
        [process] = set(psutil.Process().children()) - before
        while spent() < 0.05:
            pass
    assert not process.is_running()


@pytest.mark.slow
def test_runs_are_counted_until_one_fails_and_go_on_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a suite of its own: the real one takes an hour."""
    suite, out = tmp_path / "test_suite.py", tmp_path / "out"
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    fault: x\n")
    monkeypatch.setattr(repeat_faults, "commit_here", lambda: "abc")
    arguments = ["--runs", "2", "--busy", "0", "--out", str(out), "--file", str(suite)]
    arguments += ["--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini")]
    suite.write_text(SUITE.replace("FAILS", "False"))
    assert main(arguments) == 1
    assert "run 1 failed: test_suite::test_breaks; see" in capsys.readouterr().out
    assert "raise ValueError" in (out / "run-1.log").read_text()
    suite.write_text(SUITE.replace("FAILS", "True"))
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    runs = read_record(out / "record.jsonl")
    assert [run.failed for run in runs] == [("test_suite::test_breaks",), (), ()]
    assert set(runs[0].tests) == {"test_suite::test_passes", "test_suite::test_skipped", "test_suite::test_breaks"}
    assert runs[1].skipped == ("test_suite::test_skipped", "test_suite::test_breaks")
    assert main([*arguments, "--resume"]) == 0
    assert len(read_record(out / "record.jsonl")) == 3, "what has passed often enough is not run again"


@pytest.mark.slow
def test_a_run_that_says_nothing_has_failed(tmp_path: Path) -> None:
    done = repeat_faults.run_once(1, tmp_path, 0, ["--no-such-option"])
    assert done.failed == ("pytest",)
    with pytest.raises(FileNotFoundError):
        read_outcomes(tmp_path / "run-1.xml")
