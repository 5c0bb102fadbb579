from __future__ import annotations

from dat_ray.errors import InputError, error_line


def test_an_exception_becomes_one_short_line() -> None:
    assert error_line(ValueError("a\n  b\t c")) == "ValueError: a b c"
    assert error_line(KeyError()) == "KeyError"
    assert len(error_line(ValueError("x" * 1000))) == 300


def test_a_value_of_any_length_leaves_a_message_that_can_be_read() -> None:
    message = str(
        InputError("target.model", "m", "has hidden_act = " + "a" * 100_000 + ", of which no sampler is known: use another")
    )
    assert len(message) < 2100
    assert message.startswith("target.model = 'm': has hidden_act = aaa")
    assert message.endswith("aaa, of which no sampler is known: use another")
