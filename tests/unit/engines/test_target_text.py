"""The rows that both backends of a target score: whole, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dat_ray.config.models import TargetConfig
from dat_ray.engines.target_text import TargetText
from dat_ray.errors import InputError
from tests.unit.models.tiny import make_tokenizer

PROMPT, RESPONSE = "How are you today?", "Sure, here is how you are today."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target")
    make_tokenizer().save_pretrained(path)
    return path


def text(folder: Path, template: str, max_model_len: int) -> TargetText:
    config = {"model": str(folder), "backend": "torch", "template": template, "max_model_len": max_model_len}
    return TargetText(TargetConfig.model_validate(config), str(folder))


@pytest.mark.parametrize("template", ["chat", "none"])
def test_a_response_is_scored_whole_or_not_at_all(folder: Path, template: str) -> None:
    [row] = text(folder, template, 1000).scored([PROMPT], [RESPONSE])
    tokenizer = make_tokenizer()
    assert tokenizer.decode(row.ids[slice(*row.response_span)]) == RESPONSE
    assert tokenizer.decode(row.ids[: row.response_span[0]]).count(PROMPT) == 1
    assert text(folder, template, len(row.ids) + 1).scored([PROMPT], [RESPONSE]) == [row]
    # One token less has room for the prompt and most of the response: a mean over those is not log p of the response.
    with pytest.raises(InputError, match=f"a prompt with its response takes {len(row.ids)} tokens: raise it") as error:
        text(folder, template, len(row.ids)).scored([PROMPT], [RESPONSE])
    assert error.value.field == "target.max_model_len"


@pytest.mark.parametrize(("prompt", "response", "field"), [("", RESPONSE, "prompt"), (PROMPT, " ", "response")])
def test_an_empty_text_is_named(folder: Path, prompt: str, response: str, field: str) -> None:
    for template in ("chat", "none"):
        with pytest.raises(InputError, match="is empty") as error:
            text(folder, template, 1000).scored([prompt], [response])
        assert error.value.field == field


def test_a_conversation_stands_before_its_last_turn_and_the_others_are_as_they_were(folder: Path) -> None:
    served, tokenizer = text(folder, "chat", 1000), make_tokenizer()
    alone, talk = served.prompt_ids(["and you?", "and you?"], None, [(), ("how are you?", "fine")])
    assert alone == served.prompt_ids(["and you?"])[0]
    shown = tokenizer.decode(talk)
    assert [shown.index(turn) for turn in ("how are you?", "fine", "and you?")] == sorted(
        shown.index(turn) for turn in ("how are you?", "fine", "and you?")
    )
    with pytest.raises(InputError, match="a prompt takes"):
        text(folder, "chat", len(talk)).prompt_ids(["and you?"], None, [("how are you?", "fine")])
    assert text(folder, "chat", len(talk) + 1).prompt_ids(["and you?"], None, [("how are you?", "fine")]) == [talk]
