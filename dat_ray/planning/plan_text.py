"""A plan for people: a table on the terminal, and one line for `dat doctor`."""

from __future__ import annotations

from dat_ray.planning.estimate import balance
from dat_ray.planning.parts import RoleWork, RunPlan, StagePlan

_HEAD = ("stage", "role", "time", "GPU h", "actors", "calls", "tokens", "memory, GB")


def duration(seconds: float) -> str:
    """Hours or minutes."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def count(number: float) -> str:
    """A number in three figures."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def plan_line(plan: RunPlan) -> str:
    """Totals and whether it fits."""
    longest = max(plan.stages, key=lambda stage: stage.seconds)
    fit = "fits" if plan.fits else f"does not fit ({len(plan.advice)} things to change: dat plan {plan.recipe})"
    hours = f"{plan.device_seconds / 3600:.1f} GPU hours, " if plan.device.is_gpu else ""
    disk = f"{sum(plan.disk.values()) / 1e9:.0f} GB of disk"
    times = f"about {duration(plan.seconds)} on {plan.device.title}, {hours}{duration(longest.seconds)} of it {longest.name}"
    return f"{times}; {disk}; {fit}"


def plan_text(plan: RunPlan) -> str:
    """The whole plan."""
    rows = [_HEAD, *(row for stage in plan.stages for row in _stage_rows(stage, plan))]
    rows.append(("total", "", duration(plan.seconds), _hours(plan.device_seconds, plan), "", "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [f"{plan.recipe} on {plan.device.title}: by arithmetic, nothing was started"]
    for row in rows:
        texts = [
            text.ljust(width) if at < 2 else text.rjust(width) for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    disk = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in plan.disk.items())
    lines.append(f"disk, GB: {disk}")
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"faster: {one}" for one in balance(plan)]
    lines += [f"change: {one}" for one in plan.advice] or ["everything fits"]
    return "\n".join(lines)


def _hours(seconds: float, plan: RunPlan) -> str:
    return f"{seconds / 3600:.1f}" if plan.device.is_gpu else ""


def _stage_rows(stage: StagePlan, plan: RunPlan) -> list[tuple[str, ...]]:
    first = (stage.name, "", duration(stage.seconds), _hours(stage.device_seconds, plan), "", "", "", "")
    return [first, *(_role_row(role, stage, plan) for role in stage.roles)]


def _role_row(role: RoleWork, stage: StagePlan, plan: RunPlan) -> tuple[str, ...]:
    mark = " *" if role.role == stage.critical else ""
    memory = f"{role.memory / 1e9:.1f} of {role.allowed(plan.device) / 1e9:.1f}" if role.memory else ""
    tokens = count(role.tokens) if role.tokens else ""
    return ("", role.role + mark, duration(role.spread + role.start), "", str(role.actors), count(role.calls), tokens, memory)
