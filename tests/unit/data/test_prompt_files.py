"""Ready prompts: whose each is, what is left out and counted, which are drawn, and what the attack is called."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.evaluation import EvaluationConfig, PromptFile
from dat_ray.config.loading import difference, fingerprint, load_recipe
from dat_ray.data.prompt_files import MatchedPrompts, PromptRow, draw, match_prompts, read_prompts
from dat_ray.data.trust import outside_values
from dat_ray.errors import InputError

GOALS = {"Bird": "Name a bird", "tree": "Name a tree, any tree", "7": "Say: hello", "ctx": "It rains.\n\nShorten the text"}
DATA = Path(__file__).parents[4] / "shared" / "data"


def matched(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> MatchedPrompts:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"prompt {number}", **row}) for number, row in enumerate(rows)))
    return match_prompts(read_prompts(PromptFile(path=str(path), **settings), "evaluation.prompts.0"), GOALS)


@pytest.mark.parametrize(
    ("row", "behavior"),
    [
        ({"goal": "name a BIRD!"}, "Bird"),
        ({"goal": "Name a bird", "id": "elsewhere-1"}, "Bird"),
        ({"id": "Bird"}, "Bird"),
        # Files of test cases may have goals for keys.
        ({"id": "Name a bird."}, "Bird"),
        ({"id": 7}, "7"),
        # A goal decides against another data set's id.
        ({"goal": "Name a bird", "id": "tree"}, "Bird"),
        # The goal without its context, and one that was reworded since.
        ({"goal": "Shorten the text", "id": "ctx"}, "ctx"),
        ({"goal": "Name a tree, any big tree", "id": "tree"}, "tree"),
        ({"goal": "Count to seven", "id": "7"}, None),
        ({"goal": "Shorten the text"}, None),
        ({"goal": "...", "id": "nobody"}, None),
        ({"id": "nobody"}, None),
    ],
)
def test_whose_a_prompt_is(tmp_path: Path, row: dict[str, Any], behavior: str | None) -> None:
    found = matched(tmp_path, [row, {"goal": "Say hello", "prompt": "other"}])
    expected = {"7"} if behavior is None else {"7", behavior}
    assert set(found.by_behavior) == expected
    assert found.unmatched + found.contradicting == (behavior is None)


@pytest.mark.parametrize("path", ["one.csv", "folder", "folder/a*"])
def test_an_empty_cell_of_a_csv_table_is_no_answer_wherever_the_table_lies(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    for file in ("one.csv", "folder/a.csv"):
        (tmp_path / file).write_text("goal,prompt,completion\nName a bird,x,\nName a tree,y,an oak\n")
    (tmp_path / "folder" / "a.jsonl").write_text(json.dumps({"goal": "Name a bird", "prompt": "z", "completion": ""}))
    found = read_prompts(PromptFile(path=str(tmp_path / path)), "f").rows
    # In JSON an empty text is what was answered.
    others = [] if path == "one.csv" else [("z", "")]
    assert [(row.prompt, row.completion) for row in found] == [("x", None), ("y", "an oak"), *others]


def test_equal_goals_are_told_apart_by_id(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"goal": "Shorten the text", "id": key, "prompt": f"{key}!"} for key in ("b", "a", "c")]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = match_prompts(read_prompts(PromptFile(path=str(path)), "f"), {"a": "shorten the text", "b": "Shorten the text."})
    assert {key: [row.prompt for row in rows] for key, rows in found.by_behavior.items()} == {"a": ["a!", "c!"], "b": ["b!"]}


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    found = matched(
        tmp_path,
        [
            {"goal": "Name a bird", "completion": "A robin"},
            {"goal": "Name a bird", "prompt": "prompt 0", "completion": "A robin"},
            {"goal": "Name a bird", "prompt": "prompt 0", "completion": "A wren"},
            {"goal": "Name a bird", "prompt": " \n"},
            {"goal": "Name a cloud"},
            {"goal": "Name a river"},
            {"goal": "Count to a million", "id": "tree"},
            {"goal": "Name a tree, any big tree", "id": "tree"},
        ],
    )
    assert found.counts() == {
        "prompts": 3, "completions": 2, "behaviors": 2, "behaviors_without": 2, "reworded": 1, "unmatched": 2,
        "contradicting": 1, "repeated": 1, "without_prompt": 1,
    }  # fmt: skip
    assert found.without_rows == ["7", "ctx"]
    assert str(found) == (
        "3 prompts for 2 of 4 behaviors; by the id, with the goal worded otherwise: 1; "
        "of no behavior evaluated here, so left out (first: row 5 (line 5)): 2; "
        "of a behavior's id and another goal, so left out: 1; repeated: 1; without a prompt: 1"
    )


def test_a_draw_depends_on_texts_and_seed_alone() -> None:
    rows = [PromptRow(f"p{number}", "g", None, "ab"[number % 2], None, "f", str(number)) for number in range(40)]
    kept = draw(rows, 3, seed=1)
    assert [row.variant for row in kept].count("a") == 3 == [row.variant for row in kept].count("b")
    assert [rows.index(row) for row in kept] == sorted(rows.index(row) for row in kept)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {row.prompt for row in draw(shuffled, 3, seed=1)} == {row.prompt for row in kept}
    assert {row.prompt for row in draw(rows, 3, seed=2)} != {row.prompt for row in kept}
    assert draw(rows, None, seed=1) == rows == draw(rows, 20, seed=1)


def test_the_digest_changes_with_the_content_and_not_with_the_form(tmp_path: Path) -> None:
    def digest(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return read_prompts(PromptFile(path=str(tmp_path / name)), "f").digest

    lines = digest("a.jsonl", '{"goal": "Name a bird", "prompt": "Bird?"}')
    assert digest("b.csv", "goal,prompt\nName a bird,Bird?\n") == lines
    assert digest("b.csv", "goal,prompt\nName a bird,Birds?\n") != lines
    assert digest("b.csv", "goal,prompt,response\nName a bird,Bird?,Sure\n") != lines


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/PAIR vicuna-13b-v1.5.json", "pair_vicuna_13b_v1_5"),
        ("s3://bucket/p.jsonl.gz", "p"),
        ("folder/parts/", "parts"),
        ("hf:davecasp/inpainting_attack_large", "inpainting_attack_large"),
        ("hf:o/n/c:test", "c_test"),
        ("***", "file"),
    ],
)
def test_an_attack_has_its_files_name(path: str, name: str) -> None:
    assert PromptFile(path=path).attack == f"prompts_{name}"
    assert PromptFile(path=path, name="pair").attack == "prompts_pair"


def test_what_a_recipe_must_say() -> None:
    with pytest.raises(ValueError, match="prompts has 2 files that would be the attack prompts_a: give each a name of its own"):
        EvaluationConfig(attacks=("prompts",), prompts=(PromptFile(path="x/a.csv"), PromptFile(path="y/a.json")))
    with pytest.raises(InputError, match=r"evaluation\.prompts\.0\.samples"):
        load_recipe("demo", ["evaluation.prompts=[{path: p.csv, samples: 0}]"])


def test_each_file_of_a_recipe_is_a_field_of_its_own() -> None:
    plain = load_recipe("demo")
    one = load_recipe("demo", ["evaluation.attacks=[prompts]", "evaluation.prompts=[{path: p.csv}, {path: ~/q.csv, samples: 3}]"])
    other = load_recipe(
        "demo", ["evaluation.attacks=[prompts]", "evaluation.prompts=[{path: p.csv}, {path: ~/q.csv, samples: 4}]"]
    )
    assert difference(one, other) == ["evaluation.prompts.1.samples: 3 -> 4"]
    assert len({fingerprint(plain), fingerprint(one), fingerprint(other)}) == 3
    assert fingerprint(load_recipe("demo", ["evaluation.prompts=[]"])) == fingerprint(plain)
    # Each path leads out of a run directory by itself.
    fields = [value.field for value in outside_values(one, ["evaluation"])]
    assert fields == ["evaluation.prompts.0.path", "evaluation.prompts.1.path"]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data sets are not in {DATA}")
def test_public_sets_that_stand_here() -> None:
    """HarmBench's targets have the form of test cases; the answers that people labeled, that of a table with completions."""
    targets = read_prompts(PromptFile(path=str(DATA / "harmbench" / "harmbench_targets_text.json")), "f")
    assert len(targets.rows) == len({row.behavior_id for row in targets.rows}) == 400
    folder = DATA / "xstest" / "human_labelled_completions"
    answers = read_prompts(PromptFile(path=str(folder / "xstest_v2_completions_gpt4.csv")), "f")
    assert len(answers.rows) == 450
    assert all(row.completion and row.behavior_id for row in answers.rows)
