"""Files and names that somebody else wrote: one line each, nothing hung, nothing obeyed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.config.yaml_text import MAX_DEPTH, load_yaml
from dat_ray.data.rundir import open_run
from dat_ray.data.shards import MANIFEST, ShardFile, read_table, write_manifest, write_shard
from dat_ray.errors import DatError, InputError, ShardError
from dat_ray.json_text import JsonError, parse_json, parse_lines
from dat_ray.printable import printable
from dat_ray.progress import Progress, stage_line
from dat_ray.reporting.sweep import front_csv
from dat_ray.reporting.tables import Cell, Comparison, Measure, as_csv, as_latex, as_markdown
from dat_ray.reporting.terminal import for_terminal

ESCAPES = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202egnp.exe\u2028\ud800"


def test_text_of_others_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("Größe 大 – 5 % │ ok") == "Größe 大 – 5 % │ ok"
    assert printable("a\tb\r\nc\x1b[31m") == "a b  c\\x1b[31m"
    for error in (DatError(ESCAPES), InputError("judge.name", "x", ESCAPES), InputError("target.model", ESCAPES, "change it")):
        assert str(error).isprintable()
        assert str(error).encode()
    stage_line(f"  stage: {ESCAPES}")
    with Progress("made", 1, "rows") as progress:
        progress.update(1, ESCAPES)
        print(progress.line(), file=sys.stderr)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("  stage: \\x1b]0;title")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice"),
        ("[" * 5000 + "]" * 5000, "nested deeper"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper"),
        (f'{{"rows": {"9" * 5000}}}', "5000 digits"),
        (f'{{"rows": {"9" * 50}}}', "50 digits"),
        ('{"rows": 1e999}', "no finite number"),
        ('{"rows": -Infinity}', "no number"),
        ('{"rows": NaN}', "no number"),
        (r'{"name": "\ud83d"}', "half a character (\\ud83d)"),
        (b'{"name": "caf\xe9"}', "not UTF-8"),
        ('{"rows": 1', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_is_read_within_bounds(text: str | bytes, reason: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_that_a_run_or_a_model_holds_is_read() -> None:
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}') == {"model_max_length": int(1e30)}
    assert parse_json("[Infinity, 1e999]", finite=False) == [float("inf")] * 2
    assert parse_json('{"a": "\U0001f600\\ud83d\\ude00"}') == {"a": "\U0001f600\U0001f600"}
    assert parse_lines(b'{"a": 1}\n\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    with pytest.raises(JsonError, match="line 2 is a JSON list"):
        parse_lines(b'{"a": 1}\n[]\n')


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "values"),
        ("a: &a [*a]", "alias"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 3000, "nested deeper"),
        (f"seed: {'7' * 5000}", "5000 digits"),
        (f"seed: 0x{'f' * 4000}", "digits"),
        ("a: !!int ''", "tag"),
        ("a: !!python/object/apply:os.system [id]", "constructor"),
        ("b: 1\nb: 2", "twice"),
        ("a: {c: 1, c: 2}", "twice"),
        ("x" * (1 << 21), "longer"),
    ],
)
def test_yaml_is_read_within_bounds(text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((yaml.YAMLError, ValueError), match=reason):
        load_yaml(text)
    (tmp_path / "r.yaml").write_text(text)
    assert main(["run", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "&a [*a]", "!!int ''", "\x1b[2J", "\ud800"])
def test_an_override_and_a_grid_are_read_within_bounds(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "demo", "--set", f"seed={value}"]) == 2
    assert main(["sweep", "demo", "--grid", f"seed=1,{value}"]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_latin_1_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_bytes("name: café\n".encode("latin-1"))
    assert main(["run", str(tmp_path / "r.yaml")]) == 2
    assert "not UTF-8 at byte 9" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", ".", "./part.parquet", "a//part.parquet", "a/", "part\n.parquet", "x" * 5000])
def test_a_manifest_names_plain_files(path: str, tmp_path: Path) -> None:
    write_shard(str(tmp_path), "part.parquet", pa.table({"x": [1]}))
    write_manifest(str(tmp_path), [ShardFile(path, 1, "0" * 64)], "f")
    with pytest.raises(ShardError) as caught:
        read_table(str(tmp_path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 6000


def test_a_file_that_a_manifest_names_twice_is_not_counted_double(tmp_path: Path) -> None:
    file = write_shard(str(tmp_path), "part.parquet", pa.table({"x": [1]}))
    write_manifest(str(tmp_path), [file, file], "f")
    with pytest.raises(ShardError, match="twice"):
        read_table(str(tmp_path))


def test_files_of_unlike_columns_are_named(tmp_path: Path) -> None:
    files = [write_shard(str(tmp_path), f"{name}.parquet", pa.table({name: [1]})) for name in "ab"]
    write_manifest(str(tmp_path), files, "f")
    with pytest.raises(ShardError, match="unlike columns"):
        read_table(str(tmp_path))


def test_files_of_before_a_column_was_there_are_read_with_it(tmp_path: Path) -> None:
    later = pa.schema([pa.field("x", pa.int64(), nullable=False), pa.field("note", pa.list_(pa.string()))])
    tables = [pa.table({"x": [1]}), pa.table({"x": [2], "note": [["n"]]}, schema=later)]
    files = [write_shard(str(tmp_path), f"{number}.parquet", table) for number, table in enumerate(tables)]
    write_manifest(str(tmp_path), files, "f")
    assert read_table(str(tmp_path)).to_pylist() == [{"x": 1, "note": None}, {"x": 2, "note": ["n"]}]
    # A column that no row may lack is another matter.
    needed = pa.schema([pa.field("x", pa.int64()), pa.field("note", pa.string(), nullable=False)])
    files[1] = write_shard(str(tmp_path), "2.parquet", pa.table({"x": [2], "note": ["n"]}, schema=needed))
    write_manifest(str(tmp_path), files, "f")
    with pytest.raises(ShardError, match="unlike columns"):
        read_table(str(tmp_path))


NASTY = "=cmd()|x](http://x)[bold]\n\\end{x}`<b>\x1b[2J"


def nasty() -> Comparison:
    cell = Cell(0.5, 0.25, 0.75, n=3)
    measures = (Measure("@key", NASTY, "rate", (cell, cell)),)
    return Comparison((NASTY, "+x"), measures, 0.95, f"Judged by {NASTY}.")


def test_names_do_not_leave_their_cell_of_a_table() -> None:
    markdown = as_markdown(nasty())
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "](http" not in markdown
    assert "<b>" not in markdown
    latex = as_latex(nasty())
    assert latex.count("\n\\end") == 1
    assert latex.splitlines()[0].startswith("% ")
    assert latex.splitlines()[1].startswith("\\begin{tabular}")
    for line in as_csv(nasty()).splitlines()[1:]:
        assert line.lstrip('"')[0] == "'"
    for text in (markdown, latex, as_csv(nasty())):
        assert all(line.isprintable() for line in text.splitlines())


def test_markup_in_a_name_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=300).print(*for_terminal(nasty()))
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert "\x1b[2J" not in shown


def test_a_sweep_s_numbers_hold_no_formula() -> None:
    from dat_ray.reporting.sweep import SweepRow

    text = front_csv([SweepRow("=1+1", "-x", None, "@sum(1)\x1b[2J")])
    assert text.splitlines()[1].startswith("'=1+1,'-x,")
    assert "'@sum(1)\\x1b[2J" in text


def altered_run(tmp_path: Path, name: str, text: str) -> str:
    run = open_run(str(tmp_path / "run"), load_recipe("demo"), resume=False)
    path = Path(run.root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return run.root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("logs/events-1.jsonl", json.dumps({"event": "failure", "time": 1, "kind": ESCAPES, "text": ESCAPES})),
        ("logs/events-1.jsonl", '{"event": "progress"}\n[]\n{"event": 3, "time": "x"}\n' + "[" * 9000),
        ("training/round-0/metrics.jsonl", '{"update": '),
        ("training/round-0/metrics.jsonl", '{"epoch": [[]]}'),
        (f"candidates/round-0/{MANIFEST}", "[" * 9000),
        ("run.json", '{"recipe": ' * 3000),
        ("run.json", '{"recipe": {"name": "a", "name": "b"}}'),
        ("run.json", '{"recipe": []}'),
    ],
)
def test_status_of_an_altered_run_is_lines_of_text(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = altered_run(tmp_path, name, text)
    status = main(["status", root])
    shown = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in shown.err
    assert all(line.isprintable() for line in [*shown.out.splitlines(), *shown.err.splitlines()])
    assert len(shown.err.splitlines()) == (status != 0)


def test_an_error_that_nobody_foresaw_is_printed_without_escapes_and_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")

    def fails(*_: object) -> object:
        raise RuntimeError(f"sk-0123456789 {ESCAPES}")

    monkeypatch.setattr("dat_ray.ops.status.read_status", fails)
    assert main(["status", "somewhere"]) == 1
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert "0123456789" not in shown
    assert all(line.isprintable() for line in shown.splitlines())
