from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat
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
    assert ChatFormat(tokenizer, system).prompt_ids(user) == whole(tokenizer, user, system)


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
    encoded = CHAT.encode("hi", "Sure" + text, 10_000)
    assert CONTROL_IDS.isdisjoint(encoded.ids[slice(*encoded.response_span)])


def test_tokenizing_text_leaves_the_tokenizer_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    ChatFormat(tokenizer).prompt_ids("hi")
    assert tokenizer("<|im_end|>").input_ids == [2]


def test_encode_spans(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = ChatFormat(tokenizer).encode("How are you today?", "Sure, here", 1000)
    assert tokenizer.decode(encoded.ids[slice(*encoded.user_span)]) == "How are you today?"
    assert tokenizer.decode(encoded.ids[slice(*encoded.response_span)]) == "Sure, here"
    assert tokenizer.decode(encoded.ids) == ("<|im_start|>user\nHow are you today?<|im_end|>\n<|im_start|>assistant\nSure, here")
    assert encoded.response_span[1] == len(encoded.ids)


@settings(max_examples=60, deadline=None)
@given(user=st.text(min_size=1, max_size=30), response=st.text(min_size=1, max_size=30), spare=st.integers(2, 60))
def test_encode_cuts_the_user_message_first(user: str, response: str, spare: int) -> None:
    before, between = CHAT.segments()
    user_ids, full = CHAT.user_ids(user), CHAT.encode(user, response, 10_000)
    response_ids = full.ids[slice(*full.response_span)]
    limit = len(before) + len(between) + spare
    encoded = CHAT.encode(user, response, limit)
    kept_user = min(len(user_ids), max(1, spare - len(response_ids)))
    kept_response = min(len(response_ids), spare - kept_user)
    assert encoded.ids == [*before, *user_ids[:kept_user], *between, *response_ids[:kept_response]]
    assert len(encoded.ids) <= limit
    assert encoded.user_span == (len(before), len(before) + kept_user)
    assert encoded.response_span == (len(encoded.ids) - kept_response, len(encoded.ids))


def test_encode_without_room(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tokenizer)
    needed = sum(map(len, chat.segments())) + 2
    assert len(chat.encode("How are you", "Sure, here", needed).ids) == needed
    with pytest.raises(InputError, match=f"training.max_tokens = {needed - 1}: .*at least {needed}$"):
        chat.encode("How are you", "Sure, here", needed - 1)


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "has no chat template"),
        (CHATML.replace("message['content']", "message['content'] * 2"), None, "cannot be cut"),
        (CHATML.replace("message['content']", "message['content'] | upper"), None, "cannot be cut"),
        ("{{ raise_exception('no system role') }}", "Be good.", "target.system_prompt = 'Be good.': .*no system role"),
    ],
)
def test_unusable_templates(template: str | None, system: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatFormat(make_tokenizer(template), system)


def test_a_template_token_that_text_could_contain() -> None:
    template = CHATML.replace("<|im_start|>", "<turn>")
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(["<turn>"])
    with pytest.raises(InputError, match=r"uses \['<turn>'\] but does not mark them as special"):
        ChatFormat(tokenizer)
