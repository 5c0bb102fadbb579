"""What a stored recipe may make this machine do: nothing outside its run directory that a person did not name herself.

Whoever can write into a run directory can alter the recipe in it. Addresses, environment variables, files and trackers are
used where they come from a recipe or a `--set` of the command line; those of a stored recipe are listed, and used only
with `--trust-run-dir`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dat_ray.config.schema import Recipe
from dat_ray.config.section import Outside, leaves
from dat_ray.data.public import PUBLIC
from dat_ray.data.table_sources import BUILTIN
from dat_ray.errors import InputError
from dat_ray.progress import stage_line
from dat_ray.secrets import redact

OPTION = "--trust-run-dir"
# Data that is the same for everybody. A data set of the hub may be one that only this person's token opens.
_FOR_EVERYBODY = (BUILTIN, PUBLIC)
_LONGEST = 160


@dataclass(frozen=True)
class OutsideValue:
    """A value of a recipe that leads out of a run directory: dotted field, value, and to what it leads."""

    field: str
    value: str
    what: Outside

    def __str__(self) -> str:
        # A stored text may hold anything; what is printed stays on its line.
        shown = redact(ascii(self.value))
        return f"{self.field} = {shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + '...'} ({self.what.value})"


def outside_values(recipe: Recipe, sections: Iterable[str]) -> list[OutsideValue]:
    """What the named sections of a recipe lead to.

    Args:
        recipe: any.
        sections: dotted names of sections or fields.
    """
    read = tuple(sections)
    found = []
    for field, leaf in leaves(recipe):
        if leaf.outside is None or leaf.value is None or not any(_below(field, section) for section in read):
            continue
        values = leaf.value if isinstance(leaf.value, list) else [leaf.value]
        found += [OutsideValue(field, str(value), leaf.outside) for value in values if not _ours(leaf.outside, str(value))]
    return found


def _ours(what: Outside, value: str) -> bool:
    """Whether a value leads to what comes with this package."""
    if what is Outside.CLASS:
        return ":" not in value
    return what is Outside.FILE and value.startswith(_FOR_EVERYBODY)


def require_trust(
    stored: Recipe,
    sections: Collection[str],
    where: str,
    *,
    option: str,
    trusted: bool,
    settings: Sequence[str] = (),
    own: Recipe | None = None,
) -> None:
    """Lists what a stored recipe leads to outside its directory, and goes on only where a person vouches for it.

    Args:
        stored: of a run directory or an evaluation's folder.
        sections: those that will be read.
        where: the directory.
        option: that gave it, for an error.
        trusted: whether `--trust-run-dir` was given.
        settings: `--set` overrides: the fields that they name are the person's own.
        own: a recipe that was named on the command line: what it says too is the person's own.

    Raises:
        InputError: something that nobody vouched for.
    """
    vouched = [setting.partition("=")[0].strip() for setting in settings]
    known = [] if own is None else outside_values(own, sections)
    found = [
        value
        for value in outside_values(stored, sections)
        if value not in known and not any(_below(value.field, field) for field in vouched)
    ]
    if not found:
        return
    listed = ", ".join(map(str, found))
    if trusted:
        stage_line(f"{where}: its stored recipe is trusted with {listed}")
        return
    raise InputError(
        option,
        where,
        f"its stored recipe leads outside it, and whoever can write there can change that: {listed}: name your own recipe on "
        f"the command line, or add {OPTION} where all of these are yours",
    )


def _below(field: str, section: str) -> bool:
    return field == section or field.startswith(f"{section}.")
