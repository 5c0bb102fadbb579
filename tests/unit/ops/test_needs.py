from __future__ import annotations

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.ops.needs import Finding, Group, compare

GENERATION = Group("generation", 4, 1, 0, 3, {"ray-subcluster": "generation"})
TRAINING = Group("training", 48, 4, 0, 2, {"ray-subcluster": "training"})


def findings(groups: list[Group], *settings: str) -> dict[str, Finding]:
    pinned = [f"cluster.{role}.subcluster=generation" for role in ("sampler", "target", "judge")]
    recipe = load_recipe("demo", [*pinned, "cluster.trainer.subcluster=training", *settings])
    return {finding.name: finding for finding in compare(recipe, groups)}


def test_what_fits_names_its_group_and_says_that_it_waits() -> None:
    found = findings([GENERATION, TRAINING], "cluster.sampler.num_gpus=1")
    assert all(finding.ok for finding in found.values())
    sampler = found["generate: sampler"].detail
    assert "1 x (1 CPU, 1 GPU) on ray-subcluster=generation" in sampler
    assert "can run on generation (up to 3)" in sampler
    assert "training" not in sampler
    assert "waits until the autoscaler has started nodes" in sampler


def test_nodes_that_are_up_need_no_waiting() -> None:
    up = [Group("g", 4, 0, 2, 2, GENERATION.labels), Group("t", 4, 0, 1, 1, TRAINING.labels)]
    assert "waits" not in findings(up)["generate: sampler"].detail


ATTACKER = "evaluation.attacker={model: some/model}"


@pytest.mark.parametrize("attack", ["pair", "past_tense"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.attacker.num_gpus=3", "no node can hold one actor"),
        ("cluster.attacker.subcluster=attackers", "no group has that label"),
        ("cluster.attacker.num_cpus=9", "no node can hold one actor"),
    ],
)
def test_an_attacker_that_nothing_can_hold_is_named(attack: str, setting: str, words: str) -> None:
    settings = [ATTACKER, setting, f"evaluation.attacks=[direct,{attack}]"]
    [name] = [name for name in findings([GENERATION], *settings) if name.endswith(": attacker")]
    found = findings([GENERATION], *settings)[name]
    assert name.startswith("evaluate")
    assert not found.ok
    assert words in found.detail
    assert "cluster.attacker" in found.remedy


def test_an_attacker_that_no_attack_asks_needs_no_place() -> None:
    settings = [ATTACKER, "cluster.attacker.num_gpus=9", "evaluation.attacks=[direct]"]
    assert not any("attacker" in name for name in findings([GENERATION], *settings))
    # Named by the check of attacks, and no fault of the cluster.
    assert "evaluate: target" in findings([GENERATION], "evaluation.attacks=[pear]")
    assert "evaluate: target" in findings([GENERATION], "evaluation.attacks=[pair]")


@pytest.mark.parametrize(("attack", "together"), [("pair", True), ("crescendo", True), ("future_tense", False)])
def test_only_an_attacker_that_works_beside_the_target_needs_room_for_both(attack: str, together: bool) -> None:
    card = [Group("card", 8, 1, 1, 1, GENERATION.labels)]
    settings = [ATTACKER, "cluster.attacker.num_gpus=1", "cluster.target.num_gpus=1", f"evaluation.attacks=[{attack}]"]
    wrong = [name for name, finding in findings(card, *settings).items() if not finding.ok and name.startswith("evaluate")]
    assert wrong == (["evaluate: all pools together"] if together else [])


def test_a_second_judge_that_is_a_model_counts_beside_the_first() -> None:
    reader = "{model: some/judge, template: none}"
    settings = ["judge.name=harmbench", f"judge.reader={reader}", "cluster.judge.num_gpus=0.6"]
    card = [Group("card", 8, 1, 1, 1, GENERATION.labels)]
    assert findings(card, *settings)["evaluate: all pools together"].ok
    second = "evaluation.second_judge={name: llama-guard, reader: " + reader + "}"
    found = findings(card, *settings, second)["evaluate: all pools together"]
    assert not found.ok
    assert "1.2 GPU" in found.detail
    assert "cluster.judge" in findings(card, *settings, second, "cluster.judge.num_gpus=2")["evaluate: second judge"].remedy


@pytest.mark.parametrize("recipe", ["one-gpu", "one-gpu-cat"])
def test_a_recipe_for_one_card_fits_one_card(recipe: str) -> None:
    found = compare(load_recipe(recipe), [Group("this machine", 8, 1, 1, 1)])
    assert [finding.detail for finding in found if not finding.ok] == []


@pytest.mark.parametrize(
    ("groups", "settings", "name", "words"),
    [
        ([TRAINING], [], "generate: sampler", "no group has that label (there: training)"),
        ([], [], "generate: sampler", "there: no workers"),
        ([GENERATION, TRAINING], ["cluster.trainer.num_gpus=8"], "train: trainer", "training 48 CPU and 4 GPU"),
        ([GENERATION, TRAINING], ["cluster.sampler.num_cpus=5"], "generate: sampler", "no node can hold one actor"),
        (
            [GENERATION, TRAINING],
            ["cluster.sampler.num_gpus=1", "cluster.sampler.min_actors=4", "cluster.sampler.max_actors=4"],
            "generate: sampler",
            "generation (up to 3) have room for 3",
        ),
        (
            [GENERATION, TRAINING],
            [f"cluster.{role}.{key}" for role in ("sampler", "target") for key in ("min_actors=2", "max_actors=2", "num_gpus=1")],
            "generate: all pools together",
            "4 GPU on ray-subcluster=generation, there are at most 12 and 3",
        ),
        # 2.1 CPUs of pools fit, 2 more for files and a resume do not.
        ([Group("g", 3, 0, 1, 1, {"ray-subcluster": "generation"})], [], "generate: all pools together", "2 CPU of it for files"),
    ],
)
def test_what_would_wait_is_named(groups: list[Group], settings: list[str], name: str, words: str) -> None:
    found = findings(groups, *settings)[name]
    assert not found.ok
    assert words in found.detail
    assert found.remedy


def test_a_pool_that_is_not_pinned_may_start_the_wrong_nodes() -> None:
    found = findings([GENERATION, TRAINING], "cluster.sampler.subcluster=null")
    assert "not pinned: set cluster.sampler.subcluster" in found["generate: sampler"].detail
