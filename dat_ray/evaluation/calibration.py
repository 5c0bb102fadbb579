"""How far a judge agrees with people: accuracy, kappa and confusion on answers that people have labeled, by source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from dat_ray.data.table_files import listed
from dat_ray.data.table_sources import open_source
from dat_ray.engines.base import Judge
from dat_ray.engines.calls import Completed, Failure, JudgeCall, judge
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.agreement import cohen_kappa
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.judge_results import Agreement, Calibration, CalibrationFigures, Confusion, VerdictCounts
from dat_ray.evaluation.prompt_results import GoalCalibration
from dat_ray.measures.intervals import wilson_pooled

OPTION = "--calibrate"
# Columns by the names that published files of labeled answers give them, the first that is there.
GOALS = ("goal", "prompt", "behavior")
COMPLETIONS = ("completion", "response", "generation", "target_response")
LABELS = ("label", "final_label", "human_majority")
# What people may have written, in lower case: an answer that does harm (or complies, for rules of refusal), or one that does not.
HARMFUL = frozenset({"harmful", "1", "1.0", "true", "yes", "unsafe", "1_full_compliance"})
HARMLESS = frozenset({"not_harmful", "0", "0.0", "false", "no", "safe", "2_full_refusal", "3_partial_refusal"})
BATCH = 64
# What drawn prompts ask for, by readers: studies/goal_threshold.py makes it.
GOAL_FILE = "goal-similarity.json"


@dataclass(frozen=True)
class Labeled:
    """One answer with a person's verdict.

    Attributes:
        source: who answered, or which file it is from.
        goal: what was asked.
        completion: the answer.
        harmful: the person's verdict.
    """

    source: str
    goal: str
    completion: str
    harmful: bool


def read_labeled(paths: Sequence[str]) -> list[Labeled]:
    """Reads tables with a goal or prompt, a completion or response, and a label; XSTest's labeled answers fit as they are.

    Raises:
        InputError: a column is missing, a goal is empty, or a label is none of those known.
    """
    found = []
    for path in paths:
        source = open_source(path, OPTION)
        names = [_column(source.columns, names, path) for names in (GOALS, COMPLETIONS, LABELS)]
        extra = ["source"] if "source" in source.columns else []
        for place, row, _ in source.rows([*names, *extra]):
            goal, completion, label = (row[name] for name in names)
            known = str(label).strip().lower()
            if known not in HARMFUL | HARMLESS:
                raise InputError(OPTION, path, f"{place} has the label {label!r}: write harmful or not_harmful")
            if not isinstance(goal, str) or not goal.strip():
                raise InputError(OPTION, path, f"{place} has no {names[0]!r}: fill it in, or remove the row")
            # An answer may be empty; CSV readers give None for it.
            said = "" if completion is None else str(completion)
            found.append(Labeled(str(row["source"]) if extra else PurePosixPath(path).stem, goal, said, known in HARMFUL))
    if not found:
        raise InputError(OPTION, list(paths), "holds no rows: give labeled answers")
    return found


def calibrate(engine: Judge, rows: Sequence[Labeled], confidence: float = 0.95) -> Calibration:
    """Measures a judge on labeled answers, over all of them and by source.

    Raises:
        DatError: the judge could not be asked about any of them.
    """
    asked = [Completed(row.goal, row.goal, row.completion) for row in rows]
    verdicts = judge(engine, JudgeCall(asked, BATCH))
    errors = [one.error for one in verdicts if isinstance(one, Failure) or one.error is not None]
    if len(errors) == len(rows):
        raise DatError(f"the judge answered none of {len(rows)} rows; the last: {errors[-1]}")
    read = [None if isinstance(one, Failure) or one.error is not None else one.verdict for one in verdicts]
    pairs = list(zip(rows, read, strict=True))
    by_source: dict[str, list[tuple[Labeled, str | None]]] = defaultdict(list)
    for row, verdict in pairs:
        by_source[row.source].append((row, verdict))
    return Calibration(
        **dict(_figures(pairs, confidence)),
        judge=JudgeFacts(
            name=engine.name,
            fingerprint=engine.fingerprint,
            is_proxy=engine.is_proxy,
            deviations=list(engine.deviations),
        ),
        confidence=confidence,
        sources={name: _figures(of_source, confidence) for name, of_source in by_source.items()},
    )


def _figures(pairs: Iterable[tuple[Labeled, str | None]], confidence: float) -> CalibrationFigures:
    """Accuracy and kappa over the answers that the judge could read, and what it could not.

    Answers to one prompt resemble each other: they count for as many trials as their prompts are worth.
    """
    table: Counter[tuple[bool, str | None]] = Counter()
    right: dict[str, list[float]] = defaultdict(list)
    people, judged = [], []
    for row, verdict in pairs:
        table[row.harmful, verdict] += 1
        if verdict in ("harmful", "not_harmful"):
            people.append(row.harmful)
            judged.append(verdict == "harmful")
            right[row.goal].append(float(people[-1] == judged[-1]))
    found = wilson_pooled(right, confidence)

    def counts(label: bool) -> VerdictCounts:
        return VerdictCounts(
            harmful=table[label, "harmful"],
            not_harmful=table[label, "not_harmful"],
            unparsed=table[label, "unparsed"],
            failed=table[label, None],
        )

    return CalibrationFigures(
        n=sum(table.values()),
        read=len(people),
        accuracy=Agreement(value=found.value, low=found.low, high=found.high, n_prompts=found.n),
        kappa=cohen_kappa(people, judged),
        confusion=Confusion(people_harmful=counts(True), people_not_harmful=counts(False)),
    )


def shipped_calibration(name: str, fingerprint: str) -> Calibration | None:
    """The figures of a judge of this project that come with it; None where it has none or the judge has changed since."""
    file = resources.files("dat_ray.evaluation") / "calibrations" / f"{name}.json"
    if not file.is_file():
        return None
    found = Calibration.model_validate_json(file.read_bytes())
    return found if found.judge.fingerprint == fingerprint else None


def shipped_goal_calibration(encoder: str) -> GoalCalibration | None:
    """The figures that come with the project; None for another encoder than theirs."""
    file = resources.files("dat_ray.evaluation") / "calibrations" / GOAL_FILE
    found = GoalCalibration.model_validate_json(file.read_bytes())
    return found if found.encoder == encoder else None


def table(found: Calibration) -> str:
    """The figures as lines of text."""
    width = max(len(name) for name in [*found.sources, "source"])
    lines = [f"{'source':{width}} {'n':>5} {'read':>5}  accuracy [{found.confidence:.0%} interval]  kappa"]
    for name, one in [*found.sources.items(), ("all", found)]:
        accuracy, kappa = one.accuracy, "-" if one.kappa is None else f"{one.kappa:.2f}"
        shown = "none read" if accuracy.value is None else f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
        lines.append(f"{name:{width}} {one.n:5} {one.read:5}  {shown:32} {kappa}")
    for label, row in (
        ("people_harmful", found.confusion.people_harmful),
        ("people_not_harmful", found.confusion.people_not_harmful),
    ):
        lines.append(f"{label}: " + ", ".join(f"{verdict} {count}" for verdict, count in row))
    return "\n".join(lines)


def _column(columns: Sequence[str], names: Sequence[str], path: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise InputError(OPTION, path, f"has no column {' or '.join(names)}, only {listed(columns)}: rename one")
