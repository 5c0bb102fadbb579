"""Numbers and names as a reader sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dat_ray.config.evaluation import READY_PREFIX
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, OVER_REFUSAL
from dat_ray.evaluation.registry import builtin_attacks
from dat_ray.evaluation.results import JudgeFacts, Metrics
from dat_ray.measures.intervals import Interval

HARMLESS_NAMES = {OVER_REFUSAL: "Harmless look-alike", INPAINTED_OVER_REFUSAL: "Harmless in-painted prompt"}
MODEL_NAMES = {"base": "base", "adapted": "fine-tuned"}


def model_name(name: str) -> str:
    """A model's name for people."""
    return MODEL_NAMES.get(name, name)


def attack_name(attack: str) -> str:
    """An attack's name for people: its title, where it comes with the package. Classes of somebody else are not imported here."""
    if attack in HARMLESS_NAMES:
        return HARMLESS_NAMES[attack]
    known = builtin_attacks()
    if attack.startswith(READY_PREFIX):
        return f"{known['prompts'].title} ({attack.removeprefix(READY_PREFIX)})"
    return known[attack].title if attack in known else attack


def variant_name(attack: str, variant: str) -> str:
    """An attack's variant for people; prompts of a file that say none have the empty one."""
    return f"{attack_name(attack)}: {variant or 'no variant'}"


def percent(value: float | None) -> str:
    """`0.12` as `12%`; `–` where nothing was measured."""
    return "–" if value is None else f"{100 * value:.0f}%"


def points(value: float | None) -> str:
    """A difference of rates in signed percentage points."""
    if value is None:
        return "–"
    whole = round(100 * value)
    return f"{whole:+d}".replace("-", "−") if whole else "0"


def differing(said: Iterable[tuple[bool, str]]) -> str:
    """What differs for sure before what may be chance, each in its order.

    Args:
        said: of each, whether it is beyond chance or no difference at all, and its text.
    """
    told = list(said)
    chance = ", ".join(text for sure, text in told if not sure)
    return "; ".join([*(text for sure, text in told if sure), *([f"what may be chance: {chance}"] if chance else [])])


def p_value(p: float | None) -> str:
    """A test's p with two digits that count, beside 0.05 with a third, which shows the side; `–` where no test was made."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.{3 if 0.045 < p < 0.055 else 2}g}"


def nats(value: float) -> str:
    """A signed number of nats."""
    return f"{value:+.2f}".replace("-", "−")


def span(found: Interval, shown: Callable[[float], str] = percent) -> str:
    """`[low, high]`, or why there is none: nothing was measured, or a single behavior was."""
    if found.low is None or found.high is None:
        return "not measured" if found.value is None else "(no interval)"
    # A no-break space, so that no line ends inside an interval.
    return f"[{shown(found.low)},\u00a0{shown(found.high)}]"


def with_span(found: Interval, shown: Callable[[float], str] = percent) -> str:
    """The estimate and its interval; `–` where nothing was measured."""
    return "–" if found.value is None else f"{shown(found.value)} {span(found, shown)}"


def judge_kind(judge: JudgeFacts) -> str:
    """What a judge is: never left out beside its numbers."""
    if not judge.is_proxy:
        return "a harm judge"
    return f"a {'rule-based ' if judge.by_rules else ''}proxy, not a harm judge: it tells refusals from compliance"


def refusal_kind(judge: JudgeFacts) -> str:
    """What a judge of the answers to harmless prompts is."""
    return judge_kind(judge) if judge.by_rules else "a judge of refusals"


def judge_name(judge: JudgeFacts) -> str:
    """A judge's name, with what it is where it is no harm judge."""
    return f"{judge.name} (a proxy)" if judge.is_proxy else judge.name


def refusal_judge_name(judge: JudgeFacts) -> str:
    """The name of a judge of the answers to harmless prompts, with what it is where it goes by rules."""
    return f"{judge.name} (a proxy)" if judge.by_rules else judge.name


def refusal_reader(metrics: Metrics) -> JudgeFacts | None:
    """The judge of the answers to harmless prompts; None where that is the attacks' own, or no such prompt was asked."""
    found = metrics.refusal_judge
    if found is None or found.fingerprint == metrics.judge.fingerprint:
        return None
    return found if any(model.to_harmless.answers for model in metrics.models.values()) else None


def over_refusal_by(*suites: Metrics, mark: bool = False) -> str:
    """What stands behind the name of the attacks' judge: who reads refusals, where that is another one.

    Args:
        suites: that are spoken of.
        mark: whether to say the judge's fingerprint.
    """
    readers = [reader for metrics in suites if (reader := refusal_reader(metrics)) is not None]
    return "".join(
        f"; over-refusal by {reader.name}{f' ({reader.fingerprint})' if mark else ''}{', a proxy' if reader.by_rules else ''}"
        for reader in {one.fingerprint: one for one in readers}.values()
    )


def unread_by(metrics: Metrics) -> str:
    """How many answers of a suite which judge could not read."""
    other, total = refusal_reader(metrics), sum(metrics.unparsed.values())
    if other is None:
        return f"{total} that the judge could not read"
    harmless = sum(model.to_harmless.unparsed for model in metrics.models.values())
    return f"{total - harmless} that {metrics.judge.name} could not read, and {harmless} that {other.name} could not"


def words(identifier: str) -> str:
    """`some_name` as `some name`."""
    return identifier.replace("_", " ")


def rate_name(judge: JudgeFacts) -> str:
    """What the judge's rate is called."""
    return "Proxy attack success" if judge.is_proxy else "Attack success"
