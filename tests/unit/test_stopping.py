"""Ctrl-C, SIGTERM and a closed terminal: exit 130, one line that says what is left, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dat_ray import cli
from dat_ray.data import scratch
from dat_ray.data.processes import this_process
from dat_ray.data.scratch import OWNER, remove_abandoned, scratch_folder
from dat_ray.errors import DatError, Stopped
from dat_ray.ops import export_verb, submit
from dat_ray.raysession import kept_handlers
from dat_ray.training import train_workers as workers

pytestmark = pytest.mark.fault

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _in_the_foreground() -> Iterator[None]:
    """Tests that run in the background or under nohup inherit ignored signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def come(number: int) -> None:
    """The signal, at this line."""
    os.kill(os.getpid(), number)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line with a verb that does this."""

    def run(act: Callable[[], object], *argv: str) -> int:
        for name in ("_stage", "_evaluate", "_sweep", "_adapt", "_bench", "_recipes"):
            monkeypatch.setattr(cli, name, lambda *_: act())
        monkeypatch.setattr(export_verb, "_export", lambda *_: act())
        return cli.main(argv)

    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_unwinds_and_says_what_is_left(verb: Callable, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def act() -> None:
        try:
            come(number)
        finally:
            cleaned.append(True)

    before = [signal.getsignal(each) for each in SIGNALS]
    assert verb(act, "bench", "update") == 130
    assert cleaned
    assert capsys.readouterr().err == "dat bench: stopped\n"
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize(
    ("argv", "resumes"),
    [
        (["sweep", "demo", "--grid", "seed=1,2"], True),
        (["adapt", "base", "--out", "x"], True),
        (["bench", "update"], False),
        (["export", "run", "--out", "x"], False),
    ],
)
def test_resume_is_named_where_a_verb_has_it(
    verb: Callable, argv: list[str], resumes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(lambda: come(signal.SIGINT), *argv) == 130
    assert ("what is finished is kept, --resume continues" in capsys.readouterr().err) == resumes


def test_what_others_raise_of_a_signal_is_the_signal(verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal sends Ctrl-C to every process: an actor may be gone first, and a library may raise an error of its own."""

    def act() -> None:
        try:
            come(signal.SIGINT)
        except KeyboardInterrupt:
            raise DatError("an actor died") from None

    assert verb(act, "adapt", "base", "--out", "x") == 130
    assert capsys.readouterr().err == "dat adapt: stopped; what is finished is kept, --resume continues\n"

    def fail() -> None:
        raise DatError("an actor died")

    assert verb(fail, "adapt", "base", "--out", "x") == 1
    assert capsys.readouterr().err == "dat adapt: an actor died\n"


def test_a_signal_that_is_ignored_stays_ignored(verb: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup and `&` start a process."""
    with kept_handlers():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def act() -> int:
            come(signal.SIGINT)
            return 0

        assert verb(act, "adapt", "base", "--out", "x") == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_that_ray_sets_are_taken_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), kept_handlers():
        for number in SIGNALS[:2]:
            signal.signal(number, lambda *_: sys.exit(0))
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ray_train_sets_no_handler_and_its_controller_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "signal.signal" in _source(DataParallelTrainer._register_sigint_handler), (
        "the hook that is taken over is the right one"
    )
    calls: list[object] = []
    trainer = workers._RayTrainer.__new__(workers._RayTrainer)
    controller = SimpleNamespace(abort=SimpleNamespace(remote=lambda: "ended"))

    def fit() -> None:
        trainer._register_sigint_handler(controller)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "fit", fit, raising=False)
    monkeypatch.setattr(workers.ray, "get", lambda ref, timeout: calls.append((ref, timeout)))
    with pytest.raises(KeyboardInterrupt):
        workers._fit(trainer)
    assert calls == [("ended", workers.SECONDS_TO_ABORT)]


def _source(function: Callable) -> str:
    import inspect

    return inspect.getsource(function)


def test_a_job_goes_on_and_it_says_so(
    verb: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def tail(_client: object, _job: str) -> None:
        come(signal.SIGTERM)

    monkeypatch.setattr(submit, "_print_log", tail)
    assert verb(lambda: submit.follow(SimpleNamespace(), "dat-train-1"), "adapt", "base", "--out", "x") == 130
    said = capsys.readouterr().err
    assert "stopped; job dat-train-1 goes on" in said
    assert "`ray job stop dat-train-1`" in said
    assert "--resume" not in said


def test_a_job_that_was_being_sent_may_have_been_taken() -> None:
    def send(**_: object) -> str:
        raise KeyboardInterrupt

    submission: Any = SimpleNamespace(submission_id="dat-train-1", entrypoint="python jobs/train.py", metadata={})
    package: Any = SimpleNamespace(path="x.zip")
    client = SimpleNamespace(submit_job=send)
    with pytest.raises(Stopped, match="whether Ray took job dat-train-1 says `ray job status dat-train-1`"):
        submit.submit(client, submission, package)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _dies_in_a_scratch_folder(prefix: str) -> None:
    with scratch_folder(prefix) as folder:
        (folder / "weights").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_and_nothing_else(temporary: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_dies_in_a_scratch_folder, args=("dat-train-1-",))
    worker.start()
    worker.join()
    (left,) = temporary.iterdir()
    kept = {"dat-train-1-mine", "dat-train-1-elsewhere", "dat-train-1-broken"}
    for name in kept:
        (temporary / name).mkdir()
    (temporary / "dat-train-1-elsewhere" / OWNER).write_text(json.dumps({"pid": worker.pid, "process": "boot pid:[1] 5"}))
    (temporary / "dat-train-1-broken" / OWNER).write_text("{")
    (temporary / "dat-train-1-link").symlink_to(left)
    assert remove_abandoned("dat-train-2-") == 0
    assert left.exists()
    with scratch_folder("dat-train-1-") as folder:
        assert not left.exists()
        assert list(folder.iterdir()) == []
        assert remove_abandoned("dat-train-1-") == len(kept) + 2, "the link, and the one that is in use"
        assert folder.exists()
    assert kept <= {path.name for path in temporary.iterdir()}
    assert this_process()


def test_a_folder_of_a_process_that_is_ending_is_waited_for(temporary: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = temporary / "dat-train-1-x"
    folder.mkdir()
    from dat_ray.data.processes import space, start_of

    (folder / OWNER).write_text(json.dumps({"pid": child.pid, "process": f"{space()} {start_of(child.pid)}"}))
    assert remove_abandoned("dat-train-1-") == 1
    child.kill()
    assert remove_abandoned("dat-train-1-", seconds=60) == 0
    assert not folder.exists()
    child.wait()
