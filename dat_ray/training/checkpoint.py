"""Checkpoints: what is trained and the optimizer's moments as safetensors, the rest as JSON. Nothing is unpickled.

The learning rate, the rows and the random numbers of an update are functions of its number: that number is all
the state there is besides tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dat_ray.data.checkpoints import drop_checkpoints, list_checkpoints, load_newest, read_sealed, save_at, seal
from dat_ray.errors import DamagedCheckpoint, DatError

ADAPTER, OPTIMIZER = "adapter.safetensors", "optimizer.safetensors"
FORMAT = 1
_SEPARATOR = "::"
# Named by the time; all are older than what has a number.
_RAY_TRAINS = r"checkpoint_[-_.\d]+"


class CheckpointWriter(Protocol):
    """Writes a checkpoint into an empty local folder."""

    def __call__(self, folder: Path) -> None: ...


class Checkpoints(Protocol):
    """Where checkpoints are kept. Every worker calls it; it decides who writes."""

    def load(self, read: Callable[[Path], int]) -> int:
        """Reads the newest checkpoint that is not damaged, the same on every worker.

        Args:
            read: restores from a local folder and returns the updates done; see `load_checkpoint`.

        Returns:
            The updates done; 0 at the start of a run.
        """
        ...

    def urgent(self) -> bool:
        """Whether a checkpoint is wanted now, beside those of the schedule; the same answer on every worker."""
        ...

    def save(self, updates_done: int, write: CheckpointWriter) -> None:
        """Keeps a checkpoint, whole or not at all."""
        ...


class RunIdentity(Protocol):
    """What a checkpoint must agree with to be gone on from."""

    @property
    def stored(self) -> Any:
        """Kept in each checkpoint; of JSON's types."""
        ...

    def check(self, stored: Any, folder: Path) -> None:
        """Raises DatError where the checkpoint in `folder` belongs to another run; any other error says that it is damaged."""
        ...


@dataclass(frozen=True)
class RunFingerprint:
    """The identity of a run by its fingerprint."""

    stored: str

    def check(self, stored: Any, folder: Path) -> None:
        if stored != self.stored:
            raise DatError(f"{folder} is a checkpoint of run {stored}; this is run {self.stored}")


Parameters = Mapping[str, nn.Parameter]


def save_checkpoint(
    folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, updates_done: int, identity: RunIdentity
) -> None:
    """Writes the state after `updates_done` updates of a run.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / ADAPTER)
    moments = {
        f"{name}{_SEPARATOR}{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / OPTIMIZER)
    seal(folder, {"format": FORMAT, "updates_done": updates_done, "run": identity.stored})


def load_checkpoint(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, identity: RunIdentity) -> int:
    """Restores a checkpoint in place.

    Returns:
        How many updates were done.

    Raises:
        DamagedCheckpoint: not readable, or not as it was written; nothing is restored then.
        DatError: of another run, format or adapter shape.
    """
    state = read_sealed(folder)
    try:
        adapter, moments = load_file(folder / ADAPTER), load_file(folder / OPTIMIZER)
        format_version, updates_done = int(state["format"]), int(state["updates_done"])
        identity.check(state["run"], folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    if format_version != FORMAT:
        raise DatError(f"{folder} is a checkpoint of format {format_version}; this version reads format {FORMAT}")
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if {name: tuple(tensor.shape) for name, tensor in adapter.items()} != shapes:
        raise DatError(f"{folder} holds an adapter of other layers or another rank: use another --run-dir")
    if {key.partition(_SEPARATOR)[0] for key in moments} - parameters.keys():
        raise DamagedCheckpoint(f"{OPTIMIZER} has moments of other layers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])
            optimizer.state[parameter].clear()
    for key, value in moments.items():
        name, _, moment = key.partition(_SEPARATOR)
        parameter = parameters[name]
        # The step count stays on the CPU, as AdamW makes it.
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)
    return updates_done


class FolderCheckpoints:
    """Checkpoints of one process: `update-N` folders, the last two kept.

    Args:
        root: local path or URI. Folders that Ray Train of version 0.1 made there are read too.
        unit: what is counted, in their names.
    """

    def __init__(self, root: str | Path, unit: str = "update") -> None:
        self.root, self.unit = str(root), unit

    def kept(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return [*list_checkpoints(self.root, _RAY_TRAINS), *list_checkpoints(self.root, rf"{self.unit}-\d{{8}}")]

    def load(self, read: Callable[[Path], int]) -> int:
        return load_newest(self.root, self.kept(), read, self.unit)[0]

    def urgent(self) -> bool:
        return False

    def save(self, updates_done: int, write: CheckpointWriter) -> None:
        name = f"{self.unit}-{updates_done:08d}"
        save_at(self.root, name, write)
        drop_checkpoints(self.root, self.kept(), name)
