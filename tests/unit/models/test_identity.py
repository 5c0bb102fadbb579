from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.errors import InputError
from dat_ray.models.embedded import on_hub
from dat_ray.models.identity import RECORD, check_weights, models_of, weights_of


def model_folder(path: Path, value: float = 1.0) -> str:
    """A folder that looks like a model's to whoever does not load it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": torch.full((4, 4), value)}, path / "model.safetensors")
    return str(path)


def test_a_folder_is_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    first = model_folder(tmp_path / "a")
    base = weights_of(first)
    assert base is not None
    assert weights_of(str(shutil.copytree(first, tmp_path / "b"))) == base
    model_folder(tmp_path / "a", 2.0)
    assert weights_of(first) not in (None, base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"target.model = .* has no safetensors weights"):
        weights_of(str(tmp_path / "empty"), "target.model")


def test_an_embedded_model_is_what_it_is_built_from_and_is_not_built_for_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    sampler, target = weights_of("embedded:smollm2-135m-infill"), weights_of("embedded:smollm2-135m-instruct")
    assert None is not sampler != target is not None
    assert not (tmp_path / "cache").exists()
    assert weights_of("embedded:no-such-model") is None


def in_cache(root: Path, commit: str) -> None:
    """The hub's cache as it is after a download of OWNER/NAME at `main`."""
    repository = root / "models--owner--name"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def test_a_hub_model_is_the_commit_that_its_revision_stands_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert weights_of("owner/name") is None
    in_cache(tmp_path, "a" * 40)
    assert weights_of("owner/name") == "a" * 40
    in_cache(tmp_path, "b" * 40)
    assert weights_of("owner/name") == "b" * 40
    assert weights_of("owner/name", revision="a" * 40) == "a" * 40
    # What only other nodes can see.
    assert weights_of("/not/here") is None
    assert [on_hub(name) for name in ("gpt2", "owner/name", "./here", "~/x", "/x", "a/b/c", "embedded:x")] == [
        True,
        True,
        *[False] * 5,
    ]


def test_other_weights_under_a_recorded_name_are_refused(tmp_path: Path) -> None:
    models = {"target.model": model_folder(tmp_path / "t"), "sampler.model": model_folder(tmp_path / "s", 3.0)}
    run = str(tmp_path / "run")
    first = check_weights(run, {"target.model": models["target.model"]})
    assert check_weights(run, models) == {**first, "sampler.model": weights_of(models["sampler.model"])}
    record = (Path(run) / RECORD).read_bytes()
    assert check_weights(run, models) == json.loads(record)["weights"]

    model_folder(tmp_path / "t", 2.0)
    with pytest.raises(
        InputError, match=r"target\.model = .*has other weights \(\w{16}\) than the rows in .* \(\w{16}\)"
    ) as caught:
        check_weights(run, models)
    assert "\n" not in str(caught.value)
    assert (Path(run) / RECORD).read_bytes() == record
    # The same weights elsewhere are the same.
    model_folder(tmp_path / "moved")
    assert check_weights(run, {"target.model": str(tmp_path / "moved")}) == first


def test_weights_that_could_not_be_told_are_said_once_and_never_compared(tmp_path: Path, capsys) -> None:
    spec = str(tmp_path / "elsewhere")
    assert check_weights(str(tmp_path / "run"), {"target.model": spec}) == {"target.model": None}
    assert "would go unnoticed" in capsys.readouterr().err
    model_folder(tmp_path / "elsewhere")
    # Ids that were made with what is recorded stay as they are.
    assert check_weights(str(tmp_path / "run"), {"target.model": spec}) == {"target.model": None}
    assert capsys.readouterr().err == ""
    # A folder that has gone is no other folder.
    known = {"target.model": model_folder(tmp_path / "t")}
    before = check_weights(str(tmp_path / "other"), known)
    shutil.rmtree(tmp_path / "t")
    assert check_weights(str(tmp_path / "other"), known) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"weights": 3}', b"\xff"])
def test_a_damaged_record_of_weights_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.json .* is not readable") as caught:
        check_weights(str(tmp_path), {"target.model": "owner/name"})
    assert "\n" not in str(caught.value)


def test_the_models_of_a_recipe_are_those_that_run_here() -> None:
    demo = load_recipe("demo")
    assert models_of(demo, "sampler", "target", "judge.reader", "evaluation.attacker") == {
        "sampler.model": demo.sampler.model,
        "target.model": demo.target.model,
    }
    tree = demo.model_dump(mode="json")
    served = {"model": "m", "backend": "endpoint", "endpoint": {"url": "http://localhost:1"}}
    tree["judge"] = {"name": "harmbench", "reader": served}
    tree["evaluation"]["second_judge"] = {"name": "xstest", "reader": {"model": "owner/reader"}}
    recipe = Recipe.model_validate(tree)
    assert models_of(recipe, "judge.reader", "evaluation.second_judge.reader") == {
        "evaluation.second_judge.reader.model": "owner/reader"
    }
