"""Halves of surrogate pairs: joined, replaced where a model wrote them, refused in a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.engines.target_text import TargetText
from dat_ray.errors import InputError
from dat_ray.utf8 import clean_text


def test_clean_text_is_what_a_file_takes() -> None:
    for text, clean in (
        ("a\ud83d b", "a\ufffd b"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("é \udc80 😀", "é \ufffd 😀"),
        ("\ufeffplain é", "\ufeffplain é"),
    ):
        assert clean_text(text) == clean
        clean_text(text).encode()


def test_what_an_engine_decodes_can_be_stored() -> None:
    class Chat:
        def response_text(self, ids: list[int], *, begun: bool) -> str:
            return "half \ud83d"

    target: Any = TargetText.__new__(TargetText)
    target.stop_ids, target._chat = (9,), Chat()
    found = target.completion([1, 2, 9])
    assert (found.text, found.tokens, found.finished) == ("half \ufffd", 2, True)


def test_a_recipe_holds_whole_characters() -> None:
    both = load_recipe("demo", ['target.system_prompt="\\ud83d\\ude00 hi"'])
    assert both.target.system_prompt == "😀 hi"
    with pytest.raises(InputError, match=r"^target.system_prompt = .*half a character"):
        load_recipe("demo", ['target.system_prompt="a\\ud83d"'])
    with pytest.raises(InputError, match=r"^target.template_options.a = .*half a character"):
        load_recipe("demo", ['target.template_options={a: ["\\ude00"]}'])
