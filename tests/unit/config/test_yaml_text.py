from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dat_ray.config.loading import load_recipe
from dat_ray.config.yaml_text import load_yaml
from dat_ray.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, {c: 2}]\n",
        "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\nagain: *b\n",
        "1: a\n'1': b\n",
        "- {a: 1}\n- {a: 2}\n",
        "",
        "text",
    ],
)
def test_it_reads_what_yaml_s_own_loader_reads(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice in one section, in lines 1 and 3"),
        ("x:\n  y: {a: 1, a: 2}\n", "'a' stands twice in one section, in lines 2 and 2"),
        ("- 1\n- {z: 1,\n  z: 1}\n", "'z' stands twice in one section, in lines 2 and 3"),
    ],
)
def test_a_key_twice_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        load_yaml(text)


def test_recipes_that_repeat_a_section_or_are_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\ntraining: {updates: 3}\nseed: 1\ntraining: {updates: 4}\n")
    with pytest.raises(InputError, match="'training' stands twice in one section, in lines 2 and 4") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes("name: x\n# größer\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 12: save it as UTF-8"):
        load_recipe(str(path))
