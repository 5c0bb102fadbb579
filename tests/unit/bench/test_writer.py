from __future__ import annotations

import argparse
import json

import pytest

from dat_ray.bench.writer import configure, measure, power
from dat_ray.cli import main
from dat_ray.errors import InputError


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(words)


def test_it_measures_every_part_and_prints_the_published_keys() -> None:
    found = json.loads(json.dumps(measure(options("--rows", "400", "--rows-per-shard", "32", "--repeats", "2"))))
    published = {
        "bench",
        "device",
        "shape",
        "rows_per_s",
        "literal_rows_per_s",
        "ratio_to_literal",
        "mfu",
        "peak_bytes",
        "repeats",
    }
    assert published <= set(found)
    assert (found["bench"], found["repeats"], found["mfu"]) == ("writer", 2, None)
    assert found["shape"].startswith("400 rows in 13 shards of 32")
    assert set(found["seconds"]) == {"expand", "write", "resume_scan", "manifest"}
    assert found["rows_per_s"] > 0
    assert found["rows_per_cpu_s"] > 0
    # Whole shards only: the thirteenth is half empty, and a scan is timed by the shard.
    assert list(found["scan_cpu_ms"]) == ["1", "3", "6", "12"]
    assert all(time > 0 for time in found["scan_cpu_ms"].values())


def test_the_growth_is_a_power() -> None:
    assert power({size: 0.3 * size for size in (25, 50, 100, 200)}) == pytest.approx(1)
    assert power({size: 2e-4 * size**2 for size in (25, 50, 100, 200)}) == pytest.approx(2)


def test_a_folder_of_one_shard_has_no_growth() -> None:
    found = measure(options("--rows", "100", "--rows-per-shard", "100", "--repeats", "1"))
    assert list(found["scan_cpu_ms"]) == ["1"]
    assert found["scan_growth"] is None


def test_rows_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(InputError, match=r"--rows = 401: .* a multiple of 100"):
        measure(options("--rows", "401"))


@pytest.mark.parametrize("option", ["--rows", "--rows-per-shard", "--repeats"])
def test_a_count_of_nothing_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "writer", option, "0"]) == 2
    assert capsys.readouterr().err == f"dat bench: {option} = 0: give at least 1\n"
