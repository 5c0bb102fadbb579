"""What the threat model in SECURITY.md promises."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import open_run
from dat_ray.data.shards import ShardFile, read_table, write_manifest, write_shard
from dat_ray.errors import InputError, ShardError

PACKAGE = Path(__file__).parents[2] / "dat_ray"
SECRET = "sk-0123456789abcdef"


def calls() -> list[tuple[str, ast.Call]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((f"{path.name}: {ast.unparse(node.func)}", node))
    return found


def test_nothing_is_unpickled_and_no_model_brings_code() -> None:
    imported = {
        alias.name.split(".")[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for where, call in calls():
        name = where.partition(": ")[2]
        assert name not in ("torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), where
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                assert ast.unparse(keyword.value) == "False", where
        loads = name.endswith(".from_pretrained") and name.split(".")[0].startswith(("Auto", "transformers"))
        if loads:
            assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, f"{where} leaves it to a default"


@pytest.mark.parametrize("path", ["/etc/hostname", "../other/part.parquet", "a/../../part.parquet", "file:///etc/hostname"])
def test_a_manifest_s_paths_stay_in_its_folder(tmp_path: Path, path: str) -> None:
    write_manifest(str(tmp_path), [ShardFile(path, 1, "0" * 64)], "f")
    with pytest.raises(ShardError, match="leaves its folder"):
        read_table(str(tmp_path))


def test_a_symbolic_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    file = write_shard(str(outside), "part.parquet", pa.table({"x": [1]}))
    folder.mkdir()
    (folder / "part.parquet").symlink_to(outside / "part.parquet")
    write_manifest(str(folder), [file], "f")
    with pytest.raises(ShardError, match="leads out of its folder"):
        read_table(str(folder))
    # A whole run that lies behind a link is no matter: only the shard may not leave what it belongs to.
    (tmp_path / "link").symlink_to(outside)
    write_manifest(str(outside), [file], "f")
    assert read_table(str(tmp_path / "link")).num_rows == 1


def test_a_recipe_that_holds_a_secret_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    recipe = load_recipe("demo", [f"description=with {SECRET}"])
    with pytest.raises(InputError) as error:
        open_run(str(tmp_path / "run"), recipe, resume=False)
    assert "SOME_API_KEY" in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(InputError, match="password"):
        open_run(str(tmp_path / "run"), load_recipe("demo", ["behaviors.path=https://me:hunter22@host/x.csv"]), resume=False)
    assert not (tmp_path / "run").exists()


def test_a_key_in_a_recipe_is_not_repeated_in_the_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "demo", "--run-dir", str(tmp_path / "run"), "--set", f"judge.api_key={SECRET}"]) == 2
    shown = capsys.readouterr().err
    assert "judge.api_key" in shown
    assert SECRET not in shown


def test_a_record_holds_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    run = open_run(str(tmp_path / "run"), load_recipe("demo"), resume=False)
    record = json.loads(Path(run.record).read_text())
    assert SECRET not in json.dumps(record)
    assert "environ" not in record
    assert os.environ["SOME_API_KEY"] == SECRET
