"""How many rows a recipe asks for and how long their texts are, in tokens, before a tokenizer or a model is there.

Lengths are characters / CHARACTERS_A_TOKEN (English under the tokenizers of Llama 3, Qwen2.5 and SmolLM2; 4.9 on the demo's
goals). The sizes of the public sets were counted in their files, so that a plan needs no network; any other set is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from dat_ray.config.data import BehaviorSource
from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.retain import load_retain
from dat_ray.data.schemas import HARMLESS, HARMLESS_HELD_OUT, HELD_OUT, LOOK_ALIKES, TRAIN
from dat_ray.evaluation.questions import Behavior

CHARACTERS_A_TOKEN = 4.5
# Tokens of a chat template around a user's message: 30 for SmolLM2 and Qwen2.5 with their own system prompt, 11 for Llama 3.
TEMPLATE_TOKENS = 30
# Of a retain row whose set is too large to be read for a plan: it fills its row.
LONG_RETAIN_ROWS, LONG_RETAIN_TOKENS = 20_000, 1000
# Remote retain sets are not read: `hf:...` may be gigabytes.
_REMOTE = ("hf:",)


@dataclass(frozen=True)
class SetSize:
    """One set of behaviors.

    Attributes:
        goals: how many.
        targets: of each goal, on average.
        goal_tokens, target_tokens: mean lengths.
    """

    goals: int
    targets: float
    goal_tokens: float
    target_tokens: float


# Counted in the files: mean lengths of 78, 86 and about 45 characters for goals, 96 and 94 for targets. Of HarmBench's 1,200
# targets 11 are blank.
PUBLIC_SETS = {
    "public:harmbench/adv_training_behaviors.csv": SetSize(100, 11.89, 78 / CHARACTERS_A_TOKEN, 96 / CHARACTERS_A_TOKEN),
    "public:jailbreakbench/jailbreakbench_harmful.csv": SetSize(100, 1, 86 / CHARACTERS_A_TOKEN, 94 / CHARACTERS_A_TOKEN),
    "public:xstest/xstest_prompts.csv": SetSize(250, 0, 45 / CHARACTERS_A_TOKEN, 0.0),
}


# In the order of the fields of `Quantities`.
SPLITS = (TRAIN, HELD_OUT, LOOK_ALIKES, HARMLESS, HARMLESS_HELD_OUT)


@dataclass(frozen=True)
class Quantities:
    """What a recipe's data amount to.

    Attributes:
        train: training behaviors.
        heldout: what is attacked.
        look_alikes: harmless requests, one a goal.
        harmless, harmless_heldout: requests that prompts are in-painted for, before the training and in the evaluation.
        refusal_tokens: mean length of a refusal.
        retain_rows: of the retain set.
        retain_unanswered: of these, how many the base model answers first.
        retain_prompt_tokens: mean length of a retain prompt, without the template.
        behaviors: stand-ins for the held-out ones, by which attacks count.
    """

    train: SetSize
    heldout: SetSize
    look_alikes: SetSize
    harmless: SetSize
    harmless_heldout: SetSize
    refusal_tokens: float
    retain_rows: int
    retain_unanswered: int
    retain_prompt_tokens: float
    behaviors: Sequence[Behavior]

    @property
    def targets(self) -> int:
        """(behavior, target) pairs of training."""
        return round(self.train.goals * self.train.targets)

    @property
    def candidates_goal_tokens(self) -> float:
        """Mean length of a goal that a model is asked as it is."""
        return TEMPLATE_TOKENS + self.heldout.goal_tokens


def tokens_of(text: str) -> float:
    """About how many tokens a text has."""
    return len(text) / CHARACTERS_A_TOKEN


def quantities(recipe: Recipe) -> Quantities:
    """Counts a recipe's data.

    Raises:
        InputError: a set that is neither public nor here, and cannot be read.
    """
    config = recipe.behaviors
    sources = {TRAIN: config} | {split: getattr(config, split) for split in SPLITS if split != TRAIN}
    named = {split: source for split, source in sources.items() if source is not None}
    if all(source.path in PUBLIC_SETS for source in named.values()):
        sets = {split: _cut(PUBLIC_SETS[source.path], source) for split, source in named.items()}
        behaviors = _stand_ins(sets["heldout"])
    else:
        sets, behaviors = _read(recipe)
    rows, unanswered, prompt = _retain(recipe)
    nothing = SetSize(0, 0, 0.0, 0.0)
    train, heldout, look_alikes, harmless, harmless_heldout = (sets.get(split, nothing) for split in SPLITS)
    refusal = tokens_of(config.default_refusal)
    return Quantities(
        train, heldout, look_alikes, harmless, harmless_heldout, refusal, rows, unanswered, prompt, behaviors
    )  # fmt: skip


def _cut(size: SetSize, source: BehaviorSource) -> SetSize:
    goals = min(size.goals, source.limit or size.goals)
    return SetSize(goals, min(size.targets, source.targets_per_behavior or size.targets), size.goal_tokens, size.target_tokens)


def _stand_ins(size: SetSize) -> list[Behavior]:
    targets = tuple((index, "y" * round(size.target_tokens * CHARACTERS_A_TOKEN)) for index in range(round(size.targets)))
    goal = "x" * round(size.goal_tokens * CHARACTERS_A_TOKEN)
    return [Behavior(f"behavior-{number}", goal, targets) for number in range(size.goals)]


def _read(recipe: Recipe) -> tuple[dict[str, SetSize], list[Behavior]]:
    goals: dict[str, dict[str, str]] = {}
    targets: dict[str, dict[str, list[str]]] = {}
    for row in load_behaviors(recipe.behaviors).table.to_pylist():
        goals.setdefault(row["split"], {})[row["behavior_id"]] = row["goal"]
        targets.setdefault(row["split"], {}).setdefault(row["behavior_id"], []).append(row["target"] or "")
    sets = {}
    for split, texts in goals.items():
        answers = [text for found in targets[split].values() for text in found]
        sets[split] = SetSize(
            len(texts), len(answers) / len(texts), fmean(map(tokens_of, texts.values())), fmean(map(tokens_of, answers))
        )
    behaviors = [Behavior(key, goal, tuple(enumerate(targets["heldout"][key]))) for key, goal in goals.get("heldout", {}).items()]
    return sets, behaviors


def _retain(recipe: Recipe) -> tuple[int, int, float]:
    """Rows of the retain set, those without an answer, and the mean length of a prompt."""
    config = recipe.training.retain
    if config is None:
        return 0, 0, 0.0
    if config.path.startswith(_REMOTE):
        longest = (config.max_prompt_characters or LONG_RETAIN_TOKENS) / CHARACTERS_A_TOKEN
        # Half of the longest prompt: where a limit on characters cuts a set off, most prompts are well below it.
        return config.limit or LONG_RETAIN_ROWS, 0, longest / 2
    rows = load_retain(config)
    return len(rows), sum(row.response is None for row in rows), fmean(tokens_of(row.prompt) for row in rows)
