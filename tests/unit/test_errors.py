from __future__ import annotations

from dat_ray.errors import error_line


def test_an_exception_becomes_one_short_line() -> None:
    assert error_line(ValueError("a\n  b\t c")) == "ValueError: a b c"
    assert error_line(KeyError()) == "KeyError"
    assert len(error_line(ValueError("x" * 1000))) == 300
