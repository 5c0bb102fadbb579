from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dat_ray.config.adapt import PairsConfig
from dat_ray.diffusion.pairs import (
    ChatSegments,
    EncodedPair,
    batch_indices,
    encode_pairs,
    other_responses,
    read_pairs,
    split_pairs,
)
from dat_ray.errors import InputError
from tests.unit.models.tiny import CONTROL, make_tokenizer

SEGMENTS = ChatSegments((1, 4), (0, 2))


def pair(prompt: str, response: str = "ok") -> dict[str, str]:
    return {"prompt": prompt, "response": response}


def test_reading_maps_columns_of_any_table_and_names_a_bad_row(tmp_path: Path) -> None:
    rows = [pair("a"), pair("b", "fine")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"index": 4, **row}) + "\n" for row in rows))
    assert read_pairs(str(tmp_path / "pairs.jsonl"), PairsConfig()) == rows
    assert read_pairs(str(tmp_path / "pairs.jsonl"), PairsConfig(limit=1)) == rows[:1]
    (tmp_path / "table.csv").write_text("question,answer\na,ok\nb,fine\n")
    named = PairsConfig(prompt="question", response="answer")
    assert read_pairs(str(tmp_path / "table.csv"), named) == rows
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["ok", "fine"]}), tmp_path / "table.parquet")
    assert read_pairs(str(tmp_path / "table.parquet"), named) == rows
    with pytest.raises(InputError, match=r"no column 'prompt', only 'question', 'answer': set pairs\.prompt"):
        read_pairs(str(tmp_path / "table.csv"), PairsConfig())
    (tmp_path / "bad.jsonl").write_text(json.dumps(pair("a")) + "\n" + json.dumps({"prompt": "b", "response": 3}) + "\n")
    with pytest.raises(InputError, match=r"row 2 .* has a response that is no text"):
        read_pairs(str(tmp_path / "bad.jsonl"), PairsConfig())
    for name, row in {"prompt": pair(" ", "ok"), "response": pair("b", "")}.items():
        (tmp_path / "bad.jsonl").write_text(json.dumps(pair("a")) + "\n" + json.dumps(row) + "\n")
        with pytest.raises(InputError, match=rf"^--pairs = .*row 2 \(line 2\) of bad\.jsonl has an empty {name}: fill it in"):
            read_pairs(str(tmp_path / "bad.jsonl"), PairsConfig())


def test_split_never_divides_a_prompt_and_drops_copies() -> None:
    pairs = [pair(f" Prompt {k % 200}", f"answer {k % 600}") for k in range(2000)]
    pairs += [pair(f"prompt  {k}", "another answer") for k in range(200)]  # same prompts in other letters and spaces
    train, heldout = split_pairs(pairs, 0.25, rows_per_prompt=3)
    prompts = [{" ".join(row["prompt"].lower().split()) for row in side} for side in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 200
    assert 25 < len(prompts[1]) < 75
    assert set(Counter(row["prompt"].lower() for row in train + heldout).values()) == {3}
    assert len({tuple(row.values()) for row in train + heldout}) == len(train + heldout) == 600


def test_a_prompt_falls_on_the_same_side_whatever_else_there_is() -> None:
    alone = {p: bool(split_pairs([pair(p)], 0.5)[1]) for p in map(str, range(40))}
    assert 0 < sum(alone.values()) < 40
    _, heldout = split_pairs([pair(p) for p in alone], 0.5)
    assert {row["prompt"] for row in heldout} == {p for p, held in alone.items() if held}


def test_empty_texts_are_dropped() -> None:
    assert split_pairs([pair("  "), pair("a", " ")]) == ([], [])


def test_encoding_in_full(tokenizer) -> None:
    (row,) = encode_pairs(tokenizer, SEGMENTS, [pair("abc", "sure")], max_response=3)
    abc, sur = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("abc", "sur"))
    assert row.ids == (1, 4, *abc, 0, 2, *sur)
    assert (row.prompt, row.response) == (abc, sur)
    assert (row.prompt_span, row.response_span) == ((2, 5), (7, 10))


def test_a_long_prompt_is_left_out_rather_than_cut(tokenizer) -> None:
    rows = encode_pairs(tokenizer, SEGMENTS, [pair("abcd"), pair("abcde"), pair("a", "")], max_prompt=4)
    assert [len(row.prompt) for row in rows] == [4]
    assert encode_pairs(tokenizer, SEGMENTS, []) == []


def test_a_control_token_written_in_a_pair_is_text() -> None:
    tokenizer = make_tokenizer()
    texts = pair("What does <|im_end|> mean?", "<|im_start|> begins a turn, <|im_end|> ends it.")
    [row] = encode_pairs(tokenizer, ChatSegments((1,), (2,)), [texts], max_prompt=100, max_response=100)
    assert [tokenizer.decode(list(ids)) for ids in (row.prompt, row.response)] == list(texts.values())
    assert not set(range(len(CONTROL))) & {*row.prompt, *row.response}


def test_segments_need_a_token_on_the_left(tokenizer) -> None:
    with pytest.raises(InputError, match="first prompt token"):
        encode_pairs(tokenizer, ChatSegments((), (0,)), [pair("a")])


def encoded(prompt: int, response: int) -> EncodedPair:
    return EncodedPair((1, prompt, 0, response), (1, 2), (3, 4))


def test_other_responses_belong_to_other_prompts() -> None:
    rows = [encoded(10, 20), encoded(10, 21), encoded(11, 20), encoded(12, 22)]
    assert [row.response for row in other_responses(rows)] == [(22,), (20,), (22,), (20,)]
    assert [row.prompt for row in other_responses(rows)] == [row.prompt for row in rows]
    with pytest.raises(InputError, match="different"):
        other_responses([encoded(10, 20), encoded(10, 21)])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 6), pools=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_steps_walk_through_whole_epochs(n: int, size: int, pools: int, seed: int) -> None:
    lengths = [7 * k % 11 for k in range(n)]
    pool = size * pools
    steps = pools * -(-3 * n // pool)
    seen = [row for step in range(steps) for row in batch_indices(lengths, size, pools, seed, step)]
    counts = Counter(seen)
    assert len(seen) == steps * size
    assert max(counts.values()) - min(counts.get(row, 0) for row in range(n)) <= 1


def test_batches_are_functions_of_seed_and_step_and_waste_little_padding() -> None:
    lengths = [10 + 37 * k % 41 for k in range(500)]
    batches = [batch_indices(lengths, 8, 8, 3, step) for step in range(60)]
    assert batch_indices(lengths, 8, 8, 3, 41) == batches[41]
    assert batch_indices(lengths, 8, 8, 4, 41) != batches[41]
    real = sum(lengths[row] for batch in batches for row in batch)
    padded = sum(8 * max(lengths[row] for row in batch) for batch in batches)
    assert padded / real < 1.12  # unsorted batches of these lengths: about 1.5
    shortest = [min(lengths[row] for row in batch) for batch in batches[:8]]
    assert shortest != sorted(shortest)
