from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dat_ray.bench import sampler as bench
from dat_ray.bench.verb import KEYS
from dat_ray.cli import main
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.published_law import published_infill, transfer_schedule
from dat_ray.diffusion.sampler import TorchDenoiser

TINY = bench.SamplerShape(1, 32, 2, 48, 3000, True, 0.3, (4, 9), (3, 30), 3, 6, 4, torch.float32)


def test_both_forms_write_the_same_and_every_key_is_there(monkeypatch, capsys) -> None:
    monkeypatch.setitem(bench.SHAPES, "cpu", TINY)
    assert main(["bench", "sampler", "--json", "--repeats", "2", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(found)
    assert found["rows_equal_to_literal"] == TINY.rows
    assert found["ratio_to_literal"] > 0
    assert found["model_calls"] == TINY.steps
    assert 0 < found["mfu"] < 2  # of a peak that was measured at another moment
    assert found["repeats"] == 2
    assert "GPU" in found["not_measured"]
    assert found["threshold"]["model_calls"] <= TINY.steps
    assert main(["bench", "sampler", "--repeats", "1", "--device", "cpu", "--temperature", "1"]) == 0
    assert "rows_equal_to_literal  not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "field"),
    [("--repeats=0", "--repeats"), ("--steps=0", "--steps"), ("--rows=0", "--rows"), ("--device=tpu", "--device")],
)
def test_bad_options_are_one_line(capsys, option: str, field: str) -> None:
    assert main(["bench", "sampler", option]) == 2
    message = capsys.readouterr().err.strip()
    assert field in message
    assert "\n" not in message


def test_the_published_schedule_is_the_even_share_of_what_is_left() -> None:
    assert transfer_schedule(10, 4) == [3, 3, 2, 2]
    assert transfer_schedule(3, 64) == [1, 1, 1]
    for masks in range(1, 70):
        for steps in range(1, 70):
            left, shares = masks, []
            for step in range(min(masks, steps)):
                shares.append(-(-left // (min(masks, steps) - step)))
                left -= shares[-1]
            assert shares == transfer_schedule(masks, steps)


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest new tensor of vocabulary width had."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.elements = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.t.default:
            return result  # the head's weights, seen from the other side
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_memory_grows_with_the_masks_of_a_chunk_not_with_canvas_times_vocabulary(temperature: float) -> None:
    model = bench.build(TINY, torch.device("cpu"))
    law = Law(TINY.steps, temperature)
    for response in (30, 60):
        rows, seeds, spec = bench.canvases_of(dataclasses.replace(TINY, response=(response, response)))
        masks = sum(hi - lo for lo, hi in (row.prompt_span for row in rows))
        with Largest(TINY.vocabulary) as ours:
            TorchDenoiser(model, spec, law, len(rows), chunk=1000).fill(rows, seeds)
        with Largest(TINY.vocabulary) as chunked:
            TorchDenoiser(model, spec, law, len(rows), chunk=4).fill(rows, seeds)
        with Largest(TINY.vocabulary) as literal:
            published_infill(model, rows, seeds, spec, law, len(rows))
        assert ours.elements == masks * TINY.vocabulary
        assert chunked.elements == 4 * TINY.vocabulary
        assert literal.elements == len(rows) * max(len(row.ids) for row in rows) * TINY.vocabulary
