"""Each published family for a few updates on the embedded model: the response becomes unlikely, the refusal likely.

The long form of tests/unit/training/test_effects.py, where a tiny model has them all.

The objective, its weights and its cutoffs are the recipe's own; only sizes are those of a small model and a short test. What
came of it is measured on unattacked prompts, the same way for every family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import RunDir, open_run, rewrites_folder
from dat_ray.data.schemas import RETAIN, TRAINING_SET
from dat_ray.data.shards import write_manifest, write_shard
from dat_ray.models.chat import ChatFormat
from dat_ray.models.embedded import resolve_model
from dat_ray.models.fit import Limits
from dat_ray.models.loading import load_tokenizer
from dat_ray.training.checkpoint import FolderCheckpoints, RunFingerprint
from dat_ray.training.driver import build_model
from dat_ray.training.fine_tuning import TrainingRows, fine_tune
from dat_ray.training.network import Network
from dat_ray.training.retain_set import RETAIN_FILE, retain_folder
from dat_ray.training.terms import pair_batch, pair_logprobs, retain_losses
from dat_ray.training.trainer import TrainingFiles
from dat_ray.training.training_rows import load_rows
from dat_ray.training.update_metrics import MetricsLog, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.drill]

MODEL = "embedded:smollm2-135m-instruct"
UPDATES = 4
# What keeps every family short on a CPU; all else is the recipe's.
SMALL = (
    f"target.model={MODEL}",
    "target.system_prompt=null",
    "behaviors.path=builtin:demo-train",
    "behaviors.heldout.path=builtin:demo-heldout",
    "behaviors.over_refusal=null",
    "behaviors.targets_path=null",
    "behaviors.refusals_path=null",
    "training.learning_rate=0.001",
    f"training.updates={UPDATES}",
    "training.harmful_rows=2",
    "training.micro_rows=null",
    "training.max_tokens=96",
    "training.warmup=0",
    "training.dtype=float32",
    "training.attack.steps=2",
    "training.lora.rank=8",
    "training.lora.alpha=32",
    "training.lora.dropout=0",
)
RETAINING = ("training.retain_rows=2", "training.retain.path=builtin:demo-retain", "training.retain.layout=columns")
# Steps of a size that two of them can use; LAT's own layers are those of a model with 32.
FAMILIES: dict[str, tuple[str, ...]] = {
    "dat-llama3-8b": RETAINING,
    "diffusion-only-llama3-8b": ("training.attack.steps=0", *RETAINING),
    "cat-original-llama3-8b": ("training.attack.step_size=0.01", *RETAINING),
    "capo-llama3-8b": ("training.attack.step_size=0.01",),
    "mixat-llama3-8b": ("training.attack.step_size=0.01", *RETAINING),
    "lat-llama3-8b": (
        "training.updates=2",
        "training.attack.layers=[embedding,8,15,22,28]",
        *RETAINING,
    ),
}
QUESTIONS = {
    "How do I kill time during a long layover?": "You can read a book, take a walk, or watch a film while you wait.",
    "Why is the sky blue?": "The sky is blue because air scatters the blue part of the sunlight more than the red part.",
    "Give me a recipe for pancakes.": "Mix two cups of flour, two eggs and a cup of milk, then fry small portions in butter.",
    "Name three planets.": "Three planets are Mercury, Venus and Mars. All of them are made of rock.",
}


def prepared(name: str, root: Path) -> tuple[Recipe, RunDir]:
    """A run directory with the builtin goals as prompts, their affirmative openings, and harmless rows."""
    recipe = load_recipe(name, [*SMALL, *FAMILIES[name]])
    run, mark = open_run(str(root), recipe, resume=False), fingerprint(recipe)
    found = {
        row["behavior_id"]: row for row in reversed(load_behaviors(recipe.behaviors).table.to_pylist()) if row["split"] == "train"
    }
    rows = [found[key] for key in sorted(found)[:4]]

    def harmful(template: str) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "candidate_id": f"c{index}", "behavior_id": row["behavior_id"], "prompt": template.format(row["goal"]),
                    "target": row["target"], "refusal": row["refusal"], "score": 1.0, "target_logprob": -1.0, "rank": 0,
                }
                for index, row in enumerate(rows)
            ],
            schema=TRAINING_SET,
        )  # fmt: skip

    folder = run.training_set(0)
    write_manifest(folder, [write_shard(folder, "part-0.parquet", harmful("{}"))], mark)
    if recipe.selection.source == "mixture":
        folder = rewrites_folder(run, 0)
        write_manifest(folder, [write_shard(folder, "part-0.parquet", harmful("A friend asks: {}"))], mark)
    if recipe.training.retain_rows:
        retain = [{"retain_id": q, "prompt": q, "response": a, "source": "test"} for q, a in QUESTIONS.items()]
        folder = retain_folder(run, 0)
        write_manifest(folder, [write_shard(folder, RETAIN_FILE, pa.Table.from_pylist(retain, schema=RETAIN))], mark)
    return recipe, run


def measure(network: Network, rows: TrainingRows, chat: ChatFormat, cfg: TrainingConfig) -> tuple[float, float, float]:
    """Mean log p(y), cross-entropy of the refusal and KL(base || model) on harmless rows, nats a token, without attack."""
    network.model.eval()
    encoded = [chat.encode(question, answer, Limits(cfg.max_tokens)) for question, answer in QUESTIONS.items()]
    harmless = [row for row in encoded if row is not None]
    assert len(harmless) == len(QUESTIONS)
    with torch.no_grad():
        away, refusal = pair_logprobs(network, pair_batch(network, rows.harmful, cfg), None, cfg).means()
        kl = retain_losses(network, harmless, cfg.model_copy(update={"retain_loss": "kl_forward"}), 1)[1]
    return away.mean().item(), -refusal.mean().item(), kl.mean().item()


@dataclass(frozen=True)
class Effect:
    """What a family came to: before and after, and its curve."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]
    curve: list[dict]
    root: str


@pytest.fixture(scope="module")
def effects() -> dict[str, Effect]:
    return {}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_effect_on_a_real_model(name: str, tmp_path: Path, effects: dict[str, Effect]) -> None:
    recipe, run = prepared(name, tmp_path / name)
    cfg, base = recipe.training, resolve_model(MODEL)
    chat = ChatFormat(load_tokenizer(base))
    rows, network = load_rows(recipe, run, chat), Network(build_model(recipe, run, base, tmp_path))
    before = measure(network, rows, chat, cfg)
    log = MetricsLog(run.training(0))
    fine_tune(network, rows, cfg, 0, TrainingFiles(RunFingerprint("effects"), FolderCheckpoints(tmp_path / "checkpoints"), log))
    log.close()
    after, curve = measure(network, rows, chat, cfg), read_metrics(run.training(0))
    print("EFFECT", name, [round(x, 2) for x in before], [round(x, 2) for x in after])
    effects[name] = Effect(before, after, curve, run.root)
    assert len(curve) == cfg.updates
    assert before[2] == pytest.approx(0, abs=1e-5)
    assert after[0] < before[0] - 0.2, "log p of the harmful response"
    assert after[1] < before[1] - 0.1, "cross-entropy of the refusal"
    assert after[2] < 2.0, "KL to the base model on harmless rows"
    if cfg.attack.steps:
        assert all(row["attack_ce"][-1] < row["attack_ce"][0] for row in curve), "the attack helps the response"


def test_curves_are_on_one_page(effects: dict[str, Effect], tmp_path: Path) -> None:
    """Of the families whose tests above have run."""
    assert "dat-llama3-8b" in effects
    assert main(["curves", *(effect.root for effect in effects.values()), "--out", str(tmp_path)]) == 0
    page, drawn = (tmp_path / "index.html").read_text(), json.loads((tmp_path / "curves.json").read_text())
    assert all(name in page for name in effects)
    for name, effect in effects.items():
        assert drawn[name]["away"] == [[row["update"], row["away"]] for row in effect.curve]
        assert drawn[name]["toward"] == [[row["update"], row["toward"]] for row in effect.curve]
