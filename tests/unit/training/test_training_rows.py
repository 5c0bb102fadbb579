"""From tables to tokenized rows, with a real tokenizer that has one token a byte."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dat_ray.config.data import SelectionConfig
from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.data.rundir import RunDir, rewrites_folder
from dat_ray.data.schemas import RETAIN, TRAINING_SET
from dat_ray.data.shards import write_manifest, write_shard
from dat_ray.errors import DatError, InputError, ShardError
from dat_ray.models.chat import ChatFormat
from dat_ray.training.counts import ResponseCount, TableCount, read_counts, sentences, write_counts
from dat_ray.training.retain_set import RetainReport, prepare_retain, retain_folder
from dat_ray.training.training_rows import count_rows, encode_retain, harmful_row, load_rows
from tests.unit.training.byte_tokenizer import ENDLESS, TURNS, byte_tokenizer

TOKENIZER = byte_tokenizer(TURNS)
CHAT = ChatFormat(TOKENIZER)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return TOKENIZER


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return CHAT


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


def write_table(run: RunDir, cfg: Recipe, rows: list[dict[str, Any]], *, retain: bool = False, folder: str | None = None) -> None:
    """A training set, or a retain set, of these rows."""
    columns: dict[str, Any] = {"behavior_id": "b", "score": None, "target_logprob": None, "rank": 0}
    columns = {"source": "t"} if retain else columns
    folder = folder or (retain_folder(run, 0) if retain else run.training_set(0))
    table = pa.Table.from_pylist([{**columns, **row} for row in rows], schema=RETAIN if retain else TRAINING_SET)
    write_manifest(folder, [write_shard(folder, "part-0.parquet", table)], fingerprint(cfg))


def attacked(identifier: str, prompt: str, target: str = "Sure", refusal: str = "I can't.") -> dict[str, Any]:
    return {"candidate_id": identifier, "prompt": prompt, "target": target, "refusal": refusal}


def training(**fields: Any) -> TrainingConfig:
    return TrainingConfig(retain_rows=0, retain_weight=0.0, **fields)


def test_both_responses_follow_the_same_prompt(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    row = harmful_row(chat, "do it", "Sure", "I can't do that", training(max_tokens=64))
    assert row is not None
    assert tokenizer.decode(row.harmful.ids) == "U:do it<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:do it<|end|>A:I can't do that"
    assert row.harmful.user_span == row.refusal.user_span == (2, 7)


def test_a_response_too_long_for_the_room_behind_its_prompt_loses_its_end(
    chat: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    # 5 template tokens and 16 of the prompt leave 9 of 30 for either response.
    row = harmful_row(chat, "abcdefghijklmnop", "Sure", "I can't do that", training(max_tokens=30))
    assert row is not None
    assert tokenizer.decode(row.harmful.ids) == "U:abcdefghijklmnop<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:abcdefghijklmnop<|end|>A:I can't d"
    assert (len(row.refusal.ids), row.refusal.beyond_room, row.harmful.beyond_room) == (30, 6, 0)
    # With one token less of room than eight the row goes, however short its responses are.
    assert harmful_row(chat, "abcdefghijklmnopq", "Sure", "No", training(max_tokens=30)) is not None
    assert harmful_row(chat, "abcdefghijklmnopqr", "Sure", "No", training(max_tokens=30)) is None


def test_a_refusal_that_is_cut_does_not_end_its_turn(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    row = harmful_row(chat, "do it", "Sure", "I can't do that", training(max_tokens=20, end_of_turn="refusal"))
    assert row is not None
    assert tokenizer.decode(row.refusal.ids) == "U:do it<|end|>A:I can't do"
    assert row.refusal.beyond_room == len(" that") + 1


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(min_size=1, max_size=30).filter(str.strip),
    target=st.text(min_size=1, max_size=40).filter(str.strip),
    refusal=st.text(min_size=1, max_size=40).filter(str.strip),
    max_tokens=st.integers(14, 80),
    closed=st.booleans(),
)
def test_both_rows_of_a_prompt_hold_it_whole(prompt: str, target: str, refusal: str, max_tokens: int, closed: bool) -> None:
    cfg = training(max_tokens=max_tokens, end_of_turn="refusal" if closed else "none")
    row = harmful_row(CHAT, prompt, target, refusal, cfg)
    # A token a byte: the lengths are known without the encoder.
    before = 5 + len(prompt.encode())
    if max_tokens - before < 8:
        assert row is None
        return
    assert row is not None
    texts = [target.encode(), refusal.encode() + (b"<|end|>" if closed else b"")]
    for half, text in zip((row.harmful, row.refusal), texts, strict=True):
        assert len(half.ids) <= max_tokens
        assert half.ids[:before] == CHAT.prompt_ids(prompt)
        assert half.response_span == (before, len(half.ids))
        said = TOKENIZER.decode(half.ids[before:]).encode()
        kept = len(half.ids) - before
        whole = len(TOKENIZER(text.decode()).input_ids)
        assert kept == min(whole, max_tokens - before)
        assert half.beyond_room == whole - kept
        assert kept < whole or said == text


@pytest.mark.parametrize("closed", ["none", "refusal", "retain", "all"])
def test_the_responses_that_are_named_end_their_turn(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast, closed: str) -> None:
    cfg = training(end_of_turn=closed, retain={"path": "x"})
    row = harmful_row(chat, "do it", "Sure", "I can't", cfg)
    [kept], _ = encode_retain(chat, [{"retain_id": "r", "prompt": "sum", "response": "two"}], cfg)
    assert row is not None
    said = [tokenizer.decode(one.ids).endswith("<|end|>") for one in (row.harmful, row.refusal, kept)]
    assert said == [closed == "all", closed in ("refusal", "all"), closed in ("retain", "all")]
    # The token counts as one of the response, which is trained on.
    assert kept.response_span[1] == len(kept.ids)
    assert tokenizer.decode(kept.ids) == "U:sum<|end|>A:two" + ("<|end|>" if said[2] else "")


def test_a_refusal_ends_its_turn_where_asked_and_an_opening_never_does(
    chat: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = harmful_row(chat, "do it", "Sure", "I can't", training(end_of_turn="refusal"))
    assert row is not None
    assert tokenizer.decode(row.harmful.ids) == "U:do it<|end|>A:Sure"
    assert tokenizer.decode(row.refusal.ids) == "U:do it<|end|>A:I can't<|end|>"
    assert row.refusal.ids[-1] == tokenizer.eos_token_id
    assert row.refusal.response_span == (10, 18), "the token counts as one of the response"

    endless = ChatFormat(byte_tokenizer(ENDLESS))
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
    retain = load_rows(cfg, run, chat).retain
    assert len(retain) == 2
    for row in retain:
        low, high = row.response_span
        assert (high - low, len(row.ids)) == (3, high)


def test_retain_tokens_of_a_conversation_begin_with_the_user_message(tmp_path: Path, chat: ChatFormat) -> None:
    path = str(tmp_path / "retain.jsonl")
    run = RunDir(str(tmp_path / "run"))
    cfg = recipe(tmp_path, retain={"path": path, "max_response_tokens": 3, "tokens": "conversation"})
    prepare_retain(cfg, run, answer, no_refusal)
    write_training_set(run, cfg)
    retain = load_rows(cfg, run, chat).retain
    assert len(retain) == 2
    for row in retain:
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


# Eight tokens of template, as many as a chat template has where a letter is a token.
EIGHT = ChatFormat(byte_tokenizer(TURNS.replace("U:", "U: ").replace("A:", "Ans:")))


@pytest.mark.parametrize(("response_limit", "kept", "beyond_limit", "beyond_room"), [(None, 88, 72, 40), (8, 8, 192, 0)])
def test_a_published_recipe_keeps_a_retain_prompt_whole(
    tmp_path: Path, response_limit: int | None, kept: int, beyond_limit: int, beyond_room: int
) -> None:
    # 128 tokens, of which the template takes 8 and a request 32: 88 are left for an answer of 200.
    published = load_recipe("dat-llama3-8b").training
    assert published.retain is not None
    retain = published.retain.model_copy(update={"path": "none"})
    if response_limit is not None:
        retain = retain.model_copy(update={"max_response_tokens": response_limit})
    cfg = recipe(tmp_path, max_tokens=published.max_tokens, retain=retain.model_dump(), retain_rows=1)
    run = RunDir(str(tmp_path / "run"))
    write_table(run, cfg, [attacked(f"c{i}", "do it") for i in range(2)])
    write_table(run, cfg, [{"retain_id": "r", "prompt": "q" * 32, "response": "a" * 200}], retain=True)
    rows = load_rows(cfg, run, EIGHT)
    [row] = rows.retain
    assert row.user_span == (3, 35)
    assert row.response_span == (40, 40 + kept)
    assert len(row.ids) == 40 + kept
    assert (row.beyond_limit, row.beyond_room) == (beyond_limit, beyond_room)
    assert rows.counts["retain"].responses["response"] == ResponseCount(1, int(beyond_room > 0), 200, kept)


def test_contextual_refusals_are_cut_and_prompts_of_64_tokens_kept(public_data: Path) -> None:
    # The longer refusals have 70 tokens in the mean, here some 4 letters each; a prompt is as many tokens.
    with (public_data / "harmbench" / "adv_training_behaviors_safe_responses_longer.csv").open(encoding="utf-8") as stream:
        refusals = [row["Safe_Response"] for row in csv.DictReader(stream)]
    assert len(set(refusals)) == 100
    cfg = training(max_tokens=4 * 128)
    rows = [harmful_row(EIGHT, "p" * 256, "Sure, here is", refusal, cfg) for refusal in refusals]
    assert all(row is not None and row.harmful.user_span == row.refusal.user_span == (3, 259) for row in rows)
    cut = [row for row in rows if row is not None and row.refusal.beyond_room]
    assert len(cut) > 50, "most do not fit beside such a prompt"
    assert all(len(row.refusal.ids) == 512 for row in cut)


def test_rows_without_room_are_left_out_counted_and_named(tmp_path: Path) -> None:
    cfg, run = recipe(tmp_path, max_tokens=40), RunDir(str(tmp_path / "run"))
    # 5 tokens of template leave room for prompts of 27.
    long = ["x" * length for length in (27, 28, 35, 200)]
    write_table(run, cfg, [attacked(f"c{i}", text, refusal="no " * 10) for i, text in enumerate(["do it", *long])])
    texts = [("add 2 and 2", "It is 4."), ("y" * 30, "4"), ("name a bird", "A robin, " * 9)]
    write_table(run, cfg, [{"retain_id": f"r{i}", "prompt": p, "response": r} for i, (p, r) in enumerate(texts)], retain=True)
    assert count_rows(cfg, run) == (5, 3), "manifests know of no tokens"
    rows = load_rows(cfg, run, CHAT)
    assert [TOKENIZER.decode(row.harmful.ids) for row in rows.harmful] == ["U:do it<|end|>A:Sure", f"U:{long[0]}<|end|>A:Sure"]
    assert (len(rows.retain), [len(row.ids) for row in rows.retain]) == (2, [24, 40])
    assert rows.counts == {
        "harmful": TableCount(
            5, ("c2", "c3", "c4"), {"target": ResponseCount(0, 0, 8, 8), "refusal": ResponseCount(0, 1, 60, 38)}, 40, 8
        ),
        "retain": TableCount(3, ("r1",), {"response": ResponseCount(1, 1, 89, 32)}, 40, 8),
    }
    write_counts(str(tmp_path), rows.counts)
    assert read_counts(str(tmp_path)) == rows.counts
    assert sentences(rows.counts) == [
        "harmful rows: 2, prompts whole; no target cut, refusals cut: 1 to the room behind the prompt "
        "(63% of their tokens kept); 3 of 5 left out, whose prompts leave no room for 8 response tokens in 40 (c2, c3, c4)",
        "retain rows: 2, prompts whole; responses cut: 1 to max_response_tokens and 1 to the room behind the prompt "
        "(36% of their tokens kept); 1 of 3 left out, whose prompts leave no room for 8 response tokens in 40 (r1)",
    ]


@pytest.mark.parametrize("table", ["harmful", "rewrites", "retain"])
def test_too_few_rows_with_room_are_named_with_what_to_change(tmp_path: Path, table: str) -> None:
    cfg, run = recipe(tmp_path, max_tokens=40), RunDir(str(tmp_path / "run"))
    cfg = cfg.model_copy(update={"selection": SelectionConfig(source="mixture")})
    write_training_set(run, cfg)
    write_training_set(run, cfg, folder=rewrites_folder(run, 0))
    write_table(run, cfg, [{"retain_id": f"r{i}", "prompt": "add 1", "response": "2"} for i in range(3)], retain=True)
    assert len(load_rows(cfg, run, CHAT).rewrites) == 3
    too_long = [attacked(f"c{i}", "x" * 50) for i in range(5)]
    if table == "retain":
        write_table(run, cfg, [{"retain_id": f"c{i}", "prompt": "x" * 50, "response": "2"} for i in range(5)], retain=True)
    elif table == "harmful":
        write_table(run, cfg, [*too_long[:4], attacked("c4", "do it")])
    else:
        write_table(run, cfg, too_long, folder=rewrites_folder(run, 0))
    count_rows(cfg, run)
    with pytest.raises(InputError) as error:
        load_rows(cfg, run, CHAT)
    assert (error.value.field, error.value.value) == ("training.max_tokens", 40)
    lost, left = (4, 1) if table == "harmful" else (5, 0)
    assert f"{lost} of 5 left out" in str(error.value)
    assert "(c0, c1, c2, ...)" in str(error.value)
    field = "retain_rows" if table == "retain" else "harmful_rows"
    assert f"{left} are left and an update needs 2: raise it, or lower training.{field}" in str(error.value)


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
