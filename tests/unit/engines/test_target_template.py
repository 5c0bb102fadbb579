"""What both backends of a target read and write, on tokenizers that put a space before a text's first word."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GenerationConfig

from dat_ray.config.models import TargetConfig
from dat_ray.engines.target_text import TargetText
from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat
from tests.unit.models.tiny import CHATML, CONTROL, make_model, make_tokenizer, save_folder
from tests.unit.models.tokenizers_of_kinds import FORMS, make_kind


def target(folder: Path, form: str, kind: str = "normalizer", **fields: object) -> TargetText:
    tokenizer = make_kind(kind, FORMS[form])
    save_folder(make_model(len(tokenizer)), tokenizer, folder)
    return TargetText(TargetConfig(model="m", **fields), str(folder))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["normalizer", "legacy", "first"])
def test_an_answer_goes_on_with_its_beginning(tmp_path: Path, form: str, kind: str) -> None:
    text = target(tmp_path, form, kind)
    for prefill, rest in (("Sure, here", " you are"), ("12", "2 of them"), ("", "Sure, here")):
        [begun] = text.prompt_ids(["How are you?"], [prefill])
        [whole] = text.prompt_ids(["How are you?"], [prefill + rest])
        assert whole[: len(begun)] == begun
        answer = whole[len(begun) :]
        assert text.completion(answer, prefill).text == rest
        assert text.completion([*answer, text.stop_ids[0]], prefill).text == rest


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_is_stored_is_read_again_as_the_same_tokens(tmp_path: Path, form: str) -> None:
    text = target(tmp_path, form)
    for answer in ("Sure, here you are", " and a space", "\n- one\n- two", "12"):
        [prompt] = text.prompt_ids(["How are you?"])
        [row] = text.scored(["How are you?"], [answer])
        assert row.ids[: row.response_span[0]] == prompt
        generated = row.ids[slice(*row.response_span)]
        assert text.completion(generated).text == answer


def test_generation_stops_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    # Neither the tokenizer nor the generation config names the template's token.
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "<empty_output>"))
    model = make_model(len(tokenizer))
    save_folder(model, tokenizer, tmp_path)
    GenerationConfig(eos_token_id=[0]).save_pretrained(tmp_path)
    text = TargetText(TargetConfig(model="m"), str(tmp_path))
    end = CONTROL.index("<empty_output>")
    assert end not in (tokenizer.eos_token_id, 0)
    assert text.stop_ids == (tokenizer.eos_token_id, 0, end)
    assert text.pad_id == tokenizer.eos_token_id
    assert text.completion([*tokenizer("Sure").input_ids, end]).finished


def test_a_recipes_template_options_and_date_reach_the_prompt(tmp_path: Path) -> None:
    loud = "{% if loud %}LOUD {% endif %}{{ strftime_now('%Y') if strftime_now is defined }} " + CHATML
    tokenizer = make_tokenizer(None)
    save_folder(make_model(len(tokenizer)), tokenizer, tmp_path)
    with pytest.raises(InputError, match=r"target.model = .* has no chat template"):
        TargetText(TargetConfig(model="m"), str(tmp_path))
    settings = {"chat_template": loud, "template_options": {"loud": True}, "template_date": "2019-01-01"}
    text = TargetText(TargetConfig(model="m", **settings), str(tmp_path))
    prompt = tokenizer.decode(text.prompt_ids(["hi"])[0])
    assert prompt == "LOUD 2019 <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    trained = ChatFormat(tokenizer, TargetConfig(model="m", **settings))
    assert trained.prompt_ids("hi") == text.prompt_ids(["hi"])[0], "training and serving read one text"
