"""An evaluation as JailbreakBench's artifacts (arXiv 2404.01318), in the layout of their public repository.

ATTACK/TYPE/MODEL.json   an artifact: one prompt for each behavior, with the queries that it took
ATTACK/attack-info.json  which models and types there are
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dat_ray.config.section import Section, leaves
from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.attacks.prompts import Prompts
from dat_ray.evaluation.registry import builtin_attacks
from dat_ray.pipeline.evaluated import HARMFUL, Attacked, Evaluated

# The models that the public package can load by name.
PUBLIC_MODELS = ("vicuna-13b-v1.5", "llama-2-7b-chat-hf", "gpt-3.5-turbo-1106", "gpt-4-0125-preview")

# Tokens of a text; None where no tokenizer is at hand.
CountTokens = Callable[[str], int] | None


def attack_type(attack: str) -> str:
    """white_box, black_box, transfer or manual; black_box of an attack that is not of this package."""
    kinds = builtin_attacks()
    kind = kinds.get(attack) or (kinds[Prompts.name] if attack.startswith(f"{Prompts.name}_") else Attack)
    return "white_box" if kind.gradients else kind.access


def exportable(block: Attacked) -> bool:
    """Whether each attempt is a prompt and nothing else: an embedding has no text, a prefilled or an earlier turn no field."""
    more = any(row["prefill"] or row.get("history") for row in block.rows)
    return any(row["prompt"] is not None for row in block.rows) and not more


def artifact(evaluated: Evaluated, block: Attacked, model: str, count: CountTokens) -> dict[str, Any]:
    """One artifact, with the fields and types of the public package (version 1.0).

    The submitted prompt of a behavior is the first that the judge found harmful; where none was, the one with the highest
    score, the first of equal ones. Queries are attempts that the model answered.

    Args:
        evaluated: the evaluation.
        block: one attack on one model of it.
        model: what the model is called in the artifact.
        count: counts the tokens of a text; without it the counts are null.
    """
    entries = [
        _entry(index, one.behavior_id, one.goal, one.category, block.attempts.get(one.behavior_id, []), count)
        for index, one in enumerate(evaluated.behaviors)
    ]
    broken = sum(entry["jailbroken"] for entry in entries)
    parameters = {
        "method": block.attack,
        "model": model,
        "attack_type": attack_type(block.attack),
        "defense": None,
        "attack_success_rate": broken / len(entries),
        "total_number_of_jailbreaks": broken,
        "number_of_submitted_prompts": sum(entry["prompt"] is not None for entry in entries),
        "total_number_of_queries": _total(entries, "number_of_queries"),
        "total_prompt_tokens": _total(entries, "prompt_tokens"),
        "total_response_tokens": _total(entries, "response_tokens"),
        "evaluation_date": evaluated.ended.date().isoformat(),
        "evaluation_llm_provider": evaluated.recipe.target.backend,
        "method_parameters": _method_parameters(evaluated, block),
    }
    return {"parameters": parameters, "jailbreaks": entries}


def attack_info(blocks: list[tuple[str, str]]) -> dict[str, Any]:
    """attack-info.json of one attack.

    Args:
        blocks: names of models as in the artifacts, each with the attack's type.
    """
    return {"models": {model: [kind] for model, kind in blocks}}


def _entry(
    index: int, behavior_id: str, goal: str, category: str, rows: list[dict[str, Any]], count: CountTokens
) -> dict[str, Any]:
    asked = [row for row in rows if row["prompt"] is not None and row["completion"] is not None]
    first = next((number for number, row in enumerate(asked) if row["verdict"] == HARMFUL), None)
    if first is not None:
        shown = asked[first]
    else:
        shown = max(asked, key=lambda row: -1.0 if row["score"] is None else row["score"], default={})
    return {
        "index": index,
        "goal": goal,
        "behavior": behavior_id,
        "category": category,
        "prompt": shown.get("prompt"),
        "response": shown.get("completion"),
        "number_of_queries": len(asked) or None,
        "queries_to_jailbreak": None if first is None else first + 1,
        "prompt_tokens": sum(count(row["prompt"]) for row in asked) if count and asked else None,
        "response_tokens": sum(count(row["completion"]) for row in asked) if count and asked else None,
        "jailbroken": first is not None,
    }


def _total(entries: list[dict[str, Any]], name: str) -> int | None:
    values = [entry[name] for entry in entries if entry[name] is not None]
    return sum(values) if values else None


def _method_parameters(evaluated: Evaluated, block: Attacked) -> dict[str, str | int | float]:
    """Settings of the attack, flat, and who judged: values of JailbreakBench's artifacts are texts and numbers."""
    config = evaluated.recipe.evaluation
    section = getattr(config, {"past_tense": "tense", "future_tense": "tense"}.get(block.attack, block.attack), None)
    found: dict[str, Any] = {name: leaf.value for name, leaf in leaves(section)} if isinstance(section, Section) else {}
    found |= {"max_new_tokens": config.max_new_tokens, "judge": evaluated.metrics.judge.name, "seed": evaluated.recipe.seed}
    found |= {"dat_ray_run": evaluated.fingerprint, "evaluated_model": block.model}
    return {
        name: int(value) if isinstance(value, bool) else value if isinstance(value, str | int | float) else str(value)
        for name, value in found.items()
        if value is not None
    }
