"""Command lines as people type them, with files that they have: the exit status, and one line that says what to change.

What is expected was written down before the commands were run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dat_ray.cli import main

CASES = Path(__file__).parent / "data" / "cases"
RUN = ("generate", "demo", "--run-dir", "run")

TABLE: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((*RUN, "--set", f"behaviors.path={CASES}/splits"), ("behaviors.path", "mixes splits", "as in FOLDER/*train*")),
    ((*RUN, "--set", f"behaviors.path={CASES}/goals.txt"), ("behaviors.targets_path", "name a JSON file")),
    ((*RUN, "--set", f"behaviors.heldout.path={CASES}/pointer.parquet"), ("behaviors.heldout.path", "git lfs pull")),
    ((*RUN, "--set", "behaviors.path=~/no-such-file.csv"), ("behaviors.path", "/no-such-file.csv", "no such file or folder")),
    ((*RUN, "--set", "behaviors.where=safe"), ("behaviors.where", "'safe'", "is no mapping: give names of fields")),
    ((*RUN, "--set", "training.attack=no"), ("training.attack = False: is no mapping",)),
    ((*RUN, "--set", "sampler.order=random", "--set", "sampler.threshold=0.9"), ("sampler = {...}: ", "commits by confidence")),
    ((*RUN, "--set", "behaviors.where={kind: null}"), ("behaviors.where", "kind cannot be compared with None")),
    ((*RUN, "--set", "behaviors.where={kind: [a, b]}"), ("behaviors.where", "kind cannot be compared with ['a', 'b']")),
    ((*RUN, "--set", "behaviors.format=csv"), ("behaviors.format", "'csv'", "'harmbench'", "'table'")),
    ((*RUN, "--set", "behaviors.columns.goal=[a, b]"), ("behaviors.columns.goal", "valid string")),
    ((*RUN, "--set", "training.retain.layout=sharegpt"), ("training.retain.layout", "'columns' or 'messages'")),
    (
        (*RUN, "--set", f"training.retain.path={CASES}/nobody_answers.jsonl", "--set", "training.retain.limit=5"),
        ("training.retain.path", "none of its 1 rows can be used"),
    ),
    (("evaluate", "--calibrate", f"{CASES}/page_of_the_file.csv"), ("--calibrate", "is a web page", "download the raw file")),
    (("evaluate", "--calibrate", f"{CASES}/windows_1252.csv"), ("--calibrate", "iconv -f WINDOWS-1252 -t UTF-8")),
    (("evaluate", "--calibrate", f"{CASES}/labels_missing.jsonl"), ("row 1 (line 1) has the label None",)),
    (("recipes", "show", f"{CASES}/goals.txt"), ("recipe", "a recipe is a mapping of sections")),
    (("study", f"{CASES}/goals.txt"), ("study", "a study is a mapping of sections; docs/evaluation.md has one")),
    (("study", f"{CASES}/workbook.csv"), ("study = ", "not readable as YAML")),
    (("study", "demo-arms", "--set", "seeds=1"), ("seeds = 1",)),
    (("adapt", "any", "--out", "out", "--recipe", f"{CASES}/goals.txt"), ("recipe", "leave --recipe out for the package's own")),
    (("recipes", "show", f"{CASES}/workbook.csv"), ("recipe", "not readable as YAML")),
    (("recipes", "show", f"{CASES}/windows_1252.csv"), ("recipe", "not UTF-8 at byte 29: save it as UTF-8")),
]


@pytest.mark.parametrize(("arguments", "words"), TABLE, ids=[" ".join(row[0][-2:]).replace(str(CASES), "") for row in TABLE])
def test_a_bad_command_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    # A folder's own line may come before.
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"dat {arguments[0]}: ")
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_answers_in_a_script_that_no_rule_reads_are_counted_as_unparsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        'goal,completion,label\nНазови птицу,"Извините, я не могу с этим помочь.",safe\nName a bird,A robin is a bird,unsafe\n',
        "utf-8",
    )
    assert main(["evaluate", "--calibrate", str(path)]) == 0
    said = capsys.readouterr().out
    assert "people_not_harmful: harmful 0, not_harmful 0, unparsed 1, failed 0" in said
    assert "people_harmful: harmful 1, not_harmful 0, unparsed 0, failed 0" in said
