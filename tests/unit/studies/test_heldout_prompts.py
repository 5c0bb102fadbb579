"""What of a second sampler's prompts becomes a file, and how that sampler is made."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

import dat_ray
from dat_ray.config.adapt import AdaptRecipe, load_adapt_config
from dat_ray.config.evaluation import PromptFile
from dat_ray.data.prompt_files import match_prompts, read_prompts

STUDIES = Path(dat_ray.__file__).parents[1] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("heldout_prompts")


def drawn(behavior: str, *prompts: tuple[str, float]) -> list[dict[str, object]]:
    return [
        {"behavior_id": behavior, "goal": f"goal {behavior}", "target": "Sure", "prompt": prompt, "goal_similarity": cosine}
        for prompt, cosine in prompts
    ]


def test_the_first_prompts_on_the_goal_are_kept_each_once(study: ModuleType) -> None:
    many = [(f"prompt {index}", 0.7) for index in range(9)]
    rows = drawn("a", ("off", 0.64), ("on ", 0.65), ("on", 0.9), *many) + drawn("b", ("off", 0.1))
    lines = study.kept(rows)
    assert [line["prompt"] for line in lines] == ["on", "prompt 0", "prompt 1", "prompt 2"]
    assert {line["id"] for line in lines} == {"a"}
    assert lines[0]["similarity"] == 0.65


def test_the_file_has_the_rows_that_the_attack_reads(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int]] = []

    def draw(settings: list[str], samples: int) -> list[dict[str, object]]:
        asked.append((settings, samples))
        return drawn("a", ("on", 0.8)) + drawn("b", ("off", 0.1))

    monkeypatch.setattr(study, "draw", draw)
    study.main("sampler", str(tmp_path / "out.jsonl"))
    read = read_prompts(PromptFile(path=str(tmp_path / "out.jsonl")), "evaluation.prompts.0")
    [row] = match_prompts(read, {"a": "goal a", "b": "goal b"}).by_behavior["a"]
    assert (row.prompt, row.goal) == ("on", "goal a")
    [(settings, samples)] = asked
    assert "sampler.model=sampler" in settings
    assert samples == study.DRAWN


def test_the_second_sampler_shares_neither_seeds_nor_openers_with_the_shipped_one() -> None:
    def openers(recipe: AdaptRecipe) -> set[str]:
        return {*recipe.synthesis.prompt_openers, *recipe.synthesis.response_openers} - {""}

    shipped, second = (
        load_adapt_config("smollm2-135m-infill"),
        load_adapt_config(str(STUDIES / "demo-arms" / "heldout-sampler.yaml")),
    )
    assert openers(shipped) & openers(second) == set()
    assert second.synthesis.seed != shipped.synthesis.seed
    assert second.training.seed != shipped.training.seed
    assert second.canvas_opening == shipped.canvas_opening
