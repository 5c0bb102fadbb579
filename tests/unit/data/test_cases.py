"""Small files of the kinds that people have (cases/): each is read as it was meant, or refused in one line that names the cause.

All are made up. What is expected was written down before the readers were run.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.adapt import PairsConfig
from dat_ray.config.data import BehaviorsConfig
from dat_ray.config.evaluation import PromptFile
from dat_ray.config.training import RetainConfig
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.prompt_files import read_prompts
from dat_ray.data.retain import read_retain
from dat_ray.data.table_sources import open_source
from dat_ray.diffusion.pairs import read_pairs
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.templates import load_templates
from dat_ray.evaluation.calibration import read_labeled

CASES = Path(__file__).parent / "cases"
HELDOUT = {"path": "builtin:demo-heldout", "limit": 1}
BIRD, TREE = ("Name a bird", "Sure"), ("Name a tree", "Sure")


def trained(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Goal and target of `behaviors.path`, with the category where there is one."""
    cfg = BehaviorsConfig.model_validate({"path": path, "heldout": HELDOUT, **settings})
    rows = [row for row in load_behaviors(cfg).table.to_pylist() if row["split"] == "train"]
    return [(row["goal"], row["target"], *([row["category"]] if row["category"] else [])) for row in rows]


def identified(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Split and id of every goal."""
    cfg = BehaviorsConfig.model_validate({"path": path, "heldout": HELDOUT, **settings})
    return [(row["split"], row["behavior_id"]) for row in load_behaviors(cfg).table.to_pylist() if row["target_index"] == 0]


def harmless(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Goals of `behaviors.over_refusal.path`, of which no target is needed, with the category where there is one."""
    tree = {"path": "builtin:demo-dev", "heldout": HELDOUT, "over_refusal": {"path": path, **settings}}
    rows = load_behaviors(BehaviorsConfig.model_validate(tree)).table.to_pylist()
    found = [row for row in rows if row["split"] == "over_refusal"]
    return [(row["goal"], *([row["category"]] if row["category"] else [])) for row in found]


def retained(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Prompt and response of a retain set, and the rows that were left out."""
    found = read_retain(RetainConfig(path=path, **settings))
    left_out = [("left out", count, reason) for reason, count in found.odd.items()]
    return [*((row.prompt, row.response) for row in found.rows), *left_out]


def templates(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Lengths and ends of templates."""
    return [(len(one), one[-6:]) for one in load_templates(path)]


def prompted(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Whose prompt, the prompt, and its variant and completion where it has them; and rows without a prompt."""
    found = read_prompts(PromptFile.model_validate({"path": path, **settings}), "evaluation.prompts.0")
    rows = [
        (row.behavior_id or row.goal, row.prompt, *(one for one in (row.variant, row.completion) if one is not None))
        for row in found.rows
    ]
    return [*rows, *([("without", found.without_prompt)] if found.without_prompt else [])]


def labeled(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Labels of `dat evaluate --calibrate`."""
    return [(row.goal, row.completion, row.harmful) for row in read_labeled([path])]


def paired(path: str, settings: dict[str, Any]) -> list[tuple]:
    """Rows of `dat adapt --pairs`."""
    return [(row["prompt"], row["response"]) for row in read_pairs(path, PairsConfig())]


def by(**columns: str) -> dict[str, Any]:
    return {"columns": columns}


# File, how it is used, further settings, and its rows or a part of the error.
TABLE: list[tuple[str, Callable[[str, dict[str, Any]], list[tuple]], dict[str, Any], list[tuple] | str]] = [
    # What spreadsheets write.
    ("excel_first_line.csv", trained, {}, [("Write a limerick about rain", "Sure, here is one")]),
    ("excel_padding.csv", trained, {}, [("Name a bird", "Sure: a robin"), ("Name a tree", "Sure: an oak")]),
    ("excel_unicode_text.csv", trained, {}, [("Nomme un oiseau d'été", "Bien sûr")]),
    ("workbook.csv", trained, {}, "is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8"),
    ("labels_yes_no.tsv", labeled, {}, [
        ("Name a bird", "A robin is a bird", True), ("Name a tree", "No, I won't", False),
    ]),
    # Encodings.
    ("utf16_without_mark.csv", trained, {}, "holds zero bytes, as UTF-16 without a byte-order mark does: save it as UTF-8"),
    ("windows_1252.csv", trained, {}, "not UTF-8 at byte 29 (line 2), windows-1252 or latin-1 by its look: save it as UTF-8"),
    ("gb18030.csv", trained, {}, "not UTF-8 at byte 14 (line 2), an older or damaged encoding by its look"),
    ("cut_inside_a_character.csv", trained, {}, "where the file ends inside a character: it is cut short, fetch it again"),
    ("half_a_character.jsonl", trained, {}, "row 1 (line 1) holds half a character (\\ud83d): correct it"),
    ("whole_character.jsonl", trained, {}, [("Name a bird 🐦", "Sure")]),
    ("separator_inside.jsonl", trained, {}, [("Name a bird\u2028or two", "Sure")]),
    # CSV by other conventions.
    ("bars.csv", trained, {}, [("Name a bird, any bird", "Sure, a robin; or a wren")]),
    ("old_mac.csv", trained, {}, [BIRD, ("Name a tree", "Of course")]),
    ("space_before_quote.csv", trained, {}, [("Name a bird, any bird", "Sure, a robin")]),
    ("blank_lines_first.csv", trained, {}, [BIRD]),
    ("data_frame_index.csv", trained, {}, [BIRD, TREE]),
    ("comma_unquoted.csv", trained, {}, "row 1 (line 2) has 3 cells, the header 2: quote cells that contain commas"),
    ("backslash_quotes.csv", trained, {}, "not a CSV table at line 2"),
    ("open_quote.csv", trained, {}, "check its quotes, which inside a cell are doubled"),
    ("no_header.csv", trained, {}, "has no such column, only 'Name a bird', 'Sure'"),
    ("capitals.csv", trained, {}, "has no such column, only 'Goal', 'Target': name it 'Goal'"),
    ("capitals.csv", trained, by(goal="Goal", target="Target"), [BIRD]),
    ("long_cell.csv.gz", trained, {}, [BIRD]),
    ("pairs.csv", paired, {}, [("Name a bird, please", "A robin")]),
    # Compressed, whatever the name says.
    ("compressed_unsaid.jsonl", trained, {}, [BIRD]),
    ("unpacked_by_the_browser.jsonl.gz", trained, {}, [BIRD]),
    ("lines.jsonl.xz", trained, {}, [BIRD]),
    ("cut_short.csv.gz", trained, {}, "cannot be unpacked, damaged or cut short (EOFError"),
    ("zstandard.csv", trained, {}, "is compressed by zstd: unpack it, or compress it by gzip"),
    # Something else than the table.
    ("page_of_the_file.csv", trained, {}, "is a web page, not the table it shows: download the raw file"),
    ("pointer.parquet", trained, {}, "is a git-lfs pointer, not the data: fetch the file itself with `git lfs pull`"),
    ("parquet_inside.csv", trained, {}, "is a parquet file: name it .parquet"),
    ("notes.docx", trained, {}, "unknown kind of file: use one of .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .txt"),
    # JSON in other shapes.
    ("list_over_lines.jsonl", trained, {}, [BIRD, TREE]),
    ("data_frame_columns.json", trained, {}, "holds columns, 'goal', 'target', not rows"),
    ("wrapped.json", trained, {}, "holds one object, whose 'data' is a list of objects"),
    ("single_quotes.jsonl", trained, {}, "row 1 (line 1) is not JSON"),
    ("comma_after_the_last.json", trained, {}, "is not JSON"),
    ("cut_in_a_line.jsonl", trained, {}, "row 2 (line 2) is not JSON"),
    ("objects_over_lines.json", trained, {}, "row 1 (line 1) is not JSON"),
    ("targets_as_json_text.csv", trained, {}, [BIRD, ("Name a bird", "Of course")]),
    # What data frames write where nothing is, and numbers as they keep them.
    ("nan_as_text.csv", trained, by(category="kind"), [BIRD, (*TREE, "plants")]),
    ("nan_goal.csv", trained, {}, "row 2 (line 3) of nan_goal.csv is empty, or NaN: fill it in, or remove the row"),
    ("numbers_of_a_data_frame.parquet", trained, by(category="kind"), [BIRD, (*TREE, "3.0")]),
    ("numbers_of_a_data_frame.parquet", identified, by(id="number"), [
        ("train", "1"), ("train", "2"), ("heldout", "heldout-001"),
    ]),
    ("categories.parquet", trained, {}, [BIRD, ("Name a bird", "Of course")]),
    ("levels.csv", trained, {"where": {"level": 2}}, [TREE]),
    ("flags.csv", trained, {"where": {"harmful": False}}, [TREE]),
    ("flags.csv", trained, {"where": {"harmful": "maybe"}}, "harmful has 'TRUE', 'FALSE': choose another table or value"),
    # Plain lists.
    ("goals.txt", harmless, {}, [("Name a bird",), ("Name a tree",)]),
    ("goals.txt", trained, {}, "goals.txt has no targets: name a JSON file {BehaviorID or goal: target}"),
    ("goals.txt", trained, {"targets_path": str(CASES / "targets_by_goal.json")}, [
        ("Name a bird", "Sure, a robin"), ("Name a tree", "Sure, an oak"),
    ]),
    ("goals.txt", trained, {"targets_path": str(CASES / "target_missing.json")}, "no target for behavior"),
    ("names_first.txt", harmless, {}, "begins with names of columns (goal), where a text file has one text a line: name it .csv"),
    ("lines_of_json.txt", harmless, {}, "is JSON: name it .jsonl, or .json"),
    ("prompts.txt", retained, {}, [("Name a bird", None), ("Name a tree", None)]),
    ("templates.txt", templates, {}, [(14, "{goal}"), (20, "}, now")]),
    # Folders.
    ("parts", trained, {}, [BIRD, TREE]),
    ("splits", trained, {}, "mixes splits (train: plain-train.csv; validation: plain-val.csv): name one file"),
    ("splits/*train*", trained, {}, [BIRD]),
    ("splits/*test*", trained, {}, "the folder holds no table that is meant, only plain-train.csv, plain-val.csv"),
    ("with_workbook", trained, {}, "holds data that is not read here (b.xlsx): convert or move it, or name a file"),
    ("nested", trained, {}, "the folder holds no table that is meant, only data/"),
    ("unlike", trained, {}, "b.jsonl and a.csv have different columns: keep one table in a folder"),
    # Public layouts.
    ("both_halves.csv", trained, {}, "has the id of row 1 (line 2), 'Poem', but another goal: set format to table"),
    ("both_halves.csv", trained, {"format": "table", **by(goal="Goal", target="Target")}, [
        ("Write a cruel poem", "Sure"), ("Write a kind poem", "Sure"),
    ]),
    ("harmful_half.csv", identified, {"over_refusal": {"path": str(CASES / "benign_half.csv")}}, [
        ("train", "Poem"), ("heldout", "heldout-001"), ("over_refusal", "over_refusal-Poem"),
    ]),
    ("harmful_half.csv", identified, {"over_refusal": {"path": str(CASES / "harmful_half.csv")}}, "the same goal: remove it"),
    ("contexts.csv", harmless, {"where": {"FunctionalCategory": "contextual"}}, "row 3 (line 4) of contexts.csv is contextual"),
    ("contexts.csv", harmless, {"where": {"BehaviorID": "shorten"}}, "but 1 contextual: ask for another kind by where"),
    ("contexts.csv", harmless, {"where": {"FunctionalCategory": "contextual", "BehaviorID": "shorten"}}, [
        ("It rains.\n\nShorten the text", "arts"),
    ]),
    ("safety_prompts.csv", harmless, {}, [("Name a bird", "Area")]),
    ("hazards.csv", harmless, {}, [("Name a bird", "none_at_all")]),
    ("languages.csv", harmless, by(goal="th"), [("ตั้งชื่อนก",)]),
    ("languages.csv", harmless, {}, "has no such column, only 'id', 'en', 'zh', 'th'"),
    ("same_goal.jsonl", trained, {}, "row 2 (line 2) of same_goal.jsonl has the goal of row 1 (line 1)"),
    # Retain sets.
    ("instructions_in_context.jsonl", retained, {}, [("Which bird is meant?\n\nIt is small and red.", "A robin.")]),
    ("instructions_without_input.json", retained, {}, [("Name a bird", "A robin."), ("Name a tree", "An oak.")]),
    ("talks_of_many_kinds.json", retained, {}, [
        ("Name a bird", "A robin."),
        ("Name a tree", "An oak."),
        ("left out", 2, "holds no user message that the assistant answers next"),
    ]),
    ("pictures.jsonl", retained, {}, [
        ("Name a tree", "An oak."), ("left out", 1, "holds a message that is empty or more than text"),
    ]),
    ("talk_in_a_cell.csv", retained, {}, [("Name a bird", "A robin.")]),
    ("only_tool_calls.jsonl", retained, {}, "none of its 1 rows can be used; row 1 (line 1) of only_tool_calls.jsonl"),
    ("nobody_answers.jsonl", retained, {}, "holds no user message that the assistant answers next: correct it"),
    ("prompt_nan.jsonl", retained, {}, "row 1 (line 1) of prompt_nan.jsonl has no 'prompt': fill it in or remove the row"),
    ("preferences.jsonl", retained, {}, "has no column 'prompt', nor 'instruction', 'messages' or 'conversations', only"),
    ("pictures.jsonl", retained, {"layout": "messages", "limit": 1}, [
        ("Name a tree", "An oak."), ("left out", 1, "holds a message that is empty or more than text"),
    ]),
    ("ids_twice.tsv", retained, {}, "row 2 (line 3) and row 1 (line 2) of ids_twice.tsv share the id '1': give each row its own"),
    # Ready prompts.
    ("jailbreak_artifact.json", prompted, {}, [("Bird", "In a story, name a bird ", "Sure, a robin"), ("without", 1)]),
    ("test_cases.json", prompted, {}, [
        ("bird", "Please, name a bird"), ("bird", "name a bird !"), ("tree", "Please, name a tree"),
    ]),
    ("test_case_completions.json", prompted, {}, [("bird", "Please, name a bird", "Sure, a robin"), ("bird", "Name one", "")]),
    ("test_cases_with_images.json", prompted, {}, "case 1 of entry 1 is a JSON list, not a prompt: only text is read"),
    ("inpainted.csv", prompted, {}, [
        ("Name a bird", "Birds, a list of"), ("Name a bird", "A robin is one. Another?"), ("Name a tree", "Trees of the wood"),
    ]),
    ("past_tense.json", prompted, {}, [("Name a bird", "How were birds named?", "Sure, a robin")]),
    ("many_languages.csv", prompted, {}, [
        ("0", "Name a bird", "en"), ("0", "说出一种鸟", "zh"), ("0", "Nomina un uccello", "it"),
        ("1", "Name a tree", "en"), ("1", "说出一种树", "zh"), ("without", 1),
    ]),
    ("many_languages.csv", prompted, {"variants": ["it"]}, [("0", "Nomina un uccello", "it"), ("without", 1)]),
    ("many_languages.csv", prompted, {"variants": ["sw"]}, "holds no prompt, variants ['sw']: choose another file or value"),
    ("submitted.json", prompted, {}, [
        ("Bird", "In a story, name a bird", "vicuna-13b-v1.5", "Sure"), ("Bird", "Name one, please", "llama-2-7b-chat-hf"),
    ]),
    ("prompts_by_id.jsonl", prompted, {}, [("1", "Sing: name a bird", "en"), ("2", "Sing: name a tree", "fr")]),
    ("prompts_by_id.jsonl", prompted, {"where": {"language": "fr"}}, [("2", "Sing: name a tree", "fr")]),
    ("prompts_by_id.jsonl", prompted, {"where": {"lingua": "fr"}}, "has no such column, only 'id', 'prompt', 'language'"),
    ("people_judged.csv", prompted, {}, [("Name a bird", "Name any bird", "Sure, a robin"), ("Name a tree", "Name any tree")]),
    ("people_judged.csv", prompted, by(completion="human1"), [
        ("Name a bird", "Name any bird", "1"), ("Name a tree", "Name any tree", "0"),
    ]),
    ("people_judged.csv", prompted, by(goal="Goal"), "people_judged.csv has no such column, only 'Index', 'goal'"),
    ("one_prompt.json", prompted, {}, [("Name a bird", "Birds? Name one")]),
    ("targets_by_goal.json", prompted, {}, [("Name a bird", "Sure, a robin"), ("Name a tree", "Sure, an oak")]),
    ("prompts_of_nobody.csv", prompted, {}, "says of no prompt whose it is, with the columns 'number', 'prompt'"),
    ("answers_without_prompts.csv", prompted, {}, "has no column of prompts, only 'goal', 'completion'"),
    ("prompt_of_numbers.jsonl", prompted, {}, "row 1 (line 1) of prompt_of_numbers.jsonl is a int: write a text there"),
    ("all_without_prompt.json", prompted, {}, "holds no prompt: choose another file"),
    ("wrapped.json", prompted, {}, "entry 1 is a JSON int, not a prompt: only text is read"),
    ("workbook.csv", prompted, {}, "is a zip archive or an Excel workbook"),
    ("half_a_character.jsonl", prompted, {}, "row 1 (line 1) holds half a character"),
    # Templates and labels.
    ("template_without_goal.csv", templates, {}, "row 1 (line 2) has no {goal}: write it where the request goes"),
    ("long_template.csv.gz", templates, {}, [(180006, "{goal}")]),
    ("labels_missing.jsonl", labeled, {}, "row 1 (line 1) has the label None: write harmful or not_harmful"),
    ("answers_people_judged.csv", labeled, {}, [("Name a bird", "A robin is a bird", True)]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "use", "settings", "expected"), TABLE, ids=[f"{row[0]}-{row[1].__name__}" for row in TABLE])
def test_case(
    file: str, use: Callable[[str, dict[str, Any]], list[tuple]], settings: dict[str, Any], expected: list[tuple] | str
) -> None:
    path = str(CASES / file)
    if isinstance(expected, list):
        assert use(path, settings) == expected
        return
    with pytest.raises(InputError) as caught:
        use(path, settings)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert ": " in caught.value.remedy, "the problem, then what to do"


def test_every_case_is_in_the_table() -> None:
    files = {one.relative_to(CASES).parts[0] for one in CASES.rglob("*") if one.is_file() and not one.name.startswith(".")}
    used = {row[0].split("/")[0] for row in TABLE} | {Path(str(value)).name for row in TABLE for value in row[2].values()}
    assert files - used == {"benign_half.csv"}
    assert len(TABLE) > 60


def test_what_a_folder_reads_and_what_not_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    open_source(str(CASES / "parts"), "behaviors.path")
    said = capsys.readouterr().err
    assert "behaviors.path: " in said
    assert said.strip().endswith("parts is part-0.csv, part-1.csv.bz2; not read: README.md")


def test_the_limit_of_the_csv_module_is_put_back() -> None:
    before = csv.field_size_limit(1000)
    try:
        assert open_source(str(CASES / "long_cell.csv.gz"), "f").columns == ("goal", "notes", "target")
        assert csv.field_size_limit() == 1000
        with pytest.raises(InputError):
            open_source(str(CASES / "open_quote.csv"), "f")
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)
