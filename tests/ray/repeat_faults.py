"""Runs the fault drills several times in a row beside busy processes, and keeps a record of it.

python -m tests.ray.repeat_faults --runs 5 --out runs/faults

Each run is a pytest of its own, over every test marked `fault`. The first failure ends it, with pytest's output in
`run-N.log`. `record.jsonl` has a line a run and `record.md` the page made of it. `--resume` goes on counting after the runs
of the record that passed in a row, of the same commit; without it an existing record is an error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
MARKER = "fault"
SLOWEST = 10
# It ends with the process that started it, however that ends.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


@dataclass(frozen=True)
class Run:
    """One run of the set.

    Attributes:
        commit: what was tested; ends with "+" where files differed from it.
        began: UTC, ISO 8601.
        seconds: of the whole pytest process.
        load: the system's 1-minute load average when the run began and when it ended.
        busy: busy processes beside it.
        busy_seconds: of a core that they had together.
        tests: name -> seconds, set-up and tear-down included.
        failed: names of tests that failed, or "pytest" where it ended without saying so.
        skipped: names of tests that did not run.
    """

    commit: str
    began: str
    seconds: float
    load: tuple[float, float]
    busy: int
    busy_seconds: float
    tests: dict[str, float]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


def streak(runs: Sequence[Run], commit: str) -> list[Run]:
    """The newest runs that passed in a row on this commit."""
    found: list[Run] = []
    for run in reversed(runs):
        if run.failed or run.commit != commit:
            break
        found.insert(0, run)
    return found


def marked_files() -> list[str]:
    """Files in which the marker stands: to collect all others takes as long as a drill."""
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(path) for path in files if f"pytest.mark.{MARKER}" in path.read_text(encoding="utf-8")]


def read_record(path: Path) -> list[Run]:
    runs = []
    for line in path.read_text().splitlines() if path.exists() else ():
        tree = json.loads(line)
        lists = {name: tuple(tree[name]) for name in ("load", "failed", "skipped")}
        runs.append(Run(**tree | lists))
    return runs


def commit_here() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


@contextmanager
def busy_processes(count: int) -> Iterator[Callable[[], float]]:
    """Yields what tells the seconds of a core that they have had together."""
    started = [psutil.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield lambda: sum(process.cpu_times().user for process in started)
    finally:
        for process in started:
            process.kill()
            process.wait()


def read_outcomes(report: Path) -> tuple[dict[str, float], tuple[str, ...], tuple[str, ...]]:
    """Seconds of every test, the failed and the skipped ones, of pytest's XML report.

    A test that fails and whose tear-down fails too has two entries, of one time each.
    """
    seconds: dict[str, float] = {}
    failed, skipped = [], []
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        seconds[name] = seconds.get(name, 0.0) + float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.find("skipped") is not None:
            skipped.append(name)
    return seconds, tuple(dict.fromkeys(failed)), tuple(skipped)


def run_once(number: int, out: Path, busy: int, arguments: Sequence[str]) -> Run:
    """Runs the set; pytest's words go to `run-N.log`."""
    report, log = out / f"run-{number}.xml", out / f"run-{number}.log"
    report.unlink(missing_ok=True)
    began, clock, load = datetime.datetime.now(datetime.UTC), time.monotonic(), os.getloadavg()[0]
    command = [sys.executable, "-m", "pytest", "-m", MARKER, "-x", "-v", "--timeout=3600", f"--junitxml={report}", *arguments]
    # The drills start hundreds of processes: none of them should compile the sources anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with busy_processes(busy) as spent, log.open("w") as stream:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
        busy_seconds = round(spent(), 1)
    seconds = time.monotonic() - clock
    tests, failed, skipped = read_outcomes(report) if report.exists() else ({}, (), ())
    if done.returncode and not failed:
        failed = ("pytest",)
    ends = (round(load, 1), round(os.getloadavg()[0], 1))
    start = began.isoformat(timespec="seconds")
    return Run(commit_here(), start, round(seconds, 1), ends, busy, busy_seconds, tests, failed, skipped)


def page(runs: Sequence[Run], wanted: int) -> str:
    """The record as Markdown: the newest run's streak, the slowest tests of it, and every earlier run."""
    passed = streak(runs, runs[-1].commit)
    cpu = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.machine()}"
    lines = [
        f"# Fault drills, {runs[-1].began[:10]}",
        "",
        f"{len(passed)} of {wanted} runs in a row passed on commit {runs[-1].commit}, each beside {runs[-1].busy} processes that",
        f"do nothing but count. {cpu}; Python {platform.python_version()}, Ray {version('ray')}. `make faults` makes such a",
        "record.",
        "",
        "Seconds of the busy ones are those of a core that they had together; load is the average of a minute when the run began",
        "and when it ended.",
        "",
        "| run | began (UTC) | commit | passed | skipped | failed | seconds | of the busy ones | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, run in enumerate(runs, 1):
        good = len(run.tests) - len(run.failed) - len(run.skipped)
        lines.append(
            f"| {number} | {run.began[:19].replace('T', ' ')} | {run.commit} | {good} | {', '.join(run.skipped) or 0} "
            f"| {', '.join(run.failed) or 0} | {run.seconds:.0f} | {run.busy_seconds:.0f} | {run.load[0]}, {run.load[1]} |"
        )
    if passed:
        lines += ["", f"The slowest {SLOWEST} tests, in seconds with set-up and tear-down:", ""]
        lines += ["| test | fastest | slowest |", "|---|---|---|"]
        spans = {name: [run.tests[name] for run in passed if name in run.tests] for name in passed[-1].tests}
        for name, seconds in sorted(spans.items(), key=lambda span: -max(span[1]))[:SLOWEST]:
            lines.append(f"| {name} | {min(seconds):.0f} | {max(seconds):.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="in a row")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "faults", help="folder of the record")
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside each run")
    parser.add_argument("--resume", action="store_true", help="go on counting after the runs of the record")
    parser.add_argument("--file", action="append", help="of tests; by default every one that has the marker")
    given, arguments = parser.parse_known_args(argv)
    arguments += given.file or marked_files()
    record = given.out / "record.jsonl"
    if record.exists() and not given.resume:
        parser.error(f"{record} is there already: --resume goes on with it, another --out begins a new one")
    given.out.mkdir(parents=True, exist_ok=True)
    runs = read_record(record)
    while (done := len(streak(runs, commit_here()))) < given.runs:
        number = len(runs) + 1
        print(f"run {number}: {done} of {given.runs} in a row passed", flush=True)
        runs.append(run_once(number, given.out, given.busy, arguments))
        with record.open("a") as stream:
            stream.write(json.dumps(asdict(runs[-1])) + "\n")
        (given.out / "record.md").write_text(page(runs, given.runs))
        if runs[-1].failed:
            print(f"run {number} failed: {', '.join(runs[-1].failed)}; see {given.out / f'run-{number}.log'}", flush=True)
            return 1
    print(f"{given.runs} runs in a row passed; see {given.out / 'record.md'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
