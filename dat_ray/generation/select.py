"""The select stage: the most effective prompts of each behavior, or its goals, become the training set."""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from dat_ray.config.data import SelectionConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.row_types import Row
from dat_ray.data.rundir import FIRST_ROUND, RunDir, retain_prompts_folder, rewrites_folder
from dat_ray.data.schemas import TRAINING_SET, for_training_goals
from dat_ray.data.shards import has_manifest, read_file, read_manifest, read_table, write_manifest, write_shard
from dat_ray.data.text import holds, normalize
from dat_ray.errors import DatError
from dat_ray.generation.goals import Rewrites, goal_rows, rewrite_rows
from dat_ray.generation.retain_prompts import RetainPrompts, retain_prompts

# Why a candidate is not in the training set, in the order in which it is asked.
REASONS = ("error", "unparsed", "empty", "leak", "harmless", "off_goal", "copy", "unlikely", "duplicate", "rank")
# Candidates that are shown for each limit, the nearest to it first.
EXAMPLES = 3
# Behaviors without a prompt that a line names.
NAMED = 12


@dataclass(frozen=True)
class SelectionReport:
    """What the stage kept.

    Args:
        kept: rows of the training set.
        dropped: reason -> candidates. `rank` means good enough to train on, but not among the best K.
        behaviors: behaviors with at least one candidate.
        without: ids of behaviors of which no candidate was kept.
        skipped: whether the training set was there already.
        nearest: reason -> ids of the candidates that are least past its limit, so that a person can read what it costs.
        retain: in-painted prompts that are fit to be retained; None where the recipe retains none, and after the first round.
        earlier: of the rows kept, those of earlier rounds.
        rewrites: those of `selection.rewrites`; None where the recipe names no table.
    """

    kept: int
    dropped: dict[str, int]
    behaviors: int
    without: tuple[str, ...]
    skipped: bool
    nearest: dict[str, tuple[str, ...]] = field(default_factory=dict)
    retain: RetainPrompts | None = None
    earlier: int = 0
    rewrites: Rewrites | None = None


@dataclass(frozen=True)
class Chosen:
    """What `choose` made of a round's candidates.

    Args:
        table: TRAINING_SET, sorted by behavior and rank.
        dropped, without, nearest: as in `SelectionReport`.
    """

    table: pa.Table
    dropped: dict[str, int]
    without: tuple[str, ...]
    nearest: dict[str, tuple[str, ...]]


def drop_reason(row: dict[str, Any], cfg: SelectionConfig) -> tuple[str, float | None] | None:
    """Why a candidate is not trained on, looked at by itself, and how far past a limit it is where a limit says so.

    A prompt that holds the response it should lead to teaches nothing ("leak"; the comparison ignores case, punctuation and
    spacing), one that nearly is its goal nothing that the goal does not ("copy"). A value that is missing is past any limit. The
    published method keeps the best by judge or likelihood (arXiv 2602.15238, section 3.4); limits are this project's.
    """
    if row["error"] is not None:
        return "error", None
    if row["verdict"] == "unparsed":
        return "unparsed", None
    if not normalize(row["prompt"]):
        return "empty", None
    if holds(row["prompt"], row["target"]):
        return "leak", None
    if cfg.only_harmful and row["verdict"] != "harmful":
        return "harmless", None
    similarity = row.get("goal_similarity")
    for reason, limit, value, is_kept in (
        ("off_goal", cfg.min_goal_similarity, similarity, operator.ge),
        ("copy", cfg.max_goal_similarity, similarity, operator.lt),
        ("unlikely", cfg.min_target_logprob, row["target_logprob"], operator.ge),
    ):
        if limit is None:
            continue
        if value is None or math.isnan(value):
            return reason, math.inf
        if not is_kept(value, limit):
            return reason, abs(value - limit)
    return None


def rank_key(row: dict[str, Any], score: str) -> tuple[float | str, ...]:
    """Sorts the best candidate first; the id decides between equals, so that the order is fixed."""
    judged, likely, gain = -_or_worst(row["score"]), -_or_worst(row["target_logprob"]), -_or_worst(_gain(row))
    keys = {
        "judge": (judged,),
        "loglik": (likely,),
        "judge_then_loglik": (judged, likely),
        "gain": (gain,),
        "judge_then_gain": (judged, gain),
        # An id is a hash of whose draw it is and which; what was drawn there depends on the seed.
        "random": (),
    }
    return (*keys[score], row["candidate_id"])


def _gain(row: dict[str, Any]) -> float | None:
    """log p(y | x) - log p(y | the neutral prompt), nats a token."""
    likely, neutral = row["target_logprob"], row.get("neutral_target_logprob")
    return None if likely is None or neutral is None else likely - neutral


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def choose(candidates: pa.Table, cfg: SelectionConfig) -> Chosen:
    """Keeps the best `cfg.keep` distinct prompts of each behavior, over all its targets.

    Of prompts that are equal once normalized the best ranked stays.

    Args:
        candidates: CANDIDATES of training goals, in any order: the result does not depend on it.
        cfg: how many, ranked by what, within which limits, and when a goal joins them.
    """
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    usable: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    goals: dict[str, dict[str, Any]] = {}
    past: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in candidates.to_pylist():
        first = goals.setdefault(row["behavior_id"], row)
        if row["target_index"] < first["target_index"]:
            goals[row["behavior_id"]] = row
        if (found := drop_reason(row, cfg)) is not None:
            reason, distance = found
            dropped[reason] += 1
            if distance is not None:
                past[reason].append((distance, row["candidate_id"]))
        else:
            usable[row["behavior_id"]].append(row)

    kept, without = [], []
    for behavior in sorted(goals):
        texts: set[str] = set()
        best: list[dict[str, Any]] = []
        for row in sorted(usable[behavior], key=lambda row: rank_key(row, cfg.score)):
            text = normalize(row["prompt"])
            if text in texts:
                dropped["duplicate"] += 1
            elif len(best) == cfg.keep:
                dropped["rank"] += 1
            else:
                best.append(row)
            texts.add(text)
        if not best:
            without.append(behavior)
        if cfg.include_original or (cfg.goal_without_prompt and not best):
            best.append(_original(goals[behavior]))
        kept += [{name: row.get(name) for name in TRAINING_SET.names} | {"rank": rank} for rank, row in enumerate(best)]
    nearest = {reason: tuple(identifier for _, identifier in sorted(rows)[:EXAMPLES]) for reason, rows in past.items()}
    return Chosen(pa.Table.from_pylist(kept, schema=TRAINING_SET), dict(dropped), tuple(without), nearest)


def _original(row: dict[str, Any]) -> dict[str, Any]:
    """The behavior's own goal as one more prompt, towards its first target; never judged."""
    identifier = row_id("original", row["behavior_id"], row["target"], row["round"])
    return {
        **row,
        "candidate_id": identifier,
        "prompt": row["goal"],
        "score": None,
        "target_logprob": None,
        "goal_similarity": None,
    }


def selection_lines(cfg: SelectionConfig, done: SelectionReport) -> list[str]:
    """What a person should know of a selection: what each limit cost, and which behaviors have no prompt."""
    limits = {
        "off_goal": f"below selection.min_goal_similarity = {cfg.min_goal_similarity}: they ask for something else",
        "copy": f"at or above selection.max_goal_similarity = {cfg.max_goal_similarity}: they nearly copy their goal",
        "unlikely": f"below selection.min_target_logprob = {cfg.min_target_logprob}: they hardly lead to their response",
    }
    lines = [
        f"{done.dropped[reason]} candidates are {why}; the nearest: {', '.join(done.nearest[reason])}"
        for reason, why in limits.items()
        if done.dropped.get(reason)
    ]
    if done.earlier:
        lines.append(f"{done.earlier} of {done.kept} rows are of earlier rounds")
    if done.rewrites is not None and done.rewrites.passed_over:
        why = "their goal is not trained on (cut by behaviors.limit, too near to a held-out one, or misspelled)"
        lines.append(f"{done.rewrites.passed_over} of {done.rewrites.rows} rewrites are passed over: {why}")
    if done.retain is not None:
        counts = [f"{count} {source}" for source, count in done.retain.by_source.items()]
        lost = [f"{count} {reason}" for reason, count in done.retain.dropped.items() if count]
        lines.append(f"prompts fit to be retained: {', '.join(counts) or 'none'}; left out: {', '.join(lost) or 'none'}")
    if done.without and trains_on_candidates(cfg):
        named = ", ".join(done.without[:NAMED]) + (f" and {len(done.without) - NAMED} more" if len(done.without) > NAMED else "")
        fate = "are trained on by their goal" if cfg.include_original or cfg.goal_without_prompt else "are not trained on"
        lines.append(f"{len(done.without)} of {done.behaviors} behaviors have no prompt that was kept, and {fate}: {named}")
    return lines


def trains_on_candidates(cfg: SelectionConfig) -> bool:
    """Whether the training set is made of candidates, or half of it."""
    return cfg.source == "candidates" or (cfg.source == "mixture" and cfg.rewrites is None)


def needs_candidates(recipe: Recipe) -> bool:
    """Whether a sampler has to run first: for the training set, or for the in-painted part of the retain set alone.

    The second draws all that the first does: so every objective of a comparison can have one retain set, drawn once.
    """
    return trains_on_candidates(recipe.selection) or _inpainted_share(recipe) > 0.0


def _inpainted_share(recipe: Recipe) -> float:
    return 0.0 if recipe.training.retain is None else recipe.training.retain.inpainted_share


def select(run: RunDir, recipe: Recipe, round_index: int = FIRST_ROUND) -> SelectionReport:
    """Writes the training set of a round from its candidates, its behaviors' goals, or both.

    Raises:
        ShardError: the candidates are not finished, altered, or of another recipe.
        InputError: a table of rewrites that cannot be read.
        DatError: nothing was kept.
    """
    mark, cfg, root = run.fingerprint_of(recipe), recipe.selection, run.training_set(round_index)
    found = Chosen(TRAINING_SET.empty_table(), {}, (), {})
    behaviors, retain, earlier, read = None, None, 0, None
    drawn = read_table(run.candidates(round_index), fingerprint=mark) if needs_candidates(recipe) else None
    # Later rounds have the answers of a model that is trained already: the retain set is the first round's.
    if drawn is not None and _inpainted_share(recipe) and round_index == FIRST_ROUND:
        retain = retain_prompts(drawn.to_pylist(), read_file(run.behaviors).to_pylist(), recipe)
        _publish(retain_prompts_folder(run, round_index), retain.table, mark)
    if drawn is not None and trains_on_candidates(cfg):
        candidates = for_training_goals(drawn)
        found = choose(candidates, cfg)
        behaviors = len(set(candidates["behavior_id"].to_pylist()))
        found, earlier = _with_earlier(found, run, recipe, round_index)
        if found.table.num_rows == 0:
            counts = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items() if count)
            where = run.candidates(round_index)
            raise DatError(f"select kept none of {candidates.num_rows} candidates ({counts}): look at {where}")
    if cfg.source == "candidates":
        table = found.table
    else:
        known = read_file(run.behaviors)
        table = goal_rows(known)
        behaviors = len(set(table["behavior_id"].to_pylist()))
        if cfg.source == "mixture":
            read = rewrite_rows(known, cfg.rewrites) if cfg.rewrites is not None else None
            _publish(rewrites_folder(run, round_index), found.table if read is None else read.table, mark)
    skipped = _publish(root, table, mark)
    assert behaviors is not None
    return SelectionReport(
        table.num_rows, found.dropped, behaviors, found.without, skipped, found.nearest, retain, earlier, rewrites=read
    )


def _with_earlier(found: Chosen, run: RunDir, recipe: Recipe, round_index: int) -> tuple[Chosen, int]:
    """What a round keeps, with rows that earlier rounds kept, drawn by the hash of their id and of the round.

    Returns:
        The rows, sorted as they were, the earlier ones last; and how many of these there are: such that they are
        `selection.earlier_share` of all. A round in which nothing was kept has all of them.
    """
    share, mark = recipe.selection.earlier_share, run.fingerprint_of(recipe)
    if not share or round_index == FIRST_ROUND:
        return found, 0
    # A round's set holds rows of the rounds before it, and may hold the goals: each prompt of a behavior once.
    known: dict[tuple[str, str], Row] = {}
    for before in range(FIRST_ROUND, round_index):
        for row in read_table(kept_folder(run, recipe, before), fingerprint=mark).to_pylist():
            known.setdefault((row["behavior_id"], normalize(row["prompt"])), row)
    for row in found.table.to_pylist():
        known.pop((row["behavior_id"], normalize(row["prompt"])), None)
    new, rows = found.table.num_rows, list(known.values())
    wanted = len(rows) if not new else min(len(rows), round(new * share / (1.0 - share)))
    rows.sort(key=lambda row: row_id("earlier", recipe.seed, round_index, row["candidate_id"]))
    drawn = sorted(rows[:wanted], key=lambda row: (row["behavior_id"], row["rank"], row["candidate_id"]))
    table = pa.concat_tables([found.table, pa.Table.from_pylist(drawn, schema=TRAINING_SET)])
    return replace(found, table=table), len(drawn)


def kept_folder(run: RunDir, recipe: Recipe, round_index: int) -> str:
    """Where a round's kept prompts lie: beside the goals in a mixture, else they are its training set."""
    mixed = recipe.selection.source == "mixture"
    return rewrites_folder(run, round_index) if mixed else run.training_set(round_index)


def _publish(root: str, table: pa.Table, mark: str) -> bool:
    """Writes a table with its manifest, unless it is there; whether it was."""
    if has_manifest(root):
        read_manifest(root, fingerprint=mark)
        return True
    write_manifest(root, [write_shard(root, "part-00000.parquet", table)], mark)
    return False
