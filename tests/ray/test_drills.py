"""Fault drills: anything may die at any moment; nothing finished is lost, nothing is done twice, nothing hangs."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import has_manifest, read_file
from dat_ray.errors import DatError
from dat_ray.generation.stage import REQUESTS, generate
from dat_ray.generation.watch import RowCounter
from tests.ray.drivers import assert_as_undisturbed, committed, said, start_driver, wait_until
from tests.ray.test_broken_input import cut_short, flip_one_byte
from tests.ray.tiny_generation import HELD, ROWS_PER_BLOCK, Faults, drawn, engines, release, tiny_recipe, tiny_run
from tests.ray.worker_processes import PASSED, PATIENCE, actors, drill_moments, killed_once

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

LEDGER_IS_GONE = (
    r"^generate stopped: its record of failed rows, a process on the driver's node, ended .*--resume keeps what is done$"
)


def new_run(root: Path) -> RunDir:
    return tiny_run(root, tiny_recipe())


def has_more_than(counter: RowCounter, rows: int) -> bool:
    return counter.count() > rows


@pytest.mark.drill
@pytest.mark.fault
def test_a_driver_killed_at_each_point_of_its_start_and_with_rows_stored(
    ray_cluster: str, generated: RunDir, tmp_path: Path
) -> None:
    run = new_run(tmp_path / "run")
    requests = Path(run.candidates(0)) / REQUESTS

    def begun(faults: Faults, before: int) -> bool:
        return (Path(faults.notes) / "driver.log").exists()

    def planned(faults: Faults, before: int) -> bool:
        return has_manifest(str(requests))

    def about_to_draw(faults: Faults, before: int) -> bool:
        return (Path(faults.notes) / HELD).exists()

    def stored(faults: Faults, before: int) -> bool:
        return RowCounter(run.candidates(0)).count() > before

    for index, point in enumerate((begun, planned, about_to_draw, stored, begun)):
        faults = Faults(str(tmp_path / f"leg-{index}"), hold_after=2 * ROWS_PER_BLOCK if point is stored else 0)
        killed_leg(run, ray_cluster, faults, partial(wait_at, point, faults, run))
    assert len(committed(run.candidates(0))) > 0
    assert_it_ends_well(run, ray_cluster, generated, tmp_path)


def wait_at(point: Callable[[Faults, int], bool], faults: Faults, run: RunDir, driver: BaseProcess) -> None:
    before = len(committed(run.candidates(0)))
    wait_until(lambda: point(faults, before), driver)
    assert driver.is_alive(), said(faults)


def killed_leg(run: RunDir, cluster: str, faults: Faults, until: Callable[[BaseProcess], None]) -> None:
    """A driver that is killed after `until(driver)`: it has lost nothing that was finished, and made none of it again."""
    root = run.candidates(0)
    before = committed(root)
    driver = start_driver(cluster, run.root, faults)
    until(driver)
    driver.kill()
    driver.join()
    assert before <= committed(root), "a finished row was lost"
    assert not before & set(drawn(Path(faults.notes))), "a finished row was made again"


def assert_it_ends_well(run: RunDir, cluster: str, generated: RunDir, tmp_path: Path) -> None:
    """A last driver goes on to the end, and its rows are those of a run that nothing disturbed."""
    assert not has_manifest(run.candidates(0)), "the drill was over before it had killed enough"
    last = Faults(str(tmp_path / "last"))
    driver = start_driver(cluster, run.root, last)
    driver.join(PATIENCE)
    assert driver.exitcode == 0, said(last)
    assert_as_undisturbed(run, generated)


@pytest.mark.drill
def test_a_driver_killed_at_any_moment_again_and_again(ray_cluster: str, generated: RunDir, tmp_path: Path) -> None:
    moments = drill_moments()
    run = new_run(tmp_path / "run")
    root = run.candidates(0)
    for index in range(20):
        before, counter = committed(root), RowCounter(root)
        # Most kills fall anywhere in a start, before anything is drawn; every fifth once this driver has stored rows. It draws
        # no more than two shards of them, so that four such legs leave some of the 96.
        stores = index % 5 == 1
        faults = Faults(str(tmp_path / f"leg-{index}"), hold_after=2 * ROWS_PER_BLOCK if stores else 0)

        def anywhere(driver: BaseProcess, stores: bool = stores, counter: RowCounter = counter, rows: int = len(before)) -> None:
            if stores:
                wait_until(partial(has_more_than, counter, rows), driver)
                time.sleep(moments.uniform(0, 0.4))
            else:
                driver.join(moments.uniform(0, 2))

        killed_leg(run, ray_cluster, faults, anywhere)
    assert len(committed(root)) > 0
    assert_it_ends_well(run, ray_cluster, generated, tmp_path)


@pytest.mark.fault
def test_actors_of_every_role_killed_while_sampling(generated: RunDir, tmp_path: Path) -> None:
    run, notes = new_run(tmp_path / "run"), tmp_path / "notes"
    notes.mkdir()
    counter = RowCounter(run.candidates(0))
    alive = ["SamplerActor", "TargetActor", "JudgeActor"]

    def killed() -> None:
        alive.pop()
        if not alive:
            release(notes)

    with (
        killed_once(lambda: actors("SamplerActor"), lambda: counter.count() >= 8, killed) as samplers,
        killed_once(lambda: actors("TargetActor"), lambda: counter.count() >= 24, killed) as targets,
        killed_once(lambda: actors("JudgeActor"), lambda: counter.count() >= 40, killed) as judges,
    ):
        # At a pace that finds the later roles at work, and not to the end before all three are killed.
        report = generate(tiny_recipe(), run, engines(Faults(str(notes), seconds_per_row=0.05, hold_after=72)))
    assert (len(samplers), len(targets), len(judges)) == (1, 1, 1)
    assert report.errors == 0
    assert_as_undisturbed(run, generated)


@pytest.mark.drill
@pytest.mark.fault
def test_shards_damaged_between_two_runs_are_made_again_and_nothing_else(
    ray_cluster: str, generated: RunDir, tmp_path: Path
) -> None:
    run = new_run(tmp_path / "run")
    folder = Path(run.candidates(0))
    first = Faults(str(tmp_path / "first"), hold_after=48)
    driver = start_driver(ray_cluster, run.root, first)
    wait_until(lambda: len(committed(str(folder))) >= 32, driver)
    driver.kill()
    driver.join()
    finished, lost = committed(str(folder)), set()
    for shard, damage in zip(sorted(folder.glob("part-*.parquet"))[:2], (cut_short, flip_one_byte), strict=True):
        lost |= set(read_file(str(shard))["candidate_id"].to_pylist())
        damage(shard)
    second = Faults(str(tmp_path / "second"))
    driver = start_driver(ray_cluster, run.root, second)
    driver.join(PATIENCE)
    assert driver.exitcode == 0, said(second)
    assert not (finished - lost) & set(drawn(Path(second.notes)))
    assert_as_undisturbed(run, generated)


@pytest.mark.fault
def test_a_polite_kill_and_a_second_driver(ray_cluster: str, generated: RunDir, tmp_path: Path) -> None:
    """A run submitted twice: the second driver is turned away by name, and the first is not disturbed by it."""
    run = new_run(tmp_path / "run")
    root = run.candidates(0)
    first = Faults(str(tmp_path / "first"), hold_after=2 * ROWS_PER_BLOCK)
    driver = start_driver(ray_cluster, run.root, first)
    wait_until(lambda: len(committed(root)) >= 8, driver)
    second = Faults(str(tmp_path / "second"))
    rival = start_driver(ray_cluster, run.root, second)
    rival.join(PATIENCE)
    assert rival.exitcode == 1
    assert re.search(rf"is in use by process {driver.pid} on .*one driver at a time", said(second))
    assert drawn(Path(second.notes)) == []

    driver.terminate()
    driver.join(PATIENCE)
    assert driver.exitcode == 130, said(first)
    before = committed(root)
    assert len(before) >= 8
    third = Faults(str(tmp_path / "third"))
    driver = start_driver(ray_cluster, run.root, third)
    driver.join(PATIENCE)
    assert driver.exitcode == 0, said(third)
    assert not before & set(drawn(Path(third.notes)))
    assert_as_undisturbed(run, generated)


@pytest.mark.fault
def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    # A file where the folder should be refuses even the superuser.
    (tmp_path / "run" / "candidates").write_text("in the way")
    with pytest.raises(DatError, match=r"cannot write .*candidates") as caught:
        generate(tiny_recipe(), run, engines(Faults(str(tmp_path))))
    assert "\n" not in str(caught.value)
    assert drawn(tmp_path) == []


def own_cluster_environment() -> dict[str, str]:
    """Of a process that makes a cluster of its own: this one is connected to another."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    environment.pop("RAY_ADDRESS", None)
    return environment


class NodeDrills:
    """`node_loss.py`, which makes its cluster for the first drill and uses it for the next ones; a failure ends it."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._process: subprocess.Popen[str] | None = None

    def run(self, kind: str, folder: Path) -> None:
        log = self._notes / f"{kind}.log"
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(Path(__file__).with_name("node_loss.py"))]
            self._process = subprocess.Popen(
                command,
                env=own_cluster_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log.open("w"),
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {folder}\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if line == f"{PASSED}\n":
                return
        logs = sorted(self._notes.glob("*.log"), key=lambda path: path.stat().st_mtime)
        pytest.fail("".join(lines[-50:]) + logs[-1].read_text()[-4000:])

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


@pytest.fixture(scope="module")
def node_drills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeDrills]:
    drills = NodeDrills(tmp_path_factory.mktemp("node-drills"))
    yield drills
    drills.close()


@pytest.mark.fault
@pytest.mark.parametrize(
    "kind",
    [
        "sampling",
        *(pytest.param(kind, marks=pytest.mark.drill) for kind in ("training", "ledger", "evaluation", "sweep", "doctor")),
    ],
)
def test_a_node_that_is_lost(kind: str, node_drills: NodeDrills, generated: RunDir, tmp_path: Path) -> None:
    node_drills.run(kind, tmp_path)
    candidates = {"sampling": "run", "ledger": "run", "sweep": "sweep/points/point"}
    if kind in candidates:
        assert_as_undisturbed(RunDir(str(tmp_path / candidates[kind])), generated)


@pytest.mark.drill
@pytest.mark.fault
def test_a_ledger_that_is_killed_is_one_line_and_costs_nothing(generated: RunDir, tmp_path: Path) -> None:
    run, notes = new_run(tmp_path / "run"), tmp_path / "notes"
    notes.mkdir()
    counter = RowCounter(run.candidates(0))
    ledgers = killed_once(lambda: actors("Ledger"), lambda: counter.count() >= 8, then=lambda: release(notes))
    with ledgers as killed, pytest.raises(DatError, match=LEDGER_IS_GONE) as caught:
        generate(tiny_recipe(), run, engines(Faults(str(notes), hold_after=48)))
    assert len(killed) == 1
    assert "\n" not in str(caught.value)
    before, after = committed(run.candidates(0)), tmp_path / "after"
    assert len(before) >= 8
    after.mkdir()
    generate(tiny_recipe(), run, engines(Faults(str(after))))
    assert not before & set(drawn(after))
    assert_as_undisturbed(run, generated)


@pytest.mark.drill
@pytest.mark.fault
def test_training_keeps_what_it_did_on_a_node_that_is_about_to_go_and_goes_on_with_what_is_left(tmp_path: Path) -> None:
    """On a cluster of its own, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("preemption.py")), str(tmp_path)],
        env=own_cluster_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stderr[-4000:]
