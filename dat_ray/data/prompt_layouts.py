"""Which part of a file of ready prompts means what: artifacts, test cases and tables that people publish.

A file is a table in the end: artifacts and test cases in JSON are laid out as rows with the columns of `ROLES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dat_ray.config.evaluation import PromptColumns
from dat_ray.data.table_files import Origin, PlacedRow, listed
from dat_ray.errors import InputError

# What a row of prompts can hold.
ROLES = ("prompt", "goal", "id", "completion", "variant")

# Names that public files give to each, the more telling first; compared in lower case, with "_" for spaces and dashes.
_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        *("inpainted_prompt", "request_reformulated", "jailbreak_prompt", "adversarial_prompt", "attack_prompt"),
        *("test_case", "prompt", "jailbreak"),
    ),
    "goal": ("goal", "original_prompt", "request", "forbidden_prompt", "behavior_text"),
    "id": ("behavior_id", "behaviorid", "behavior", "id"),
    "completion": ("completion", "response", "generation", "target_response"),
    "variant": ("variant", "language", "lang"),
}
# Lists of rows inside an artifact: of JailbreakBench, and of the past-tense attack.
_ARTIFACTS = ("jailbreaks", "jb_artifacts")
# Parts of an artifact or a submission that hold no prompts.
_ABOUT = frozenset({"parameters", "details", "test_logs", "eval_logs"})
# A column for each language beside the English goal, as MultiJail has them; `id` looks like one.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")
ENGLISH = "en"


@dataclass(frozen=True)
class PromptLayout:
    """Columns of a table of prompts; None where it has none.

    Attributes:
        prompt: what the model is asked; None where the languages' columns hold it.
        goal: the request.
        id: of the behavior.
        completion: an answer.
        variant: such as a language.
        languages: a column a language, the name of which is the variant.
    """

    prompt: str | None
    goal: str | None
    id: str | None
    completion: str | None
    variant: str | None
    languages: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All of them, each once."""
        roles = (self.prompt, self.goal, self.id, self.completion, self.variant)
        return list(dict.fromkeys([*(name for name in roles if name is not None), *self.languages]))


def choose_prompt_layout(given: PromptColumns, columns: Sequence[str], file: str, field: str) -> PromptLayout:
    """The columns that a recipe names, and where it names none those that the table's own names tell.

    Raises:
        InputError: a named column that the table lacks, or none for the prompt, or none for goal and id.
    """
    named = {role: column for role in ROLES if (column := getattr(given, role)) is not None}
    for role, column in named.items():
        if column not in columns:
            remedy = "correct the name"
            raise InputError(f"{field}.columns.{role}", column, f"{file} has no such column, only {listed(columns)}: {remedy}")
    folded = {re.sub(r"[\s-]+", "_", column.strip().lower()): column for column in reversed(columns)}
    found = {role: named.get(role) or next((folded[name] for name in _NAMES[role] if name in folded), None) for role in ROLES}
    if "id" not in named and found["id"] is not None and found["id"].lower() == "behavior" and found["goal"] is None:
        # JailbreakBench's `behavior` is a name; HarmBench's `Behavior`, without another goal beside it, the request.
        found["goal"], found["id"] = found["id"], None
    if "goal" not in named and found["goal"] is None and "behavior" in folded and found["id"] != folded["behavior"]:
        found["goal"] = folded["behavior"]
    languages: tuple[str, ...] = ()
    if found["prompt"] is None and ENGLISH in columns:
        languages = tuple(one for one in columns if _LANGUAGE.fullmatch(one) and one not in (found["id"], found["variant"], "id"))
        found["goal"] = found["goal"] or ENGLISH
    if found["prompt"] is None and len(languages) < 2:
        raise InputError(
            f"{field}.columns.prompt",
            None,
            f"{file} has no column of prompts, only {listed(columns)}: name the one that holds them",
        )
    if found["goal"] is None and found["id"] is None:
        problem = f"{file} says of no prompt whose it is, with the columns {listed(columns)}"
        raise InputError(f"{field}.columns.goal", None, f"{problem}: name the column of the goal, or of the behavior's id")
    return PromptLayout(**found, languages=languages)


def artifact_rows(content: Mapping[str, Any], origin: Origin) -> list[PlacedRow]:
    """The rows of a JSON object: an artifact, test cases, completions, or one row by itself.

    Known are ``{"jailbreaks": [...]}`` and ``{"jb_artifacts": [...]}`` with an object a row; ``{ID or goal: prompt, list of
    prompts, or list of {"test_case", "generation"}}``; and JailbreakBench's ``{MODEL: {ID: prompt or {"prompt", "response"}}}``
    and submissions, whose models become variants.

    Raises:
        InputError: another kind of object, or an entry that is no text.
    """
    listed_rows = _listed(content, origin)
    if listed_rows is not None:
        return listed_rows
    if any(name in content for name in _NAMES["prompt"]) and not any(isinstance(one, list | dict) for one in content.values()):
        return [PlacedRow("the one row", dict(content))]
    parts = content["summaries"] if isinstance(content.get("summaries"), dict) else content
    parts = {key: value for key, value in parts.items() if key not in _ABOUT}
    if parts and all(isinstance(value, dict) for value in parts.values()):
        return [
            PlacedRow(f"{place} of model {number}", {**values, "variant": model})
            for number, (model, cases) in enumerate(parts.items(), start=1)
            for place, values, _ in _listed(cases, origin) or _cases(cases, origin)
        ]
    return list(_cases(parts, origin))


def _listed(content: Mapping[str, Any], origin: Origin) -> list[PlacedRow] | None:
    """The rows of an artifact; None where it is none."""
    for name in _ARTIFACTS:
        if isinstance(content.get(name), list):
            return [PlacedRow(f"entry {n} of {name}", _entry(one, n, origin)) for n, one in enumerate(content[name], start=1)]
    return None


def _cases(cases: Mapping[str, Any], origin: Origin) -> Iterator[PlacedRow]:
    """Rows with the columns id, prompt and completion."""
    for number, (key, value) in enumerate(cases.items(), start=1):
        several = value if isinstance(value, list) else [value]
        for case, one in enumerate(several, start=1):
            place = f"case {case} of entry {number}" if isinstance(value, list) else f"entry {number}"
            if isinstance(one, dict):
                prompt = next((one[name] for name in _NAMES["prompt"] if name in one), _ABSENT)
                completion = next((one[name] for name in _NAMES["completion"] if name in one), None)
                if prompt is _ABSENT:
                    problem = f"{place} has the keys {listed(list(one))}, none of a prompt"
                    raise origin.bad(f"{problem}: write {{'test_case': ..., 'generation': ...}}")
                yield PlacedRow(place, {"id": key, "prompt": prompt, "completion": completion})
            elif one is None or isinstance(one, str):
                yield PlacedRow(place, {"id": key, "prompt": one, "completion": None})
            else:
                problem = f"{place} is a JSON {type(one).__name__}, not a prompt: only text is read"
                raise origin.bad(f"{problem}, as in {{ID or goal: [PROMPT, ...]}}; leave test cases with images out")


_ABSENT = object()


def _entry(value: Any, number: int, origin: Origin) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise origin.bad(f"entry {number} is a JSON {type(value).__name__}: write an object with goal and prompt there")
    return value
