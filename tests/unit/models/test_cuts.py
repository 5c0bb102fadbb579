"""Chat formats of every kind of tokenizer, against the tokens of the whole rendering and where those stand in its text."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from dat_ray.config.models import TemplateConfig
from dat_ray.models.chat import ChatFormat, PlainFormat
from tests.unit.models.tokenizers_of_kinds import CONTROL, FORMS, KINDS, LLAMA2, PHI3, ZEPHYR, make_kind

ORDINARY = [
    ("How are you today?", "Sure, here you are"),
    ("what (and when)?", "12 of them"),
    ("2 plus 2", "I will not."),
    ("two\n\nlines of  text", "It is so.\n\n- one\n- two"),
    ("a brown fox, naïve 日本 🙂", "You are over the lazy dog"),
]


@functools.cache
def served(kind: str, form: str) -> tuple[PreTrainedTokenizerFast, ChatFormat]:
    tokenizer = make_kind(kind, FORMS[form])
    return tokenizer, ChatFormat(tokenizer)


def whole_turn(tokenizer: PreTrainedTokenizerFast, user: str, answer: str) -> tuple[list[int], list[int], list[int]]:
    """Ids of a conversation up to the end of its answer, and of those the user's and the answer's.

    A token is a text's where it writes some of it, or of the space that the template has before it.
    """
    turn = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    low, answer_low = text.index(user), text.rindex(answer)
    found = tokenizer(text[: answer_low + len(answer)], add_special_tokens=False, return_offsets_mapping=True)

    def inside(start: int, length: int) -> list[int]:
        spans = zip(found.input_ids, found.offset_mapping, strict=True)
        first = start - (text[start - 1] == " ")
        return [token for token, (a, b) in spans if a < start + length and b > first]

    return found.input_ids, inside(low, len(user)), inside(answer_low, len(answer))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_tokens_of_the_whole(kind: str, form: str) -> None:
    tokenizer, chat = served(kind, form)
    before, between = chat.segments()
    for user, answer in ORDINARY:
        ids, users, answers = whole_turn(tokenizer, user, answer)
        assert [*before, *chat.user_ids(user), *between, *chat.response_ids(answer)] == ids
        assert chat.user_ids(user) == users
        assert chat.response_ids(answer) == answers
        assert chat.prompt_ids(user) == [*before, *users, *between]
        assert chat.response_text(chat.response_ids(answer)) == answer


@pytest.mark.parametrize("kind", ["normalizer", "legacy", "first", "Llama", "Llama-legacy"])
def test_a_response_begins_as_in_a_finished_turn(kind: str) -> None:
    first = {
        form: served(kind, form)[0].convert_ids_to_tokens(served(kind, form)[1].response_ids("Sure, no"))[0] for form in FORMS
    }
    assert first == {"llama2": "▁Sure,", "vicuna": "▁Sure,", "spaced": "▁Sure,", "mistral": "Su", "zephyr": "Su"}
    tokenizer, chat = served(kind, "llama2")
    assert tokenizer.convert_ids_to_tokens(chat.user_ids("How"))[0] == "▁How", "the template's space is the message's"
    assert tokenizer.convert_ids_to_tokens(served(kind, "zephyr")[1].user_ids("How"))[0] != "▁How", "a line break stands there"


def test_a_token_that_would_join_template_and_text_is_kept_apart() -> None:
    tokenizer, chat = served("normalizer", "mistral")
    joined = tokenizer.convert_ids_to_tokens(whole_turn(tokenizer, "How", "(so)")[0])
    assert "](" in joined, "in the whole rendering one token holds both"
    assert chat.prompt_ids("How") == whole_turn(tokenizer, "How", "Sure")[0][: len(chat.prompt_ids("How"))]
    assert chat.response_text(chat.response_ids("(so)")) == "(so)"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=6), st.sampled_from([*CONTROL, "<s", " </s> ", "[/INST]"])), min_size=1, max_size=6).map(
        "".join
    )
)
def test_text_is_never_a_control_token_and_comes_back_as_it_was(kind: str, text: str) -> None:
    for form in ("mistral", "zephyr", "vicuna"):
        tokenizer, chat = served(kind, form)
        control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        ids = chat.response_ids(text)
        assert control.isdisjoint(ids)
        assert control.isdisjoint(chat.user_ids(text))
        if "▁" not in text:  # which is how such tokenizers write a space
            assert chat.response_text(ids) == text
            assert chat.text_after(chat.user_ids("Sure") + chat.response_ids(text)).endswith(text)


@pytest.mark.parametrize("kind", ["normalizer", "legacy", "first", "Llama"])
def test_a_message_that_a_template_strips(kind: str) -> None:
    chat = served(kind, "llama2")[1]
    assert chat.prompt_ids(" \n How are you? ") == chat.prompt_ids("How are you?")
    kept = served(kind, "mistral")
    ids = kept[0].apply_chat_template([{"role": "user", "content": "  How"}], add_generation_prompt=True, return_dict=False)
    assert kept[1].prompt_ids("  How") == ids, "inner spaces of the message are those of the whole"


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_prompt_before_the_message(kind: str) -> None:
    tokenizer = make_kind(kind, LLAMA2)
    chat = ChatFormat(tokenizer, TemplateConfig(system_prompt="You are a helpful assistant."))
    turn = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "How are you?"}]
    assert chat.prompt_ids("How are you?") == tokenizer.apply_chat_template(turn, return_dict=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_turn_may_have_a_space_before_it(kind: str, form: str) -> None:
    tokenizer, chat = served(kind, form)
    assert chat.end_of_turn() == tokenizer.eos_token_id == chat.end_id


@pytest.mark.parametrize("kind", ["normalizer", "first", "no-prefix", "byte-level"])
def test_an_unnamed_control_token_ends_a_turn(kind: str) -> None:
    tokenizer = make_kind(kind, PHI3)
    # As Phi 3 has them: special, named nowhere, and the markers take the whitespace behind them along.
    marks = [AddedToken(mark, special=True, rstrip=True) for mark in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_tokens(marks, special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end not in tokenizer.all_special_ids
    chat = ChatFormat(tokenizer)
    assert chat.end_of_turn() == end
    before, between = chat.segments()
    for user, answer in ORDINARY:
        ids, users, answers = whole_turn(tokenizer, user, answer)
        assert (chat.user_ids(user), chat.response_ids(answer)) == (users, answers)
        assert [*before, *users, *between, *answers] == ids
        assert chat.response_text(answers) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_prompts_response_goes_on_with_its_text(kind: str) -> None:
    tokenizer = make_kind(kind, None)
    plain = PlainFormat(tokenizer)
    for response in (" Sure, here", "12"):
        whole = tokenizer(f"USER: How are you{response}").input_ids
        assert [*plain.prompt_ids("USER: How are you"), *plain.response_ids(response)] == whole


def test_pieces_leave_the_tokenizer_as_it_was() -> None:
    tokenizer = make_kind("normalizer", ZEPHYR)
    stored = tokenizer.backend_tokenizer.to_str()
    chat = ChatFormat(tokenizer)
    chat.response_ids("Sure")
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads(stored)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """Mistral's vocabulary of 32,000 pieces, which comes with vLLM: as the state of a tokenizer, and SentencePiece's file."""
    package = pytest.importorskip("mistral_common", reason="comes with vLLM")
    model, folder = Path(package.__file__).parent / "data" / "tokenizer.model.v1", tmp_path_factory.mktemp("mistral")
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    return json.loads(LlamaTokenizer.from_pretrained(folder).backend_tokenizer.to_str()), str(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normalizer", "always", "first"])
def test_a_published_vocabulary_against_sentencepiece(kind: str, published: tuple[dict, str]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="comes with vLLM")
    state, model = published
    if kind == "normalizer":  # as tokenizer.json of Llama 2, Mistral, Zephyr and Vicuna has it
        steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        state = state | {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": steps}}
    else:
        state = state | {"pre_tokenizer": {**state["pre_tokenizer"], "prepend_scheme": kind}}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    # Behind <s> the last kind puts no space, SentencePiece always does: there the first token is left out.
    skipped = 1 if kind == "first" else 0
    texts = ["How are you?", "Write 2 lines: a, b", "naïve 日本 🙂", "def f(x):\nreturn x", 'It\'s [1, 2] "so" twice']
    for form in ("llama2", "mistral", "vicuna"):
        tokenizer.chat_template = FORMS[form]
        chat = ChatFormat(tokenizer)
        for user in texts:
            for answer in ("Sure, here is", "Of course!\n1. one"):
                said = {"llama2": f"[INST] {user} [/INST] {answer}", "mistral": f"[INST] {user} [/INST]{answer}"}
                said["vicuna"] = f"A chat between a user and an assistant. USER: {user} ASSISTANT: {answer}"
                ours = [*chat.prompt_ids(user), *chat.response_ids(answer)]
                assert ours[0] == tokenizer.bos_token_id
                assert ours[1 + skipped :] == reference.encode(said[form])[skipped:]
                assert chat.response_text(chat.response_ids(answer)) == answer
