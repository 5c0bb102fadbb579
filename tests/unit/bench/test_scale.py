"""The parts of `dat bench scale` that need no Ray, against values by hand."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from dat_ray.bench import scale
from dat_ray.bench.scale_run import Load, growth, helpers, recipe_of
from dat_ray.bench.simulated import StatedTime
from dat_ray.bench.utilization import (
    Busy,
    ProcessLog,
    bottleneck,
    hours,
    idle_between,
    read_logs,
    row_balance,
    seconds_a_row,
    utilization,
    window,
)
from dat_ray.errors import InputError


def log(node: str, *batches: tuple[float, float], role: str = "sampler") -> ProcessLog:
    return ProcessLog(role, node, tuple(Busy(start, end, 32) for start, end in batches))


# The second process starts at 2 and runs dry at 10: the window is 8 seconds of two actors, 16 in all.
EARLY, LATE = log("n1", (0.0, 4.0), (5.0, 9.0), (9.5, 12.0)), log("n2", (2.0, 6.0), (7.0, 10.0))


def test_the_window_is_from_the_last_start_to_the_first_that_runs_dry() -> None:
    assert window([EARLY, LATE], 2) == (2.0, 10.0)


def test_utilization_is_the_busy_part_of_what_the_actors_had() -> None:
    # 2 + 4 + 0.5 seconds of the first, 4 + 3 of the second.
    assert utilization([EARLY, LATE], 2, (2.0, 10.0)) == pytest.approx(13.5 / 16)


def test_an_actor_that_never_worked_counts_as_idle() -> None:
    assert utilization([EARLY, LATE, log("n3")], 3, (2.0, 10.0)) == pytest.approx(13.5 / 24)


def test_a_lost_process_did_not_run_dry_and_its_successor_is_no_late_start() -> None:
    lost, successor = log("gone", (1.0, 3.0)), log("new", (6.0, 11.0))
    assert window([EARLY, lost, successor], 2, ["gone"]) == (1.0, 11.0)
    # 10 seconds of two: 3 + 4 + 1.5 of the first, 2 of the lost one, 5 of its successor.
    assert utilization([EARLY, lost, successor], 2, (1.0, 11.0)) == pytest.approx(15.5 / 20)


@pytest.mark.parametrize(
    "logs", [[], [log("n1")], [log("n1", (0.0, 1.0)), log("n2", (2.0, 3.0))]], ids=["none", "no batch", "one after the other"]
)
def test_without_a_common_span_there_is_no_window(logs: list[ProcessLog]) -> None:
    assert window(logs, 2) is None


def test_the_bottleneck_is_the_role_whose_actors_work_longest_each() -> None:
    judge = log("n3", (0.0, 7.0), role="judge")
    # The samplers work 17.5 seconds, 8.75 each; or with one of them 17.5.
    assert bottleneck([EARLY, LATE, judge], {"sampler": 2, "judge": 1}) == "sampler"
    assert bottleneck([EARLY, LATE, judge], {"sampler": 3, "judge": 1}) == "judge"


def test_seconds_of_a_row_and_between_batches() -> None:
    assert seconds_a_row([EARLY, LATE]) == pytest.approx(17.5 / (5 * 32))
    # Gaps of 1 and 0.5 seconds, and of 1.
    assert idle_between([EARLY, LATE], (0.0, 12.0)) == 1.0
    assert idle_between([EARLY, LATE], (4.5, 12.0)) == 0.5
    assert idle_between([log("n1", (0.0, 1.0))], (0.0, 1.0)) is None


def test_rows_lost_doubled_and_unknown() -> None:
    assert row_balance(["a", "b", "c"], ["c", "a", "b"]) == {"lost": 0, "doubled": 0, "unknown": 0}
    assert row_balance(["a", "b", "c"], ["a", "a", "a", "x", "b"]) == {"lost": 1, "doubled": 2, "unknown": 1}


def test_memory_of_the_window_s_later_half_is_what_grows_with_the_rows() -> None:
    """300 MB of buffers come at once, 100 bytes a row all along: only these count."""
    mib = 2**20
    memory = [(float(at), (300 * mib if at >= 15 else 0) + 100 * 32 * at) for at in range(41)]
    logs = [ProcessLog("sampler", "a", tuple(Busy(at, at + 1.0, 32) for at in range(40)))]
    found = growth(memory, logs, (10.0, 30.0))
    assert found["mib"] == pytest.approx(100 * 32 * 10 / mib)
    # Batches that end at 20, 21, ... 30.
    assert found["bytes_a_row"] == pytest.approx(100 * 10 / 11)
    assert growth([], logs, (10.0, 30.0)) == {"mib": None, "bytes_a_row": None}
    assert growth(memory, [], (10.0, 30.0))["bytes_a_row"] is None


def test_the_papers_prompts_on_eight_cards() -> None:
    # 12,500 rows a card at 3.6 rows a second: 3,472 seconds of work; at half the utilization twice as long.
    assert hours(100_000, 8, 1 / 3.6, 1.0) == pytest.approx(12_500 / 3.6 / 3600)
    assert hours(100_000, 8, 1 / 3.6, 0.5) == pytest.approx(2 * 12_500 / 3.6 / 3600)


def test_logs_are_read_by_role_and_node_without_a_line_cut_short(tmp_path: Path) -> None:
    line = json.dumps({"start": 1.0, "end": 2.0, "rows": 3})
    (tmp_path / "judge-abc-12.jsonl").write_text(f'{line}\n{{"start": 2.0, "en')
    (tmp_path / "sampler-abc-13.jsonl").touch()
    (tmp_path / "released").touch()
    assert read_logs(tmp_path) == [ProcessLog("judge", "abc", (Busy(1.0, 2.0, 3),)), ProcessLog("sampler", "abc", ())]


def test_stated_times_are_a_function_of_the_rows() -> None:
    time = StatedTime(0.5, spread=0.3, stragglers=0.1, straggler_factor=5)
    assert time.draw(["a", "b"]) == time.draw(["a", "b"]) != time.draw(["a", "c"])
    assert StatedTime(0.5).draw(["a", "b", "c"]) == pytest.approx(1.5)


def test_stated_times_have_the_stated_distribution() -> None:
    batches = [[f"row {number}"] for number in range(4000)]
    drawn = [StatedTime(0.5, spread=0.3).draw(keys) for keys in batches]
    # Four standard errors of either.
    assert statistics.fmean(drawn) == pytest.approx(0.5, abs=4 * 0.5 * 0.31 / math.sqrt(4000))
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(8000))
    late = [StatedTime(0.5, stragglers=0.1, straggler_factor=5).draw(keys) for keys in batches]
    assert set(late) == {0.5, 2.5}
    assert sum(seconds == 2.5 for seconds in late) / 4000 == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 4000))


def test_measured_seconds_are_drawn_from() -> None:
    drawn = {StatedTime(9.0, measured=(0.25, 0.5)).draw([f"row {number}", "other"]) for number in range(50)}
    assert drawn == {0.5, 1.0}


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scale.configure(parser)
    return parser.parse_args(words)


def test_pools_of_fewer_actors_are_as_fast_as_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[Load] = []
    figures: dict[str, Any] = {
        "bottleneck": "judge",
        "idle_s_a_batch": 0.1,
        "rows": 1,
        "seconds": 1.0,
        "driver_mib": {"peak": 1.0},
    }

    def taken(work: Any) -> dict[str, Any]:
        loads.append(work.args[0])
        return dict(figures)

    (tmp_path / "seconds").write_text("0.2\n0.4\n")
    monkeypatch.setattr(scale, "_apart", taken)
    words = ("--actors", "1,6", "--speed", "2", "--seconds-per-row", "0.3", "--judge-factor", "1.5", "--resume-shards", "0")
    found = scale.measure(options(*words, "--spot", "60", "--measured", str(tmp_path / "seconds")))
    assert [(load.samplers, load.rows, load.spot_seconds) for load in loads] == [(1, 1600, 30.0), (6, 9600, 30.0)]
    assert loads[1].actors == {"sampler": 6, "target": 2, "judge": 2}
    assert loads[1].times["sampler"].measured == (0.1, 0.2)
    # Six samplers at 0.15 s a row make a row in 0.025 s, two judges one in 1.5 times that.
    assert loads[1].times["judge"].seconds / 2 == pytest.approx(0.15 / 6 * 1.5)
    # A judge's batch has 64 rows, of 0.15 s a row at the stated times.
    assert found["6_actors"]["idle_share_at_speed_1"] == pytest.approx(0.1 / (0.1 + 64 * 0.15))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--actors", "1,x"), "--actors = '1,x'"),
        (("--actors", "0"), "--actors = '0'"),
        (("--actors", "4,4"), "--actors = '4,4'"),
        (("--speed", "0"), "--speed = 0.0: give a number above 0"),
        (("--spot", "-1"), "--spot = -1.0: give a number above 0"),
        (("--stragglers", "1.5"), "--stragglers = 1.5: give a share"),
        (("--spread", "-1"), "--spread = -1.0: give a number of at least 0"),
        (("--batch-size", "0"), "--batch-size = 0: give at least 1"),
        (("--rows-per-actor", "255"), "--rows-per-actor = 255: give at least 256"),
        (("--resume-shards", "-1"), "--resume-shards = -1: give at least 0"),
        (("--measured", "no such file"), "--measured = 'no such file': give a readable file"),
    ],
)
def test_an_option_that_makes_no_run_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        scale.measure(options(*words))
    assert str(caught.value).startswith(message)


def test_the_recipe_asks_for_the_rows_and_the_pools() -> None:
    recipe = recipe_of(Load(10, 10 * 64, dict.fromkeys(("sampler", "target", "judge"), StatedTime(0.0))))
    assert recipe.generation.samples_per_target * math.gcd(640, 100) == 640
    assert (recipe.cluster.sampler.max_actors, recipe.cluster.judge.min_actors) == (10, helpers(10)) == (10, 3)
