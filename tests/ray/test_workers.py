"""Pools of engine hosts whose processes end: at work, over and over, while they load, and when the pool is left."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.engines.workers import STARTS_PER_ACTOR, TRIES_PER_CHUNK, Unfinished, Workers
from dat_ray.errors import DatError, EngineLost
from tests.ray.tiny_generation import await_release, first_time

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.usefixtures("ray_cluster")]

DEADLY = 3


class Engine:
    """Notes every process in which it is built."""

    name = "tiny"

    def __init__(self, notes: Path, *, loads: bool = True) -> None:
        self.notes = notes
        with open(notes / "built", "a") as stream:
            stream.write("built\n")
        if not loads:
            os._exit(1)


def times_built(notes: Path) -> int:
    return len((notes / "built").read_text().split())


def double(engine: Engine, value: int) -> int:
    return 2 * value


def end_once(engine: Engine, value: int) -> int:
    if value == DEADLY and first_time(engine.notes / "ended"):
        os._exit(1)
    return 2 * value


def lose_engine_once(engine: Engine, value: int) -> int:
    if value == DEADLY and first_time(engine.notes / "lost"):
        raise EngineLost("the engine cannot go on (EngineDeadError: the loop is gone)")
    return 2 * value


def end_always(engine: Engine, value: int) -> int:
    if value == DEADLY:
        os._exit(1)
    return 2 * value


def hold(engine: Engine, value: int) -> int:
    (engine.notes / "at work").touch()
    await_release(engine.notes)
    return value


def pool(notes: Path, *, actors: int = 1, loads: bool = True) -> Workers:
    size = Pool(min_actors=1, max_actors=actors, num_cpus=0.5)
    return Workers("target", partial(Engine, notes, loads=loads), size, TimeoutsConfig(no_progress=600, engine_start=600))


@pytest.mark.parametrize("actors", [1, 2])
@pytest.mark.parametrize("work", [end_once, lose_engine_once])
def test_a_lost_process_is_replaced_and_every_chunk_is_answered_once(work, actors, tmp_path, capsys):
    with pool(tmp_path, actors=actors) as workers:
        found = list(workers.map(work, [(value,) for value in range(8)]))
        assert sorted(found) == [(index, 2 * index) for index in range(8)]
        assert workers.wait() == {"name": "tiny"}
        # The pool is of its full size again, however long the newest process takes to load.
        assert sorted(workers.map(double, [(value,) for value in range(8)])) == sorted(found)
    assert times_built(tmp_path) <= actors + 1
    assert "target: " in capsys.readouterr().err


def test_a_chunk_that_ends_every_process_is_given_up(tmp_path):
    with (
        pool(tmp_path) as workers,
        pytest.raises(DatError, match=rf"^target: its process died {TRIES_PER_CHUNK} times over the same rows.*--resume keeps"),
    ):
        list(workers.map(end_always, [(value,) for value in range(8)]))
    assert times_built(tmp_path) == TRIES_PER_CHUNK


def test_an_engine_in_whose_loading_every_process_ends_is_given_up(tmp_path):
    with (
        pool(tmp_path, loads=False) as workers,
        pytest.raises(DatError, match=rf"^target did not start: its process died {STARTS_PER_ACTOR} times .*--resume keeps"),
    ):
        workers.wait()
    assert times_built(tmp_path) == STARTS_PER_ACTOR


def test_a_pool_that_is_left_by_another_thread_starts_no_process_again(tmp_path):
    workers, said = pool(tmp_path), []

    def ask() -> None:
        try:
            list(workers.map(hold, [(1,)]))
        except DatError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    with workers:
        thread.start()
        while not (tmp_path / "at work").exists():
            time.sleep(0.02)
    thread.join(60)
    assert said == ["target: stopped"]
    assert times_built(tmp_path) == 1


def count_up(engine: Engine, to: int, reached: int = 0) -> int | Unfinished:
    """One step a call; the process ends once at the third, and its successor goes on from there."""
    with open(engine.notes / "steps", "a") as stream:
        stream.write(f"{to}/{reached} ")
    if (to, reached) == (6, 3) and first_time(engine.notes / "ended"):
        os._exit(1)
    return reached if reached == to else Unfinished((to, reached + 1))


def test_a_long_call_outlasts_the_deadline_and_goes_on_in_another_process(tmp_path: Path) -> None:
    with pool(tmp_path) as workers:
        assert dict(workers.map(count_up, [(6,), (2,)])) == {0: 6, 1: 2}
    steps = (tmp_path / "steps").read_text().split()
    assert [steps.count(f"6/{reached}") for reached in range(7)] == [1, 1, 1, 2, 1, 1, 1], (
        "no step is done twice but the lost one"
    )
