"""What a rehearsal says at its end: stages with their engines, seconds and rows, what was cut, and what judges could read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.shards import exists, has_manifest, join, read_table
from dat_ray.data.stored import stored_lines
from dat_ray.evaluation.results import METRICS, load_metrics
from dat_ray.rehearsal.rehearse import Rehearsal, RehearsalPlan
from dat_ray.training.counts import read_counts, sentences

COLUMNS = ("stage", "engines", "seconds", "rows", "failed", "responses cut", "rows left out")
# Sections of the engines that a stage may ask; what else works in it is torch's.
_ENGINES = {
    "generate": ("sampler", "target", "judge.reader"),
    "evaluate": (
        *("target", "sampler", "judge.reader", "evaluation.attacker", "evaluation.heldout_sampler"),
        *("evaluation.second_judge.reader", "evaluation.refusal_judge.reader"),
    ),
}
_TRAINER = {"train": ["trainer (torch)"]}


def replaced_lines(prepared: RehearsalPlan) -> Iterator[str]:
    """What a rehearsal uses in place of the recipe's own: values and models."""
    yield f"{len(prepared.replaced)} values of the recipe are replaced:"
    values = [(one.path, _short(one.before), _short(one.after), one.reason) for one in prepared.replaced]
    yield from lines([("value", "recipe", "rehearsal", "why"), *values])
    yield ""
    models = [(one.section, one.model, one.detail) for one in prepared.doubles]
    yield from lines([("engine", "model", "what is known of it"), *models])


def summary(done: Rehearsal) -> Iterator[str]:
    """What came of it: stages, rows, and what judges could read."""
    recipe, run = done.prepared.recipe, done.run
    stages = [_stage(recipe, facts) for facts in stored_lines(join(run.logs, "stages.jsonl"), finite=False)]
    yield from lines([COLUMNS, *stages])
    yield f"all behaviors: {done.forecast}"
    yield from _lengths(run)
    yield from _verdicts(recipe, run)


def lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of texts, in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 48 else f"...{text[-45:]}"


def _stage(recipe: Recipe, facts: Mapping[str, Any]) -> tuple[str, ...]:
    engines = recipe.engines()
    named = [f"{section} ({engines[section][0].backend})" for section in _ENGINES.get(facts["stage"], ()) if section in engines]
    named += _TRAINER.get(facts["stage"], [])
    counts = [str(facts[name]) if name in facts else "" for name in ("rows", "errors", "cut", "left_out")]
    return (facts["stage"], ", ".join(named) or "none", f"{facts['seconds']:.1f}", *counts)


def _lengths(run: RunDir) -> Iterator[str]:
    """What became of the rows that were trained on, at the lengths of the real run."""
    root = run.training(FIRST_ROUND)
    if exists(join(root, "rows.json")):
        yield from sentences(read_counts(root))


def _verdicts(recipe: Recipe, run: RunDir) -> Iterator[str]:
    """How many answers each judge could read: those of a random model mean nothing, and may be unreadable."""
    if has_manifest(run.candidates(FIRST_ROUND)):
        verdicts = read_table(run.candidates(FIRST_ROUND))["verdict"].to_pylist()
        read = sum(verdict in ("harmful", "not_harmful") for verdict in verdicts)
        yield f"generate: {recipe.judge.name} gave a verdict on {read} of {len(verdicts)} candidates"
    for suite in run.suites():
        folder = run.evaluation(suite)
        if exists(join(folder, METRICS)):
            for name, model in load_metrics(folder).models.items():
                given = model.every_answer
                read = given.answers - given.unparsed - given.errors
                failed = ", ".join(f"{attack} {one.errors}" for attack, one in model.attacks.items() if one.errors)
                yield (
                    f"evaluate: verdicts on {read} of {given.answers} answers of {name}; {given.unparsed} unparsed, "
                    f"{given.errors} failed{f' ({failed})' if failed else ''}"
                )
