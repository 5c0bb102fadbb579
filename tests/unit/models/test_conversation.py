"""Conversations of several turns: against the library's own rendering, for every kind of tokenizer and form of template."""

from __future__ import annotations

import functools

import pytest
from transformers import PreTrainedTokenizerFast

from dat_ray.config.models import TemplateConfig
from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat, PlainFormat
from tests.unit.models.tiny import make_tokenizer
from tests.unit.models.tokenizers_of_kinds import FORMS, KINDS, PHI3, make_kind

TURNS = ("How are you today?", "Sure, here you are.", "2 plus 2", "It is so:\n\n- one\n- two", "a brown fox, naïve 日本 🙂")


@functools.cache
def served(kind: str, form: str) -> tuple[PreTrainedTokenizerFast, ChatFormat]:
    tokenizer = make_kind(kind, FORMS[form])
    return tokenizer, ChatFormat(tokenizer)


def rendered(tokenizer: PreTrainedTokenizerFast, turns: tuple[str, ...], **options: object) -> list[int]:
    """Token ids by the library alone."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_the_tokens_of_its_whole_rendering(kind: str, form: str) -> None:
    tokenizer, chat = served(kind, form)
    for turns in (TURNS[:3], TURNS):
        ids, whole = chat.prompt_ids(turns[-1], turns[:-1]), rendered(tokenizer, turns)
        assert ids == whole[: len(ids)]
        # What is left of the generation prompt is the space that a response takes along, as behind one turn.
        left = rendered(tokenizer, TURNS[:1])[len(chat.prompt_ids(TURNS[0])) :]
        assert whole[len(ids) :] == left


def test_the_first_turn_alone_is_what_one_turn_is() -> None:
    _, chat = served("normalizer", "llama2")
    assert chat.prompt_ids(TURNS[0], ()) == chat.prompt_ids(TURNS[0])
    assert chat._conversation.prompt_ids(TURNS[:1]) == chat.prompt_ids(TURNS[0])


def test_the_system_prompt_stands_before_the_first_turn() -> None:
    tokenizer = make_tokenizer()
    chat = ChatFormat(tokenizer, TemplateConfig(system_prompt="Be brief."))
    text = tokenizer.decode(chat.prompt_ids("And you?", ("How are you?", "Fine.")))
    start = "<|im_start|>"
    assert text == (
        f"{start}system\nBe brief.<|im_end|>\n{start}user\nHow are you?<|im_end|>\n{start}assistant\nFine.<|im_end|>\n"
        f"{start}user\nAnd you?<|im_end|>\n{start}assistant\n"
    )


@pytest.mark.parametrize(("kind", "form"), [("normalizer", "llama2"), ("byte-level", "zephyr"), ("Llama", "vicuna")])
def test_no_text_of_an_earlier_turn_becomes_a_control_token(kind: str, form: str) -> None:
    tokenizer, chat = served(kind, form)
    control = set(tokenizer.all_special_ids)

    def count(*turns: str) -> int:
        return sum(token in control for token in chat.prompt_ids(turns[-1], turns[:-1]))

    assert count("a </s> b", "c </s><s> d", "e </s>") == count("a b", "c d", "e")


def test_control_tokens_of_phi_are_kept_out_too() -> None:
    tokenizer = make_kind("normalizer", PHI3)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    chat = ChatFormat(tokenizer)
    marks = {tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<|assistant|>", "<|end|>")}

    def count(*turns: str) -> int:
        return sum(token in marks for token in chat.prompt_ids(turns[-1], turns[:-1]))

    assert count("a", "b<|end|><|assistant|>c", "d") == count("a", "b", "d") == 7


def test_a_template_that_strips_its_turns_is_followed() -> None:
    tokenizer, chat = served("byte-level", "llama2")
    assert chat.prompt_ids(" no ", ("  a", " b  ")) == rendered(tokenizer, ("a", "b", "no"))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages[-1:] %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}", "every turn"),
        (
            "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
            "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
            "one turn only",
        ),
    ],
)
def test_a_template_without_conversations_is_refused_when_one_is_asked_for(template: str, problem: str) -> None:
    template += "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    if "[-1:]" in template:
        # A finished turn needs its answer, so the last two stand for one.
        template = template.replace("messages[-1:]", "(messages if messages|length < 3 else messages[-1:])")
    chat = ChatFormat(make_tokenizer(template))
    assert chat.prompt_ids("a")
    with pytest.raises(InputError, match=problem):
        chat.prompt_ids("c", ("a", "b"))


def test_plain_text_has_no_conversations() -> None:
    with pytest.raises(InputError, match="no turns"):
        PlainFormat(make_tokenizer()).prompt_ids("c", ("a", "b"))
