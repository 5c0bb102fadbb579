"""Whatever waits has a deadline, and past it says what it waited for."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.diagnosis import StallWatch, job_actors, pending_line
from dat_ray.engines.workers import Workers
from dat_ray.errors import DatError
from dat_ray.generation.stage import generate
from tests.ray.tiny_generation import HANGS, Faults, drawn, engines, tiny_recipe, tiny_run
from tests.ray.worker_processes import actors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_a_sampler_that_hangs_is_shown_where_it_hangs_and_its_stage_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    hasty = recipe.model_copy(update={"timeouts": TimeoutsConfig(no_progress=40, engine_start=600)})
    run = tiny_run(tmp_path / "run", recipe)
    tick = StallWatch.tick

    def tick_of_what_hangs(watch: StallWatch, count: int) -> None:
        """Engines of a busy machine may still be starting where half of the deadline is over: counted from the hang on."""
        watch._patience = 2.0
        if (tmp_path / HANGS).exists() and not pending_line(job_actors()):
            tick(watch, count)

    monkeypatch.setattr(StallWatch, "tick", tick_of_what_hangs)
    with pytest.raises(
        DatError, match=r"no row moved for timeouts.no_progress = 40 s; .*pending: nothing; node .* CPU free"
    ) as told:
        generate(hasty, run, engines(Faults(str(tmp_path), hang=True)))
    where = Path(str(told.value).rpartition("details: ")[2].split(";")[0])
    text = where.read_text()
    assert text.startswith("generate: nothing came in ")
    assert "MapWorker(MapBatches(SamplerActor)): ALIVE, process " in text
    sampler = text[text.index("Stacks of MapWorker(MapBatches(SamplerActor))") :]
    assert "in infill" in sampler, "the function that hangs"
    assert drawn(tmp_path) == []
    for process in actors("SamplerActor"):  # asleep, it would hold its CPU as long as this process lives
        process.kill()
    assert generate(recipe, run, engines(Faults(str(tmp_path)))).errors == 0


@pytest.mark.drill
@pytest.mark.parametrize(
    ("cpus", "seconds", "said"),
    [
        (7.8, 8, r"no node had one CPU for reading .*no_progress = 8 s; node \w+: 0\.2 of 8 CPU free"),
        (6.6, 24, r"no row moved for .* = 24 s; .*pending: .*MapWorker\(MapBatches\(\w+\)\).*of 8 CPU free"),
    ],
)
def test_what_others_leave_no_room_for_is_named(tmp_path: Path, cpus: float, seconds: int, said: str) -> None:
    """On a cluster of its own, in a process of its own: what other tests have left on the shared one would count."""
    repository = Path(__file__).parents[2]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(repository)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(Path(__file__).with_name("busy_cluster.py")), str(tmp_path), str(cpus), str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(said, done.stdout), done.stdout
    # Nothing of Ray's own is on the screen: where the pools start, its core has a line to say.
    ours = ("generate: ", "sampler.model = none: ", "target.model = none: ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []
    assert drawn(tmp_path) == []


class Sleeper:
    """An engine that never answers."""

    name = "sleeper"

    def doze(self) -> None:
        time.sleep(600)


def doze(engine: Sleeper) -> None:
    engine.doze()


def test_a_worker_that_hangs_is_shown_in_one_line() -> None:
    timeouts = TimeoutsConfig(no_progress=3, engine_start=600)
    with (
        Workers("target", Sleeper, Pool(num_cpus=0.5), timeouts) as workers,
        pytest.raises(
            DatError, match=r"target: nothing in 3 s; 1 of 1 engines are up, .*EngineHost is in doze \(test_diagnosis.py:\d+\)"
        ),
    ):
        list(workers.map(doze, [()]))


def test_a_stall_is_told_once_and_again_after_progress(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    watch = StallWatch("rows", "where", 0.2)

    def ask(path: str, waited: str) -> str:
        asked.append(waited)
        return f"details: {path}"

    for count in (1, 1, 1, 2, 2, 2):
        watch.tick(count, ask)
        time.sleep(0.15)
    watch.tick(2, ask)
    assert len(asked) == 2
    assert capsys.readouterr().err.count("details: where") == 2
    watch.tick(3, ask)
    assert watch.found == ""
