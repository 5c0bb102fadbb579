"""Pools of engine hosts whose processes end: at work, over and over, while they load, and when the pool is left."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from dat_ray.config.cluster import Pool, TimeoutsConfig
from dat_ray.engines import workers as workers_module
from dat_ray.engines.pieces import TRIES_PER_CHUNK, by_rows
from dat_ray.engines.pool_size import beside, fits
from dat_ray.engines.workers import ENDS_PER_ACTOR, STARTS_PER_ACTOR, Unfinished, Workers
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


@dataclass(frozen=True)
class Values:
    rows: list[int]


@by_rows("rows", failed=lambda reason: f"failed: {reason}")
def end_at_a_row(engine: Engine, values: Values) -> list[int]:
    if DEADLY in values.rows:
        os._exit(1)
    return [2 * value for value in values.rows]


@by_rows("rows", failed=lambda reason: f"failed: {reason}")
def end_at_every_row(engine: Engine, values: Values) -> list[int]:
    os._exit(1)


def after(engine: Engine, path: Path, value: int) -> int:
    """Answers once there is a file."""
    (engine.notes / f"began {value}").touch()
    while not path.exists():
        time.sleep(0.02)
    return os.getpid()


def pool(notes: Path, *, actors: int = 1, least: int = 1, loads: bool = True) -> Workers:
    size = Pool(min_actors=least, max_actors=actors, num_cpus=0.5)
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
    # The answer to the call before may not have left the first process that ends; afterwards the chunk is alone in it.
    assert times_built(tmp_path) in (TRIES_PER_CHUNK, TRIES_PER_CHUNK + 1)


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


@pytest.mark.parametrize("actors", [1, 3])
def test_a_row_that_ends_every_process_fails_alone_and_the_rest_is_as_with_any_pool(actors: int, tmp_path: Path) -> None:
    chunks = [[0, 1], [2, DEADLY, 4, 5, 6], [7], [8, 9]]
    with pool(tmp_path, actors=actors) as workers:
        found = dict(workers.map(end_at_a_row, [(Values(chunk),) for chunk in chunks]))
    assert str(found[1][1]).startswith("failed: ")
    assert "processes ended on this row" in found[1][1]
    found[1][1] = 2 * DEADLY
    assert found == {index: [2 * value for value in chunk] for index, chunk in enumerate(chunks)}


def test_rows_that_all_end_their_process_end_the_stage(tmp_path: Path) -> None:
    with pool(tmp_path) as workers, pytest.raises(DatError, match=rf"^target: its process died {ENDS_PER_ACTOR} times in a row"):
        list(workers.map(end_at_every_row, [(Values(list(range(4))),), (Values(list(range(4))),)]))
    assert times_built(tmp_path) == ENDS_PER_ACTOR


def test_a_pool_begins_small_grows_with_its_work_and_gives_idle_places_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.1)
    first, rest = tmp_path / "first", tmp_path / "rest"
    with pool(tmp_path, actors=3, least=1) as workers:
        workers.wait()
        assert times_built(tmp_path) == 1
        found = workers.map(after, [(rest if value == 0 else first, value) for value in range(3)])

        def release() -> None:
            while not all((tmp_path / f"began {value}").exists() for value in range(3)):
                time.sleep(0.02)
            first.touch()
            while len(workers._actors) > 1:
                time.sleep(0.02)
            rest.touch()

        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        pids = dict(found)
        thread.join(60)
        assert not thread.is_alive(), "the two that had nothing to do gave their places back while the third was at work"
        assert len(set(pids.values())) == times_built(tmp_path) == 3
        assert dict(workers.map(double, [(1,)])) == {0: 2}
        assert times_built(tmp_path) == 3, "what is left is used again"


def test_a_pool_of_two_at_least_begins_with_two(tmp_path: Path) -> None:
    with pool(tmp_path, actors=2, least=2) as workers:
        workers.wait()
        assert dict(workers.map(double, [(1,)])) == {0: 2}
        while times_built(tmp_path) < 2:
            time.sleep(0.02)


def await_room(cpus: float) -> None:
    """Until so much is free: the actors of a plan that another test ran end when Python collects the plan."""
    while ray.available_resources().get("CPU", 0.0) < cpus:
        gc.collect()
        time.sleep(0.1)


def load_slowly(notes: Path) -> Engine:
    time.sleep(5)
    return Engine(notes)


def test_an_engine_may_take_longer_to_start_than_a_chunk(tmp_path: Path) -> None:
    patience = TimeoutsConfig(no_progress=4, engine_start=600)
    with Workers("target", partial(load_slowly, tmp_path), Pool(num_cpus=0.5), patience) as workers:
        assert dict(workers.map(double, [(1,), (2,)])) == {0: 2, 1: 4}


def test_actors_without_room_are_not_waited_for(tmp_path: Path) -> None:
    await_room(6.0)
    size = Pool(max_actors=50, num_cpus=6.0)
    with Workers("target", partial(Engine, tmp_path), size, TimeoutsConfig(no_progress=120, engine_start=120)) as workers:
        assert sorted(workers.map(double, [(value,) for value in range(9)])) == [(value, 2 * value) for value in range(9)]
    assert times_built(tmp_path) == 1


def test_a_pool_leaves_room_for_those_beside_it() -> None:
    # The cluster of these tests has 8 CPUs.
    assert fits(Pool(max_actors=8))
    assert not fits(Pool(max_actors=8), Pool(num_cpus=0.1))
    assert beside(Pool(max_actors=8), Pool(num_cpus=2.0, max_actors=4), Pool(num_cpus=0.1)).max_actors == 5
    assert beside(Pool(max_actors=3), Pool()).max_actors == 3
    assert beside(Pool(min_actors=8, max_actors=9), Pool()).max_actors == 8, "never below what it needs"
