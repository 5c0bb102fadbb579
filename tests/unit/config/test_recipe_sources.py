"""The paper's recipes: every value as published, and every value with its source."""

from __future__ import annotations

import pytest
import yaml

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint, list_recipes, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.sources import annotated, leaves, source_of
from dat_ray.errors import InputError

PAPER = ("dat-llama3-8b", "dat-qwen2.5-14b", "cat-llama3-8b", "cat-qwen2.5-14b", "diffusion-only-llama3-8b")
OTHERS = (
    "dat-llama3-8b-matched",
    "cat-llama3-8b-matched",
    "cat-original-llama3-8b",
    "capo-llama3-8b",
    "mixat-llama3-8b",
    "lat-llama3-8b",
    "dat-released",
)

# Tables 3 and 4 of arXiv 2602.15238, column by column. Batch 8 or 16 with a utility data ratio of 0.5.
COLUMNS = ("learning_rate", "batch", "epochs", "step_size", "steps", "radius", "max_tokens", "away", "toward", "retain", "dtype")
TABLES = {
    "dat-llama3-8b": (1e-4, 8, 6, 1e-1, 20, 1e7, 128, 0.5, 0.5, 0.45, "bfloat16"),
    "dat-qwen2.5-14b": (1e-4, 8, 6, 1e-1, 40, 1e7, 128, 0.3, 0.7, 0.25, "bfloat16"),
    "cat-llama3-8b": (2e-4, 16, 6, 1e-1, 20, 1e7, 128, 0.5, 0.5, 0.25, "float16"),
    "cat-qwen2.5-14b": (1e-4, 16, 6, 1e-1, 20, 1e7, 128, 0.3, 0.7, 0.25, "bfloat16"),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_are_followed_to_the_letter(name: str) -> None:
    cfg = load_recipe(name).training
    assert cfg.harmful_rows == cfg.retain_rows
    found = (
        cfg.learning_rate,
        cfg.harmful_rows + cfg.retain_rows,
        cfg.epochs,
        cfg.attack.step_size,
        cfg.attack.steps,
        cfg.attack.radius,
        cfg.max_tokens,
        cfg.away_weight,
        cfg.toward_weight,
        cfg.retain_weight,
        cfg.dtype,
    )
    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, TABLES[name], strict=True))
    assert (cfg.away, cfg.away_cutoff, cfg.toward_cutoff, cfg.loss_clip, cfg.retain_loss) == (
        "neg_ce",
        None,
        None,
        None,
        "kl_forward",
    )


@pytest.mark.parametrize("name", [*PAPER, *OTHERS])
def test_every_value_has_a_source_and_no_source_is_idle(name: str) -> None:
    recipe = load_recipe(name)
    fields = [field for field, _ in leaves(recipe.model_dump(mode="json", exclude={"sources"}))]
    assert len(fields) > 80
    assert [field for field in fields if source_of(recipe, field) is None] == []
    idle = [key for key in recipe.sources if not any(field == key or field.startswith(f"{key}.") for field in fields)]
    assert idle == []
    if name in PAPER:
        # Of the training section only a resource may take its section's line: each choice is accounted for by itself.
        resources = {
            "micro_rows",
            "activation_checkpointing",
            "compile",
            "cuda_graph",
            "shard_weights",
            "checkpoint_every",
            "keep_every",
        }
        direct = {key for key, _ in leaves(recipe.training.model_dump(mode="json")) if "." not in key} - resources
        assert [key for key in sorted(direct) if f"training.{key}" not in recipe.sources and key != "layers"] == []


def test_only_the_papers_word_is_called_the_papers() -> None:
    for name in PAPER:
        recipe = load_recipe(name)
        for field in ("training.attack.step_rule", "training.weight_decay", "training.lora", "training.attack.objective"):
            assert not (source_of(recipe, field) or "").startswith("paper"), "the paper is silent on it"


def test_matched_arms_differ_in_their_prompts_alone() -> None:
    dat, cat = load_recipe("dat-llama3-8b-matched"), load_recipe("cat-llama3-8b-matched")
    assert dat.training == cat.training
    assert dat.training.updates == 2400
    assert (dat.behaviors, dat.target, dat.evaluation, dat.judge) == (cat.behaviors, cat.target, cat.evaluation, cat.judge)
    assert (dat.selection.source, cat.selection.source) == ("candidates", "goals")


def test_published_recipes_differ_where_their_papers_do() -> None:
    cat, capo, mixat, lat = (load_recipe(name).training for name in OTHERS[2:6])
    assert (cat.away_cutoff, cat.toward_cutoff, cat.cutoff_form, cat.retain_loss) == (-5.0, 0.5, "soft", "ce")
    assert cat.harmful_rows / (cat.harmful_rows + cat.retain_rows) == 0.125
    assert (cat.attack.step_rule, cat.attack.step_size, cat.attack.radius, cat.attack.radius_unit) == (
        "sign",
        1e-4,
        0.05,
        "relative",
    )
    assert (capo.away, capo.ipo_beta, capo.retain_rows, capo.epochs) == ("ipo", 0.25, 0, 20)
    assert (mixat.attack.radius, mixat.rewrite_share) == (0.075, 0.5)
    assert lat.attack.layers == ("embedding", 8, 16, 24, 30)
    assert (lat.attack.radius, lat.attack.unit, lat.steps_per_attack, lat.updates) == (6.0, "absolute", 4, 100)


def test_the_diffusion_only_recipe_is_dat_without_steps() -> None:
    dat, plain = load_recipe("dat-llama3-8b"), load_recipe("diffusion-only-llama3-8b")
    assert plain.training.attack.steps == 0
    same = plain.training.model_copy(update={"attack": dat.training.attack})
    assert same == dat.training


def test_show_prints_each_value_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "dat-llama3-8b", "--set", "training.attack.steps=7"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split("#")[0].strip(): line.split("#", 1)[1].strip() for line in shown.splitlines() if "  # " in line}
    assert lines["learning_rate: 0.0001"].startswith("paper: table")
    assert lines["steps: 7"] == "set on the command line"
    assert lines["weight_decay: 0.001"].startswith("code: sophie-xhonneux/Continuous-AdvTrain")
    assert "step_rule: l2_normalized" in shown.split("# ours: A4")[0]
    assert "not said" not in shown
    # What is printed is the recipe: comments aside, it reads back as what was resolved.
    tree = yaml.safe_load(shown)
    assert Recipe.model_validate(tree).training == load_recipe("dat-llama3-8b", ["training.attack.steps=7"]).training


def test_sources_change_no_fingerprint_and_name_their_kind() -> None:
    recipe = load_recipe("dat-llama3-8b")
    assert fingerprint(recipe) == fingerprint(recipe.model_copy(update={"sources": {}}))
    assert "#" not in annotated(load_recipe("demo"))
    with pytest.raises(InputError, match="a source begins with paper:, code: or ours:, not as that of seed"):
        load_recipe("demo", ["sources={seed: somebody}"])


def test_all_recipes_are_listed() -> None:
    assert {"demo", *PAPER, *OTHERS} <= set(list_recipes())


@pytest.mark.parametrize("name", [*PAPER, *OTHERS])
def test_where_a_row_is_cut_is_told_beside_its_length(name: str) -> None:
    recipe = load_recipe(name)
    assert "right end, the answer" in (source_of(recipe, "training.max_tokens") or "")
    if recipe.training.retain is not None:
        said = source_of(recipe, "training.retain.max_response_tokens") or ""
        assert said.startswith("ours: ")
        assert said.endswith("cuts an answer by the end of its row alone")
