"""Checkpoints: the adapter and the optimizer's moments as safetensors, the rest as JSON. Nothing is unpickled.

The learning rate, the rows and the random numbers of an update are functions of its number: that number is all
the state there is besides tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dat_ray.data.checkpoints import drop_checkpoints, list_checkpoints, load_newest, read_sealed, save_at, seal
from dat_ray.errors import DamagedCheckpoint, DatError
from dat_ray.training.network import Network

ADAPTER, OPTIMIZER = "adapter.safetensors", "optimizer.safetensors"
FORMAT = 1
_SEPARATOR = "::"
# Named by the time; all are older than what has a number.
_RAY_TRAINS = r"checkpoint_[-_.\d]+"


class Writer(Protocol):
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

    def save(self, updates_done: int, write: Writer) -> None:
        """Keeps a checkpoint, whole or not at all."""
        ...


def save_checkpoint(folder: Path, network: Network, optimizer: torch.optim.Optimizer, updates_done: int, run: str) -> None:
    """Writes the state after `updates_done` updates of run `run` (a fingerprint).

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    parameters = network.trainable()
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / ADAPTER)
    moments = {
        f"{name}{_SEPARATOR}{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / OPTIMIZER)
    seal(folder, {"format": FORMAT, "updates_done": updates_done, "run": run})


def load_checkpoint(folder: Path, network: Network, optimizer: torch.optim.Optimizer, run: str) -> int:
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
        found = (int(state["format"]), str(state["run"]))
        updates_done = int(state["updates_done"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    if found != (FORMAT, run):
        raise DatError(f"{folder} is a checkpoint of run {found[1]}, format {found[0]}; this is run {run}, format {FORMAT}")
    parameters = network.trainable()
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
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def kept(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return [*list_checkpoints(self.root, _RAY_TRAINS), *list_checkpoints(self.root, r"update-\d{8}")]

    def load(self, read: Callable[[Path], int]) -> int:
        return load_newest(self.root, self.kept(), read, "update")[0]

    def urgent(self) -> bool:
        return False

    def save(self, updates_done: int, write: Writer) -> None:
        name = f"update-{updates_done:08d}"
        save_at(self.root, name, write)
        drop_checkpoints(self.root, self.kept(), name)
