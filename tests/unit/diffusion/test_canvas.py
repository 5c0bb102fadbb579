from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dat_ray.diffusion.canvas import SamplerSpec, banned_ids, build_canvas, decode_prompt, unused_ids
from dat_ray.errors import InputError
from tests.unit.diffusion.tiny import LETTERS, gapped_tokenizer
from tests.unit.models.tiny import CONTROL, make_tokenizer

MASK = 3
CHAT = SamplerSpec(MASK, 1, (0, 1, 2, 3), "chat", before=(1, 4), between=(0, 2))
ANSWER = SamplerSpec(MASK, 0, (0,), "answer", answer_prefix="\nA: ")


def test_chat_canvas_in_full(tokenizer) -> None:
    canvas = build_canvas(tokenizer, CHAT, "sure", 3)
    sure = tokenizer("sure", add_special_tokens=False)["input_ids"]
    assert canvas.ids == (1, 4, 3, 3, 3, 0, 2, *sure)
    assert canvas.prompt_span == (2, 5)
    assert canvas.condition_span == (7, 11)


def test_answer_canvas_may_hide_its_prefix_too(tokenizer) -> None:
    canvas = build_canvas(tokenizer, ANSWER, "sure", 2)
    assert canvas.ids == (3, 3, *tokenizer("\nA: sure", add_special_tokens=False)["input_ids"])
    assert canvas.prompt_span == (0, 2)
    assert canvas.condition_span == (2, 10)


@pytest.mark.parametrize("spec", [CHAT, ANSWER], ids=["chat", "answer"])
def test_a_long_target_is_cut(tokenizer, spec: SamplerSpec) -> None:
    assert build_canvas(tokenizer, spec, "abcdef", 2, 4) == build_canvas(tokenizer, spec, "abcd", 2, 4)


SPELLED = make_tokenizer()
LAYOUTS = (
    SamplerSpec(0, 1, (), "chat", before=(1, 300), between=(2, 301)),
    SamplerSpec(0, 0, (), "answer", answer_prefix="\nAnswer: "),
)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(LAYOUTS),
    pieces=st.lists(st.one_of(st.text(alphabet="abc <|", max_size=6), st.sampled_from(CONTROL)), min_size=1, max_size=5),
)
def test_a_control_token_written_in_a_response_is_text_in_either_layout(spec: SamplerSpec, pieces: list[str]) -> None:
    target = "Sure" + "".join(pieces)
    canvas = build_canvas(SPELLED, spec, target, 3, 1000)
    condition = canvas.ids[slice(*canvas.condition_span)]
    assert not set(condition) & set(range(len(CONTROL))), "neither the end of a turn nor MASK"
    assert SPELLED.decode(condition) == (spec.answer_prefix if spec.layout == "answer" else "") + target
    assert canvas.ids.count(spec.mask_token_id) == 3


@pytest.mark.parametrize(("target", "masks", "field"), [("  ", 3, "target"), ("sure", 0, "prompt_tokens")])
def test_bad_rows_name_their_field(tokenizer, target: str, masks: int, field: str) -> None:
    with pytest.raises(InputError) as error:
        build_canvas(tokenizer, CHAT, target, masks)
    assert error.value.field == field


def test_bans_cover_special_tokens_the_mask_and_rows_without_a_token(tokenizer) -> None:
    last = len(tokenizer)
    assert banned_ids(tokenizer, MASK, last + 2) == (0, 1, 2, 3, last, last + 1)
    assert 7 in banned_ids(tokenizer, 7, last)


def test_bans_where_ids_have_gaps() -> None:
    """A count of the tokens says neither which ids have one nor which is the last."""
    gapped = gapped_tokenizer()
    last = max(gapped.get_vocab().values())
    assert last >= len(gapped), "the count is no id"
    unused = [*range(4, 10), 13, last + 1, last + 2]
    assert unused_ids(gapped, last + 3) == unused
    assert banned_ids(gapped, MASK, last + 3) == (0, 1, 2, 3, *unused)
    assert unused_ids(gapped, 12) == [*range(4, 10)], "an embedding with fewer rows than ids"
    for letter in LETTERS:
        (token,) = gapped(letter, add_special_tokens=False)["input_ids"]
        assert token not in banned_ids(gapped, MASK, last + 3)


def test_spec_survives_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "architectures": ["LlamaForCausalLM"]}))
    CHAT.write(tmp_path)
    assert SamplerSpec.read(tmp_path) == CHAT
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["is_causal"], config["architectures"]) == (8, False, ["DatMaskedLlama"])


def test_a_folder_that_is_no_sampler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dat_sampler"):
        SamplerSpec.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="dat_sampler"):
        SamplerSpec.read(tmp_path)
    (tmp_path / "config.json").write_text('{"dat_sampler": {"mask_token_id": 1}}')
    with pytest.raises(InputError, match="missing"):
        SamplerSpec.read(tmp_path)


def test_a_shifted_model_needs_a_token_on_the_left() -> None:
    with pytest.raises(InputError, match="before the first mask"):
        SamplerSpec(MASK, 1, (), "answer")


@given(text=st.text(alphabet="abc :.,", min_size=1, max_size=20))
def test_decoding_drops_special_tokens_and_outer_space_only(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decode_prompt(tokenizer, [1, *ids, 0]).replace(" ", "") == text.replace(" ", "")
    assert decode_prompt(tokenizer, ids) == decode_prompt(tokenizer, ids).strip()
