from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dat_ray import devices
from dat_ray.config.loading import difference, fingerprint, list_recipes, load_recipe, recipe_text
from dat_ray.config.schema import Recipe
from dat_ray.errors import InputError


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str, tmp_path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    written = tmp_path / "copy.yaml"
    written.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    again = load_recipe(str(written))
    assert again == recipe
    assert fingerprint(again) == fingerprint(recipe)


def test_overrides_reach_nested_fields_and_read_numbers_as_people_write_them() -> None:
    recipe = load_recipe("demo", ["training.learning_rate=1e-5", "training.attack.steps=7", "behaviors.path=my.csv"])
    assert recipe.training.learning_rate == 1e-5
    assert recipe.training.attack.steps == 7
    assert recipe.behaviors.path == "my.csv"


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ('target.revision="31415926"', "revision", "31415926"),
        ("target.revision='31e41592'", "revision", "31e41592"),
        ("target.revision=31e41592", "revision", "31e41592"),  # beyond every number: a commit
        ('target.system_prompt="-1.5"', "system_prompt", "-1.5"),
        ('target.system_prompt="nan"', "system_prompt", "nan"),
        ("target.max_new_tokens=3e1", "max_new_tokens", 30),
        ('target.template_options={a: "1e2", b: 1e2}', "template_options", {"a": "1e2", "b": 100.0}),
    ],
)
def test_quoted_text_stays_text_whatever_it_looks_like(override: str, field: str, value: object) -> None:
    assert getattr(load_recipe("demo", [override]).target, field) == value


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.learning_rat=1", ["training.learning_rat", "unknown key", "learning_rate"]),
        ("trainin.learning_rate=1", ["trainin", "unknown key", "training"]),
        ("training.learning_rate=fast", ["training.learning_rate", "'fast'", "number"]),
        ("training.learning_rate=3", ["training.learning_rate", "3", "less than 1"]),
        ("sampler.steps=1000", ["sampler.steps", "1000", "lower sampler.steps"]),
        ("target.max_new_tokens=-1", ["target.max_new_tokens", "-1", "tokens of one completion"]),
        ("training", ["--set", "section.field=value"]),
        ("training.retain_rows=0", ["retain_rows", "0"]),
        ("seed.x=1", ["--set", "seed"]),
    ],
)
def test_a_bad_override_is_one_line_with_field_value_and_remedy(override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("demo", [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert caught.value.exit_code == 2


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'demo'"):
        load_recipe("demmo")


def test_a_file_that_is_no_mapping_or_no_yaml_is_refused(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="mapping"):
        load_recipe(str(path))
    path.write_text("a: [1\n")
    with pytest.raises(InputError, match="YAML"):
        load_recipe(str(path))


def test_the_fingerprint_follows_results_only() -> None:
    base = fingerprint(load_recipe("demo"))
    assert fingerprint(load_recipe("demo", ["seed=1"])) != base
    assert fingerprint(load_recipe("demo", ["training.attack.steps=9"])) != base
    assert fingerprint(load_recipe("demo", ["cluster.sampler.max_actors=9", "timeouts.no_progress=5"])) == base
    # A default that is written out.
    tree = yaml.safe_load(recipe_text("demo"))
    assert "order" not in tree["sampler"]
    assert fingerprint(load_recipe("demo", ["sampler.order=low_confidence"])) == base


def test_difference_names_the_fields_and_both_values() -> None:
    found = difference(load_recipe("demo", ["seed=1"]), load_recipe("demo", ["seed=2", "cluster.local_cpus=3"]))
    assert found == ["seed: 1 -> 2"]


def test_an_override_changes_one_place_where_yaml_shares_a_mapping(tmp_path) -> None:
    tree = recipe_text("demo").split("cluster:")[0]
    (tmp_path / "shared.yaml").write_text(tree + "cluster:\n  sampler: &pool {num_cpus: 2}\n  target: *pool\n")
    recipe = load_recipe(str(tmp_path / "shared.yaml"), ["cluster.sampler.num_cpus=3"])
    assert (recipe.cluster.sampler.num_cpus, recipe.cluster.target.num_cpus) == (3, 2)


def test_configuration_imports_neither_torch_nor_ray_nor_vllm() -> None:
    code = (
        "import sys, dat_ray.cli, dat_ray.config.loading as l; l.load_recipe('demo');"
        "bad = {'torch', 'ray', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_elastic_trainer_takes_no_label() -> None:
    load_recipe("demo", ["cluster.trainer.max_actors=4"])
    with pytest.raises(InputError, match=r"trainer.subcluster and an elastic trainer"):
        load_recipe("demo", ["cluster.trainer.max_actors=4", "cluster.trainer.subcluster=training"])


@pytest.mark.parametrize(
    ("flags", "gpus", "expected"),
    [
        ("flags : fpu avx512f avx512_bf16", False, "bfloat16"),
        ("Features : fp asimd bf16", False, "bfloat16"),
        ("flags : fpu avx2 avx512f", False, "float32"),
        (None, False, "float32"),
        ("flags : fpu avx2", True, "bfloat16"),
    ],
)
def test_auto_is_settled_by_the_machine_that_reads_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, gpus: bool, expected: str
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    if gpus:
        (tmp_path / "gpus").mkdir()
    monkeypatch.setattr(devices, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices, "NVIDIA_GPUS", tmp_path / "gpus")
    recipe = load_recipe("demo", ["sampler.dtype=auto", "target.dtype=auto", "training.dtype=float16"])
    assert (recipe.sampler.dtype, recipe.target.dtype, recipe.training.dtype) == (expected, expected, "float16")
    # What a run directory stores is settled.
    assert "auto" not in {recipe.sampler.dtype, Recipe.model_validate_json(recipe.model_dump_json()).target.dtype}
