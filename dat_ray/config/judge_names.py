"""The judges that a recipe can name: this project's own, and those of the library judgezoo."""

from __future__ import annotations

from typing import Literal

LIBRARY = "judgezoo"
JudgeName = Literal[
    "refusal-rules",
    "refusal-opening",
    "refusal-anywhere",
    "strongreject-rubric",
    "strongreject-finetuned",
    "harmbench",
    "llama-guard",
    "xstest",
    # Not md_judge, which runs code out of its model's folder, nor adaptive_attacks and pair, which want the response that an
    # attack aims at.
    "judgezoo:advprefix",
    "judgezoo:aegis_guard",
    "judgezoo:best_of_n",
    "judgezoo:harmbench",
    "judgezoo:intention_analysis",
    "judgezoo:jail_judge",
    "judgezoo:llama_guard_3",
    "judgezoo:llama_guard_4",
    "judgezoo:strong_reject",
    "judgezoo:strong_reject_rubric",
    "judgezoo:xstest",
]
# How the names of those begin that go by lists of phrases.
RULES = "refusal-"
# Those of judgezoo that ask a model of the user's choice; the others load weights of their own.
ASKING = frozenset({"advprefix", "intention_analysis", "strong_reject_rubric", "xstest"})


def library_judge(name: str) -> str:
    """The judge's name in judgezoo; empty where it is one of this project's own."""
    library, _, judge = name.rpartition(":")
    return judge if library == LIBRARY else ""


def needs_reader(name: str) -> bool:
    """Whether a judge asks a model that the recipe names."""
    judge = library_judge(name)
    return judge in ASKING if judge else not name.startswith(RULES)
