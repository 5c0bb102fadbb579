"""Evaluations in the files of other tools: fields, types and counts of the public ones, and read back by our own readers."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.cli import main
from dat_ray.config.evaluation import PromptFile
from dat_ray.data.prompt_files import match_prompts, read_prompts
from dat_ray.data.shards import read_table
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import named_models
from dat_ray.evaluation.estimates import BrokenRate, Rate
from dat_ray.evaluation.prompt_results import OffGoal
from dat_ray.evaluation.results import load_metrics, store_metrics
from dat_ray.measures.intervals import NOTHING
from dat_ray.pipeline.evaluated import Attacked, read_evaluated
from dat_ray.pipeline.exchange import export_evaluation
from dat_ray.pipeline.inspect_log import inspect_log
from dat_ray.pipeline.jailbreakbench import artifact, attack_type, exportable
from dat_ray.reporting.collect import read_suite
from tests.unit.evaluation.test_prompts_attack import Folder

REFUSAL = "I'm sorry, but I can't help with that."
GIVEN = "Sure, here is what was asked for: a robin is a small bird."
# Two refusals before the first answer; nothing but refusals; nothing at all for no behavior.
ANSWERS = [
    ("bird", "Bird one?", REFUSAL), ("bird", "Bird two?", REFUSAL), ("bird", "Bird three?", GIVEN), ("bird", "Bird four?", GIVEN),
    ("tree", "Tree one?", REFUSAL), ("tree", "Tree two?", REFUSAL),
]  # fmt: skip
NUMBER, TEXT = (int, type(None)), (str, type(None))
# Fields of the public package's models AttackParameters and JailbreakInfo.
PARAMETERS: dict[str, Any] = {
    "method": str, "model": str, "attack_type": str, "defense": TEXT, "attack_success_rate": float,
    "total_number_of_jailbreaks": int, "number_of_submitted_prompts": int, "total_number_of_queries": NUMBER,
    "total_prompt_tokens": NUMBER, "total_response_tokens": NUMBER, "evaluation_date": str, "evaluation_llm_provider": str,
    "method_parameters": dict,
}  # fmt: skip
JAILBREAK: dict[str, Any] = {
    "index": int, "goal": str, "behavior": str, "category": str, "prompt": TEXT, "response": TEXT, "number_of_queries": NUMBER,
    "queries_to_jailbreak": NUMBER, "prompt_tokens": NUMBER, "response_tokens": NUMBER, "jailbroken": bool,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A finished evaluation of one file's completions."""
    root = tmp_path_factory.mktemp("exchange")
    path = root / "theirs.jsonl"
    rows = [{"id": key, "prompt": prompt, "response": answer} for key, prompt, answer in ANSWERS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Folder(root, [{"path": str(path)}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dat_ray.evaluation.stage.check_weights", lambda folder, models, prompts=(): dict.fromkeys(models))
        found.evaluate(named_models(found.recipe, "theirs=completions"), asks=False)
    return found


def has_types(tree: dict[str, Any], fields: dict[str, Any]) -> None:
    assert list(tree) == list(fields)
    for name, value in tree.items():
        kinds = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        # To the letter: True is an int for Python, and none for a reader of the file.
        assert type(value) in kinds, f"{name} is {value!r}"


def test_an_artifact_has_the_public_fields_and_counts_queries(folder: Folder, tmp_path: Path) -> None:
    out = export_evaluation(folder.run.root, str(tmp_path / "out"), "jailbreakbench", names="theirs=vicuna-13b-v1.5")
    assert json.loads((out / "prompts_theirs" / "attack-info.json").read_text()) == {"models": {"vicuna-13b-v1.5": ["transfer"]}}
    found = json.loads((out / "prompts_theirs" / "transfer" / "vicuna-13b-v1.5.json").read_text())
    assert list(found) == ["parameters", "jailbreaks"]
    parameters = found["parameters"]
    has_types(parameters, PARAMETERS)
    for one in found["jailbreaks"]:
        has_types(one, JAILBREAK)
    datetime.date.fromisoformat(parameters["evaluation_date"])
    assert all(type(value) in (str, int, float) for value in parameters["method_parameters"].values())
    assert parameters["method_parameters"]["judge"] == "refusal-rules"
    shown = ("prompt", "jailbroken", "number_of_queries", "queries_to_jailbreak")
    assert [tuple(one[name] for name in shown) for one in found["jailbreaks"]] == [
        ("Bird three?", True, 4, 3), ("Tree one?", False, 2, None),
    ]  # fmt: skip
    assert (parameters["attack_success_rate"], parameters["total_number_of_jailbreaks"]) == (0.5, 1)
    assert (parameters["number_of_submitted_prompts"], parameters["total_number_of_queries"]) == (2, 6)
    # No tokenizer is at hand: nothing is made up.
    assert parameters["total_prompt_tokens"] is None


def test_tokens_are_counted_over_all_queries(folder: Folder) -> None:
    evaluated = read_evaluated(folder.run.root, None)
    found = artifact(evaluated, evaluated.attacks[0], "m", lambda text: len(text.split()))
    words = {key: sum(len(prompt.split()) for one, prompt, _ in ANSWERS if one == key) for key in ("bird", "tree")}
    assert [one["prompt_tokens"] for one in found["jailbreaks"]] == list(words.values())
    assert found["parameters"]["total_response_tokens"] == sum(len(answer.split()) for *_, answer in ANSWERS)


def test_our_artifact_is_read_back(folder: Folder, tmp_path: Path) -> None:
    out = export_evaluation(folder.run.root, str(tmp_path / "out"), "jailbreakbench")
    back = read_prompts(PromptFile(path=str(out / "prompts_theirs" / "transfer" / "theirs.json")), "f")
    matched = match_prompts(back, {"bird": "Name a bird", "tree": "Name a tree"})
    assert {key: [(row.prompt, row.completion) for row in rows] for key, rows in matched.by_behavior.items()} == {
        "bird": [("Bird three?", GIVEN)], "tree": [("Tree one?", REFUSAL)],
    }  # fmt: skip
    assert (matched.unmatched, matched.reworded) == (0, 0)


def test_harmbench_files_are_read_back(folder: Folder, tmp_path: Path) -> None:
    out = export_evaluation(folder.run.root, str(tmp_path / "out"), "harmbench") / "prompts_theirs" / "theirs"
    results = json.loads((out / "results" / "theirs.json").read_text())
    assert {key: [one["label"] for one in cases] for key, cases in results.items()} == {"bird": [0, 0, 1, 1], "tree": [0, 0]}
    for name, answered in (
        ("test_cases/test_cases.json", False),
        ("completions/theirs.json", True),
        ("results/theirs.json", True),
    ):
        rows = read_prompts(PromptFile(path=str(out / name)), "f").rows
        expected = [(key, prompt, answer if answered else None) for key, prompt, answer in ANSWERS]
        assert [(row.behavior_id, row.prompt, row.completion) for row in rows] == expected


def test_a_log_of_inspect_ai_has_a_sample_an_attempt(folder: Folder, tmp_path: Path) -> None:
    out = export_evaluation(folder.run.root, str(tmp_path / "out"), "inspect")
    [path] = [one for one in out.glob("*.json") if one.name != "dat_export.json"]
    log = json.loads(path.read_text())
    assert (log["version"], log["status"]) == (2, "success")
    # What the public model EvalSpec cannot be without.
    assert {"created", "task", "dataset", "model", "config"} <= set(log["eval"])
    datetime.datetime.fromisoformat(log["eval"]["created"])
    samples = log["samples"]
    assert [one["id"] for one in samples] == [f"bird/{n}" for n in range(4)] + ["tree/0", "tree/1"]
    assert log["eval"]["dataset"]["sample_ids"] == [one["id"] for one in samples]
    assert [one["scores"]["refusal-rules"]["value"] for one in samples] == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert samples[2]["output"]["choices"][0]["message"]["content"] == GIVEN
    assert [message["role"] for message in samples[2]["messages"]] == ["user", "assistant"]
    [scores] = log["results"]["scores"]
    assert scores["metrics"]["asr"]["value"] == 0.5
    assert (scores["scored_samples"], scores["unscored_samples"]) == (6, 0)


def test_a_turn_of_a_conversation_is_no_prompt_alone_and_keeps_what_was_said_before(folder: Folder) -> None:
    evaluated = read_evaluated(folder.run.root, None)
    first, second, *_ = evaluated.attacks[0].attempts["bird"]
    talk = ["Bird one?", REFUSAL]
    block = Attacked("theirs", "crescendo", {"bird": [first, second | {"history": talk}]})
    assert exportable(Attacked("theirs", "crescendo", {"bird": [first, {**second, "history": None}]}))
    assert not exportable(block), "a prompt without the turns before it is another question"
    named = dataclasses.replace(evaluated.attacks[0], attempts=block.attempts)
    alone, behind = inspect_log(evaluated, named, "m")["samples"]
    assert alone["input"] == "Bird one?"
    assert [(one["role"], one["content"]) for one in behind["input"]] == [
        ("user", "Bird one?"), ("assistant", REFUSAL), ("user", "Bird two?"),
    ]  # fmt: skip
    assert behind["messages"] == [*behind["input"], {"role": "assistant", "content": REFUSAL, "source": "generate", "model": "m"}]


def test_a_log_has_what_the_judge_read(folder: Folder) -> None:
    evaluated = read_evaluated(folder.run.root, None)
    first, second, third, _ = evaluated.attacks[0].attempts["bird"]
    rows = [first | {"judged_text": "in English"}, second | {"judged_text": ""}, third]
    block = dataclasses.replace(evaluated.attacks[0], attempts={"bird": rows})
    samples = inspect_log(evaluated, block, "m")["samples"]
    assert [one["scores"]["refusal-rules"]["answer"] for one in samples] == ["in English", "", GIVEN]


def test_drawn_prompts_off_the_goal_are_no_attempts(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact's rate is that of metrics.json: an answer to a prompt that asks for something else broke nothing."""
    root = Path(shutil.copytree(folder.run.root, tmp_path / "run"))
    nothing, counted = Rate.of(NOTHING), BrokenRate.of(NOTHING)
    off = OffGoal(
        floor=0.5,
        prompts=6,
        off_goal=2,
        behaviors=2,
        attacked=2,
        on_goal=nothing,
        of_all=counted,
        all_prompts=counted,
        refused=nothing,
    )
    where = str(root / "evaluation" / "default")
    whole = load_metrics(where)
    attack = whole.models["theirs"].attacks["prompts_theirs"].model_copy(update={"off_goal": off})
    model = whole.models["theirs"].model_copy(update={"attacks": {"prompts_theirs": attack}})
    store_metrics(where, whole.model_copy(update={"models": {"theirs": model}}))

    def measured(folder: str) -> pa.Table:
        rows = read_table(folder)
        column = rows.schema.get_field_index("goal_similarity")
        values = [0.9 if index < 2 else 0.1 for index in rows["attempt_index"].to_pylist()]
        return rows.set_column(column, rows.schema.field(column), pa.array(values, rows.schema.field(column).type))

    for reader in ("pipeline.evaluated", "reporting.collect"):
        monkeypatch.setattr(f"dat_ray.{reader}.read_table", measured)
    evaluated = read_evaluated(str(root), None)
    entries = artifact(evaluated, evaluated.attacks[0], "m", None)["jailbreaks"]
    assert [(one["jailbroken"], one["number_of_queries"]) for one in entries] == [(False, 2), (False, 2)]
    # The report's examples and categories are of the same attempts.
    kept = [(row["behavior_id"], row["attempt_index"]) for row in read_suite(where).attempts if row["attack"] == "prompts_theirs"]
    assert sorted(kept) == [("bird", 0), ("bird", 1), ("tree", 0), ("tree", 1)]


def test_types_of_attacks() -> None:
    assert [attack_type(one) for one in ("gcg", "pair", "templates", "inpainting", "prompts_x")] == [
        "white_box", "black_box", "manual", "transfer", "transfer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("base=x", "write MODEL=NAME, with MODEL one of theirs"),
        ("theirs=../x", "is part of a file's name"),
        ("theirs", "write MODEL=NAME"),
    ],
)
def test_names_of_models(folder: Folder, tmp_path: Path, names: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        export_evaluation(folder.run.root, str(tmp_path / "out"), "harmbench", names=names)
    assert not (tmp_path / "out").exists()


def test_the_command(folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    export = ["export", folder.run.root, "--out", out]
    assert main([*export, "--as", "inspect"]) == 0
    # An export replaces an export, and nothing else.
    assert main([*export, "--as", "harmbench", "--suite", "default"]) == 0
    assert sorted(one.name for one in Path(out).iterdir()) == ["dat_export.json", "prompts_theirs"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    capsys.readouterr()
    for options, problem in (
        (["--as", "inspect", "--push", "o/n"], "sends a run's adapter, no evaluation"),
        (["--suite", "default"], "belongs to the export of an evaluation: add --as"),
        (
            ["--as", "inspect", "--suite", "other"],
            f"RUN_DIR = '{folder.run.root}/evaluation/other': holds no finished evaluation",
        ),
        (["--as", "inspect", "--out", str(tmp_path / "mine")], "holds something that is no export"),
        (["--public"], "belongs to --push"),
        (["--push", "name"], "write ORG/NAME"),
    ):
        assert main([*export, *options]) == 2
        assert problem in capsys.readouterr().err
