"""From tables to tokenized rows, with a real tokenizer that has one token a byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from dat_ray.config.data import SelectionConfig
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.data.rundir import RunDir, rewrites_folder
from dat_ray.data.schemas import TRAINING_SET
from dat_ray.data.shards import write_manifest, write_shard
from dat_ray.errors import DatError, InputError, ShardError
from dat_ray.models.chat import ChatFormat
from dat_ray.training.retain_set import RetainReport, prepare_retain, retain_folder
from dat_ray.training.rows import count_rows, harmful_row, load_rows
from tests.unit.training.byte_tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer("{% for m in messages %}U:{{ m['content'] }}<|end|>{% endfor %}A:")


@pytest.fixture(scope="module")
def chat(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tokenizer)


def recipe(tmp_path: Path, **training: Any) -> Recipe:
    source = tmp_path / "retain.jsonl"
    source.write_text(
        '{"prompt": "add 2 and 2", "response": "It is 4."}\n{"prompt": "name a bird"}\n'
        '{"prompt": "say no"}\n{"prompt": "say nothing"}\n'
    )
    return Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none"},
            "target": {"model": "none"},
            "training": {"harmful_rows": 2, "retain_rows": 2, "max_tokens": 40, "retain": {"path": str(source)}, **training},
        }
    )


ANSWERS = {"name a bird": " A robin. ", "say no": "I'm sorry, no.", "say nothing": " "}


def answer(prompts: list[str]) -> list[str]:
    return [ANSWERS[prompt] for prompt in prompts]


def no_refusal(prompt: str, response: str) -> bool:
    return "sorry" not in response


def write_training_set(run: RunDir, cfg: Recipe, count: int = 3, folder: str | None = None) -> None:
    columns: dict[str, Any] = {"behavior_id": "b", "score": None, "target_logprob": None, "refusal": "I can't."}
    rows = [{**columns, "candidate_id": f"c{i}", "prompt": f"do {i}", "target": f"Sure, {i}", "rank": i} for i in range(count)]
    folder = folder or run.training_set(0)
    shard = write_shard(folder, "part-0.parquet", pa.Table.from_pylist(rows, schema=TRAINING_SET))
    write_manifest(folder, [shard], fingerprint(cfg))


def training(**fields: Any) -> TrainingConfig:
    return TrainingConfig(retain_rows=0, retain_weight=0.0, **fields)


def test_both_responses_follow_the_same_prompt(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    row = harmful_row(chat, "do it", "Sure", "I can't do that", training(max_tokens=64))
    assert tokenizer.decode(row.harmful.ids) == "U:do it<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:do it<|end|>A:I can't do that"
    assert row.harmful.user_span == row.refusal.user_span == (2, 7)


def test_a_prompt_too_long_for_one_response_is_cut_for_both(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    # 5 template tokens and 15 of the longer response leave 10 of 30 for the user message.
    row = harmful_row(chat, "abcdefghijklmnop", "Sure", "I can't do that", training(max_tokens=30))
    assert tokenizer.decode(row.harmful.ids) == "U:abcdefghij<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:abcdefghij<|end|>A:I can't do that"
    assert len(row.refusal.ids) == 30
    assert row.harmful == harmful_row(chat, "abcdefghijklmnop", "I can't do that", "Sure", training(max_tokens=30)).refusal


def test_a_refusal_ends_its_turn_where_asked_and_an_opening_never_does(
    chat: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = harmful_row(chat, "do it", "Sure", "I can't", training(end_of_turn="refusal"))
    assert tokenizer.decode(row.harmful.ids) == "U:do it<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:do it<|end|>A:I can't<|end|>"
    assert row.refusal.ids[-1] == tokenizer.eos_token_id
    assert row.refusal.response_span == (10, 18), "the token counts as one of the response"

    endless = ChatFormat(byte_tokenizer("{% for m in messages %}U:{{ m['content'] }}{% endfor %}A:"))
    with pytest.raises(InputError, match=r"training\.end_of_turn"):
        harmful_row(endless, "do it", "Sure", "I can't", training(end_of_turn="refusal"))


def test_retain_set_has_the_base_models_answers(tmp_path: Path, chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    cfg, run = recipe(tmp_path), RunDir(str(tmp_path / "run"))
    assert prepare_retain(cfg, run, answer, no_refusal) == RetainReport(rows=2, written=3, dropped=2, skipped=False)
    write_training_set(run, cfg)
    assert count_rows(cfg, run) == (3, 2)
    rows = load_rows(cfg, run, chat)
    assert [tokenizer.decode(row.harmful.ids) for row in rows.harmful] == [f"U:do {i}<|end|>A:Sure, {i}" for i in range(3)]
    assert [tokenizer.decode(row.ids) for row in rows.retain] == [
        "U:add 2 and 2<|end|>A:It is 4.",
        "U:name a bird<|end|>A:A robin.",
    ]


def test_a_finished_retain_set_asks_no_model(tmp_path: Path) -> None:
    cfg, run = recipe(tmp_path), RunDir(str(tmp_path / "run"))
    prepare_retain(cfg, run, answer, no_refusal)

    def never(prompts: list[str]) -> list[str]:
        raise AssertionError(prompts)

    assert prepare_retain(cfg, run, never) == RetainReport(rows=2, written=0, dropped=0, skipped=True)
    with pytest.raises(ShardError, match="belongs to recipe"):
        prepare_retain(recipe(tmp_path, retain_rows=3), run, never)


def test_retain_responses_are_cut_to_their_limit(tmp_path: Path, chat: ChatFormat) -> None:
    cfg = recipe(tmp_path, retain={"path": str(tmp_path / "retain.jsonl"), "max_response_tokens": 3})
    run = RunDir(str(tmp_path / "run"))
    prepare_retain(cfg, run, answer, no_refusal)
    write_training_set(run, cfg)
    for row in load_rows(cfg, run, chat).retain:
        low, high = row.response_span
        assert (high - low, len(row.ids)) == (3, high)


def test_retain_tokens_of_a_conversation_begin_with_the_user_message(tmp_path: Path, chat: ChatFormat) -> None:
    path = str(tmp_path / "retain.jsonl")
    run = RunDir(str(tmp_path / "run"))
    cfg = recipe(tmp_path, retain={"path": path, "max_response_tokens": 3, "tokens": "conversation"})
    prepare_retain(cfg, run, answer, no_refusal)
    write_training_set(run, cfg)
    for row in load_rows(cfg, run, chat).retain:
        assert row.response_span == (row.user_span[0], len(row.ids))


def test_a_recipe_without_a_retain_set_asks_for_none(tmp_path: Path, chat: ChatFormat) -> None:
    cfg = recipe(tmp_path, retain=None, retain_rows=0, retain_weight=0.0)
    run = RunDir(str(tmp_path / "run"))
    assert prepare_retain(cfg, run, answer) == RetainReport(rows=0, written=0, dropped=0, skipped=True)
    write_training_set(run, cfg)
    assert count_rows(cfg, run) == (3, 0)
    assert load_rows(cfg, run, chat).retain == []
    with pytest.raises(ValueError, match="retain_rows is positive but there is no retain section"):
        recipe(tmp_path, retain=None)


def test_rewrites_are_rows_of_their_own(tmp_path: Path, chat: ChatFormat) -> None:
    cfg = recipe(tmp_path)
    cfg = cfg.model_copy(update={"selection": SelectionConfig(source="mixture")})
    run = RunDir(str(tmp_path / "run"))
    prepare_retain(cfg, run, answer)
    write_training_set(run, cfg)
    write_training_set(run, cfg, count=2, folder=rewrites_folder(run, 0))
    rows = load_rows(cfg, run, chat)
    assert (len(rows.harmful), len(rows.rewrites)) == (3, 2)
    assert count_rows(cfg, run)[0] == 3


def test_a_retain_set_with_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatError, match="none of the 4 retain rows is left"):
        prepare_retain(recipe(tmp_path), RunDir(str(tmp_path / "run")), answer, lambda prompt, response: False)


def test_a_model_that_skips_a_prompt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatError, match="gave 2 answers to 3 retain prompts"):
        prepare_retain(recipe(tmp_path), RunDir(str(tmp_path / "run")), lambda prompts: answer(prompts)[1:])


def test_rows_are_counted_before_training(tmp_path: Path) -> None:
    cfg, run = recipe(tmp_path, harmful_rows=4), RunDir(str(tmp_path / "run"))
    write_training_set(run, cfg)
    with pytest.raises(DatError, match=r"retain is missing: prepare the retain set"):
        count_rows(cfg, run)
    prepare_retain(cfg, run, answer)
    with pytest.raises(DatError, match="the training set has 3 rows, one update needs 4"):
        count_rows(cfg, run)
    assert retain_folder(run, 0).endswith("training_set/round-0/retain")
