from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dat_ray.bench import update as bench
from dat_ray.bench.verb import KEYS
from dat_ray.cli import main
from dat_ray.training.memory import LLAMA3_8B, update_bytes

TINY = replace(bench.PRESETS["cpu"], width=32, hidden=48, vocabulary=200, tokens=24, response=6)


def test_an_update_is_timed_by_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(bench.PRESETS, "cpu", TINY)
    assert main(["bench", "update", "--json", "--repeats", "1", "--checkpointing"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(found)
    assert set(found["seconds_by_part"]) == {"attack", "harmful", "retain"}
    assert 0 < sum(found["seconds_by_part"].values()) <= found["seconds"]
    assert found["rows_per_s"] == pytest.approx(TINY.rows / found["seconds"])
    # Rows of 24 and 23 tokens: in 2 attack steps, with both responses, and as retain rows with and without the adapter.
    assert found["tokens_per_s"] == pytest.approx((2 + 2 + 2) * (24 + 23) / found["seconds"])
    assert "activation checkpointing" in found["shape"]
    assert found["predicted_bytes"]["activations"] < bench.predicted(TINY, checkpointing=False)["activations"]


def test_the_8b_preset_is_what_the_memory_arithmetic_calls_llama3_8b() -> None:
    preset = bench.PRESETS["8b"]
    expected = update_bytes(LLAMA3_8B, rank=64, rows=2 * preset.rows, tokens=preset.tokens, response=preset.response)
    assert bench.predicted(preset, checkpointing=False) == expected


def test_no_repeats_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "update", "--repeats", "0"]) == 2
    assert "--repeats" in capsys.readouterr().err


def test_a_profile_is_of_one_more_update(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(bench.PRESETS, "cpu", TINY)
    assert main(["bench", "update", "--json", "--repeats", "1", "--profile"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = found["profile"]["kinds"]
    assert {"products", "attention", "elementwise"} <= set(kinds)
    # Two layers of seven products with two of an adapter each, in two attack steps and the rest, forward and back.
    assert kinds["products"]["calls"] > 2 * 7 * 3 * 2
    assert sum(kind["share"] for kind in kinds.values()) == pytest.approx(1)
    assert sum(kind["seconds"] for kind in kinds.values()) == pytest.approx(found["profile"]["busy_seconds"])
    assert [one["seconds"] for one in found["profile"]["longest"]] == sorted(
        (one["seconds"] for one in found["profile"]["longest"]), reverse=True
    )
