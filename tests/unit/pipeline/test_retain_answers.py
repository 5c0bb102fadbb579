"""The base model's answers to the retain set: asked once, and again where anything differs that answers hang on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.engines.base import Completion
from dat_ray.engines.calls import Failure
from dat_ray.errors import DatError, InputError
from dat_ray.pipeline import retain_answers
from dat_ray.pipeline.retain_answers import base_answers
from tests.unit.models.tiny import make_model, make_tokenizer

PROMPTS = ["How do I boil an egg?", "Name a bird"]


class Model:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, recipe: Recipe, prompts: list[str]) -> list[str]:
        self.asked.append(prompts)
        return [f"{prompt} {len(self.asked)}" for prompt in prompts]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(retain_answers.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def recipe(folder: Path, *changes: str) -> Recipe:
    return load_recipe("demo", [f"target.model={folder / 'model'}", *changes])


def run(folder: Path, name: str, asks: Recipe) -> RunDir:
    return open_run(str(folder / name), asks, resume=False)


def test_another_training_of_the_same_model_asks_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, asks = Model(), recipe(folder)
    first = base_answers(asks, run(folder, "one", asks), PROMPTS, model)
    assert capsys.readouterr().err == ""
    other = recipe(folder, "training.updates=3", "target.batch_size=1", "seed=4")
    assert base_answers(other, run(folder, "two", other), PROMPTS, model) == first
    assert model.asked == [PROMPTS]
    assert "the base model's 2 answers are known from an earlier training" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        ["training.retain.answer_tokens=3"],
        ["target.dtype=float32"],
        ["target.backend=torch"],
        ["target.system_prompt=Be brief"],
        ["target.max_model_len=99"],
    ],
)
def test_what_changes_answers_asks_again(folder: Path, changes: list[str]) -> None:
    model, asks = Model(), recipe(folder)
    base_answers(asks, run(folder, "one", asks), PROMPTS, model)
    other = recipe(folder, *changes)
    base_answers(other, run(folder, "two", other), PROMPTS, model)
    assert len(model.asked) == 2


def test_other_prompts_weights_packages_or_processors_ask_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asks = Model(), recipe(folder)

    def times_asked(prompts: list[str] = PROMPTS) -> int:
        base_answers(asks, run(folder, f"run-{len(list(folder.iterdir()))}", asks), prompts, model)
        return len(model.asked)

    assert [times_asked(), times_asked()] == [1, 1]
    assert times_asked(PROMPTS[::-1]) == 2
    has_bfloat16 = retain_answers.multiplies_bfloat16()
    monkeypatch.setattr(retain_answers, "multiplies_bfloat16", lambda: not has_bfloat16)
    assert times_asked() == 3
    monkeypatch.setattr(retain_answers, "version", lambda package: "0.0.1")
    assert times_asked() == 4
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=5).save_pretrained(folder / "model")
    assert times_asked() == 5
    assert times_asked() == 5


@pytest.mark.parametrize("nodes", [2, 0])
def test_a_cluster_is_asked_each_time(folder: Path, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asks = Model(), recipe(folder)
    if nodes:
        monkeypatch.setattr(retain_answers.ray, "nodes", lambda: [{"Alive": True}] * nodes)
    else:
        # One node so far of a cluster that may grow.
        monkeypatch.setenv("RAY_ADDRESS", "a.cluster:6379")
    for name in ("one", "two"):
        base_answers(asks, run(folder, name, asks), PROMPTS, model)
    assert model.asked == [PROMPTS, PROMPTS]


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-9], lambda whole: b"", lambda whole: b"PAR1" + whole[4:-30] + whole[-28:]]
)
def test_a_damaged_file_is_asked_for_again_and_mended(folder: Path, damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, asks = Model(), recipe(folder)
    base_answers(asks, run(folder, "one", asks), PROMPTS, model)
    [path] = (folder / "cache" / "answers").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = base_answers(asks, run(folder, "two", asks), PROMPTS, model)
    assert f"{path} is damaged: the base model is asked again" in capsys.readouterr().err
    assert base_answers(asks, run(folder, "three", asks), PROMPTS, model) == again
    assert len(model.asked) == 2


def test_what_failed_is_not_kept(folder: Path) -> None:
    def fail(recipe: Recipe, prompts: list[str]) -> list[str]:
        raise RuntimeError("no engine")

    asks, model = recipe(folder), Model()
    with pytest.raises(RuntimeError, match="no engine"):
        base_answers(asks, run(folder, "one", asks), PROMPTS, fail)
    base_answers(asks, run(folder, "two", asks), PROMPTS, model)
    assert model.asked == [PROMPTS]


class ShortSighted:
    """An engine that refuses a whole call for one prompt that it has no room for."""

    def complete(self, prompts: list[str], tokens: int) -> list[Completion]:
        for prompt in prompts:
            if len(prompt) > 20:
                raise InputError("target.max_model_len", 20, f"a prompt takes {len(prompt)} tokens: raise it")
        return [Completion(prompt.upper(), tokens, True) for prompt in prompts]


def asked(_: Recipe, prompts: list[str]) -> list[str | Failure]:
    return retain_answers._complete(4, ShortSighted(), prompts)


def test_a_prompt_that_is_too_long_is_left_out_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["short", "x" * 30, *map(str, range(18))]
    asks = recipe(folder)
    for name in ("one", "two"):  # an answer that is missing is not kept
        found = base_answers(asks, run(folder, name, asks), prompts, asked)
        assert found == ["SHORT", "", *map(str, range(18))]
        said = capsys.readouterr().err
        assert "1 of 20 prompts have no answer and are left out; the first: InputError: target.max_model_len = 20" in said


def test_more_failures_than_allowed_end_it_and_can_be_allowed(folder: Path) -> None:
    prompts, asks = ["short", "x" * 30], recipe(folder)
    with pytest.raises(
        DatError, match=r"1 of 2 retain prompts .* generation.max_error_rate = 0.05 allows 0; the first: .*30 tok"
    ):
        base_answers(asks, run(folder, "one", asks), prompts, asked)
    more = recipe(folder, "generation.max_error_rate=0.5")
    assert base_answers(more, open_run(str(folder / "one"), more, resume=True), prompts, asked) == ["SHORT", ""]
