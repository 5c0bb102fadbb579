from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from dat_ray.bench import fp8 as bench
from dat_ray.bench import sampler
from dat_ray.bench.sampler import Counting
from dat_ray.bench.verb import KEYS
from dat_ray.cli import main
from dat_ray.diffusion.backbone import bidirectional_mask
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.likelihood import masked_positions
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder

TINY = sampler.SamplerShape(1, 32, 2, 48, 300, True, 0.3, (4, 9), (3, 30), 3, 6, 4, torch.float32)
SPEC = SamplerSpec(5, 1, (0, 5), "chat", before=(7,))


def test_speed_and_words_of_a_shape(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sampler.SHAPES, "cpu", TINY)
    assert main(["bench", "fp8", "--shape", "cpu", "--rows", "5", "--repeats", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(found)
    assert "5 rows, 3 steps" in found["shape"]
    assert "7 layers, 99% of their parameters, in 8 bits" in found["shape"]
    assert found["rows_per_s"] > 0
    assert 0 <= found["tokens_equal"] <= 1
    assert found["rows_equal"] <= 5
    # Random weights, and still most predictions stay.
    assert found["drift"]["same"] > 0.5
    assert 0 < found["drift"]["confidence"] < found["drift"]["confidence_95"]
    assert 0 < found["drift"]["divergence"] < 0.5
    assert "GPU" in found["not_measured"]


def test_words_of_a_recipes_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    folder = save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "sampler")
    SamplerSpec(1, 0, (0, 1), "answer").write(folder)
    settings = [f"model={folder}", "layout=answer", "prompt_tokens=[3, 5]", "steps=3", "dtype=float32", "guidance=0.0"]
    options = [word for setting in settings for word in ("--set", f"sampler.{setting}")]
    assert main(["bench", "fp8", "--rows", "4", "--repeats", "1", "--threads", "1", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"].startswith(f"{folder}: 4 rows, 3 steps")
    # Each of 4 prompts of 3 or 5 masks, at four sets of them.
    lengths = [3, 5, 3, 5]
    places = [len(masked_positions(i, level, 4, (0, n))) for i, n in enumerate(lengths) for level in range(4)]
    assert found["drift"]["tokens"] == sum(places)


@pytest.mark.parametrize("option", ["--rows=0", "--steps=0", "--threads=0", "--repeats=0"])
def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["bench", "fp8", option]) == 2
    assert capsys.readouterr().err.startswith(f"dat bench: {option.partition('=')[0]} = 0: give at least 1")


def canvas(seed: int) -> Canvas:
    ids = torch.randint(8, 300, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Canvas((7, *ids), (1, 7), (7, 13))


def test_a_model_has_not_drifted_from_itself() -> None:
    models = [sampler.build(TINY, torch.device("cpu")) for _ in range(2)]
    first, second = (Counting(model, SPEC, Law(2), 4) for model in models)
    found = bench.drift(first, second, [canvas(0), canvas(1)])
    assert (found.same, found.confidence, found.confidence_95, found.divergence) == (1.0, 0.0, 0.0, 0.0)


@torch.no_grad()
def test_drift_is_what_plain_numbers_say() -> None:
    """Row by row with transformers' own attention, in Python's numbers."""
    models = [sampler.build(TINY, torch.device("cpu")) for _ in range(2)]
    generator = torch.Generator().manual_seed(9)
    for parameter in models[1].parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    rows = [canvas(3), canvas(4)]

    def predicted(model: object, ids: list[int]) -> list[list[float]]:
        assert isinstance(model, LlamaForCausalLM)
        model.set_attn_implementation("eager")
        valid = torch.ones(1, len(ids), dtype=torch.bool)
        seen = torch.where(bidirectional_mask(valid), 0.0, -torch.inf)
        logits = model(torch.tensor([ids]), attention_mask=seen).logits[0].double().tolist()
        return [[-math.inf if token in (0, 5) else value for token, value in enumerate(row)] for row in logits]

    same, changes, divergences = [], [], []
    for seed, row in enumerate(rows):
        for level in range(bench.LEVELS):
            places = masked_positions(seed, level, bench.LEVELS, row.prompt_span)
            ids = [5 if i in places else token for i, token in enumerate(row.ids)]
            both = [predicted(model, ids) for model in models]
            for place in places:
                before, after = (
                    [value - math.log(sum(map(math.exp, logits[place - 1]))) for value in logits[place - 1]] for logits in both
                )
                best = before.index(max(before))
                same.append(best == after.index(max(after)))
                changes.append(abs(before[best] - after[best]))
                pairs = zip(before, after, strict=True)
                divergences.append(sum(math.exp(b) * (b - a) for b, a in pairs if b > -math.inf))
    found = bench.drift(*(Counting(model, SPEC, Law(2), 4) for model in models), rows)
    assert found.tokens == len(same)
    assert 0 < found.same < 1
    assert found.same == pytest.approx(sum(same) / len(same))
    assert found.confidence == pytest.approx(sum(changes) / len(changes), rel=1e-4)
    assert found.divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert max(changes) >= found.confidence_95 >= sorted(changes)[len(changes) // 2]
