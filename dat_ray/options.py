"""Options of the command line that a verb would pass over in silence are refused."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dat_ray.errors import InputError

# Arguments without a dash, which messages name as usage lines do.
POSITIONAL = ("recipe", "name")


def refuse_unused(
    arguments: argparse.Namespace, mode: str, unused: Iterable[str], remedies: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuses options that say nothing in the mode that a verb is in.

    Args:
        arguments: of the verb; an option that is absent, or at the default of a list or switch, was not given.
        mode: what decides, as in "--plan", for the message.
        unused: names of options as they are in `arguments`.
        remedies: what to do, by name, where it is not to leave the option out.

    Raises:
        InputError: one of them was given; the first in their order.
    """
    for name in unused:
        value = getattr(arguments, name, None)
        if value is not None and value is not False and value != []:
            field = name.upper() if name in POSITIONAL else f"--{name.replace('_', '-')}"
            raise InputError(field, value, remedies.get(name, f"says nothing with {mode}: leave it out"))
