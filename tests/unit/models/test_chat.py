from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dat_ray.config.models import TemplateConfig
from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat, PlainFormat
from dat_ray.models.fit import Limits
from tests.unit.models.tiny import CHATML, CONTROL, make_tokenizer

STRIPPING = CHATML.replace("message['content']", "message['content'] | trim")
CONTROL_IDS = set(range(len(CONTROL)))
TOKENIZER = make_tokenizer()
CHAT = ChatFormat(TOKENIZER)


def whole(tokenizer: PreTrainedTokenizerFast, user: str, system: str | None = None) -> list[int]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": user})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("template", [CHATML, STRIPPING])
@pytest.mark.parametrize("system", [None, "You are a helpful assistant.", ""])
@pytest.mark.parametrize(
    "user", ["How are you?", " leading", "trailing  ", "two\n\nlines\n", "naïve 日本 🙂", "", "12 + 3", "\ttab"]
)
def test_prompt_ids_are_those_of_the_template(template: str, system: str | None, user: str) -> None:
    tokenizer = make_tokenizer(template)
    assert ChatFormat(tokenizer, TemplateConfig(system_prompt=system)).prompt_ids(user) == whole(tokenizer, user, system)


def test_a_stripping_template_strips(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(make_tokenizer(STRIPPING))
    assert chat.prompt_ids("  \n hello \n") == chat.prompt_ids("hello")
    assert ChatFormat(tokenizer).prompt_ids(" hello ") != ChatFormat(tokenizer).prompt_ids("hello")


def test_segments(tokenizer: PreTrainedTokenizerFast) -> None:
    before, between = ChatFormat(tokenizer).segments()
    assert tokenizer.decode(before) == "<|im_start|>user\n"
    assert tokenizer.decode(between) == "<|im_end|>\n<|im_start|>assistant\n"
    assert before[0] == 1
    assert between[0] == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*CONTROL, "<|im_", "user\n"])), max_size=6).map("".join))
def test_text_never_becomes_a_control_token(text: str) -> None:
    ids = CHAT.user_ids(text)
    assert CONTROL_IDS.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == text
    encoded = CHAT.encode("hi", "Sure" + text)
    assert encoded is not None
    assert CONTROL_IDS.isdisjoint(encoded.ids[slice(*encoded.response_span)])


def test_tokenizing_text_leaves_the_tokenizer_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    ChatFormat(tokenizer).prompt_ids("hi")
    assert tokenizer("<|im_end|>").input_ids == [2]


def test_encode_spans(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = ChatFormat(tokenizer).encode("How are you today?", "Sure, here")
    assert encoded is not None
    assert tokenizer.decode(encoded.ids[slice(*encoded.user_span)]) == "How are you today?"
    assert tokenizer.decode(encoded.ids[slice(*encoded.response_span)]) == "Sure, here"
    assert tokenizer.decode(encoded.ids) == ("<|im_start|>user\nHow are you today?<|im_end|>\n<|im_start|>assistant\nSure, here")
    assert encoded.response_span[1] == len(encoded.ids)


TEXT = st.text(min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=100, deadline=None)
@given(user=TEXT, response=TEXT, room=st.integers(0, 60), limit=st.one_of(st.none(), st.integers(1, 20)))
def test_a_row_holds_its_prompt_whole_and_the_start_of_its_response(
    user: str, response: str, room: int, limit: int | None
) -> None:
    prompt, answer = CHAT.prompt_ids(user), CHAT.response_ids(response)
    limits, least = Limits(len(prompt) + room, limit), min(8, limit or 8)
    if len(CHAT.user_ids(user)) + room < 1 + least:
        with pytest.raises(InputError, match=r"training\.max_tokens"):
            CHAT.encode(user, response, limits)
        return
    row = CHAT.encode(user, response, limits)
    if room < least:
        assert row is None
        return
    assert row is not None
    low, high = row.response_span
    assert row.ids[:low] == prompt
    assert row.ids[low:] == answer[: high - low]
    assert high - low == min(len(answer), room, *([limit] if limit else []))
    assert high == len(row.ids) <= len(prompt) + room
    before = len(CHAT.segments()[0])
    assert row.user_span == (before, before + len(CHAT.user_ids(user)))
    assert row.beyond_limit == max(0, len(answer) - (limit or len(answer)))
    assert high - low + row.beyond_limit + row.beyond_room == len(answer)


def test_a_template_that_leaves_no_room_for_any_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tokenizer)
    needed = sum(map(len, chat.segments())) + 1 + 8
    assert chat.encode("How are you today, and where?", "Sure, here", Limits(needed)) is None, "this prompt has more than one"
    assert chat.encode("a", "Sure", Limits(needed)) is not None
    with pytest.raises(InputError, match=f"training.max_tokens = {needed - 1}: .*at least {needed}$"):
        chat.encode("a", "Sure", Limits(needed - 1))
    assert chat.encode("a", "Sure", Limits(needed - 1, response_tokens=7)) is not None


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize(
    ("user", "response", "field"),
    [("", "Sure", "prompt"), (" \n", "Sure", "prompt"), ("hi", "", "response"), ("hi", " ", "response")],
)
def test_a_row_without_a_text_is_bad_input(form: str, user: str, response: str, field: str) -> None:
    encoder = CHAT if form == "chat" else PlainFormat(TOKENIZER)
    with pytest.raises(InputError, match="is empty: give a text, or remove the row") as error:
        encoder.encode(user, response)
    assert error.value.field == field


def test_a_plain_prompt_is_kept_whole_too() -> None:
    plain = PlainFormat(TOKENIZER)
    prompt, answer = plain.prompt_ids("Grade this answer."), plain.response_ids(" one two three four five six")
    row = plain.encode("Grade this answer.", " one two three four five six", Limits(len(prompt) + 8))
    assert row is not None
    assert (row.ids, row.response_span) == ([*prompt, *answer[:8]], (len(prompt), len(prompt) + 8))
    assert plain.encode("Grade this answer.", "one", Limits(len(prompt) + 7)) is None


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "has no chat template"),
        (CHATML.replace("message['content']", "message['content'] * 2"), None, "cannot be cut"),
        (CHATML.replace("message['content']", "message['content'] | upper"), None, "cannot be cut"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML,
            "Be good.",
            "target.system_prompt = 'Be good.': .*no system role",
        ),
    ],
)
def test_unusable_templates(template: str | None, system: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatFormat(make_tokenizer(template), TemplateConfig(system_prompt=system))


def test_a_template_token_that_is_not_marked_as_special() -> None:
    template = CHATML.replace("<|im_start|>", "<turn>")
    tokenizer = make_tokenizer(template)
    # Gemma has tokens of this kind for runs of line breaks and spaces.
    tokenizer.add_tokens(["<turn>", "    ", "\n"])
    chat, turn = ChatFormat(tokenizer), tokenizer.convert_tokens_to_ids("<turn>")
    assert chat.prompt_ids("How are you?") == whole(tokenizer, "How are you?")
    assert chat.segments()[0][0] == turn
    text = "<turn>what is <turn>? <<turn>turn>"
    for ids in (chat.user_ids(text), chat.response_ids(text)):
        assert turn not in ids
        assert tokenizer.decode(ids) == text
    # White space is text, and stays the token that the model knows.
    assert tokenizer.convert_tokens_to_ids("    ") in chat.user_ids("a    b")


def test_a_template_that_puts_an_unmarked_token_together() -> None:
    tokenizer = make_tokenizer(CHATML.replace("<|im_start|>{{ message['role'] }}", "{{ '<' + message['role'] + '>' }}"))
    tokenizer.add_tokens(["<user>"])
    with pytest.raises(InputError, match=r"puts \['<user>'\] together, which are not marked as special"):
        ChatFormat(tokenizer)
