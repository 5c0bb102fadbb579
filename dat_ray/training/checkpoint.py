"""Checkpoints: the adapter and the optimizer's moments as safetensors, the rest as JSON. Nothing is unpickled.

The learning rate, the rows and the random numbers of an update are functions of its number: that number is all
the state there is besides tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dat_ray.errors import DatError
from dat_ray.json_text import parse_object
from dat_ray.training.network import Network

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
_SEPARATOR = "::"


class Writer(Protocol):
    """Writes a checkpoint into an empty local folder."""

    def __call__(self, folder: Path) -> None: ...


class Checkpoints(Protocol):
    """Where checkpoints are kept. Every worker calls it; it decides who writes."""

    def latest(self) -> Path | None:
        """A local folder with the newest whole checkpoint; None at the start of a run."""
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
        OSError: the disk refuses.
    """
    parameters = network.trainable()
    _save({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / ADAPTER)
    moments = {
        f"{name}{_SEPARATOR}{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    _save(moments, folder / OPTIMIZER)
    state = {"format": FORMAT, "updates_done": updates_done, "run": run}
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how it says that the disk is full
        raise OSError(str(error)) from error


def load_checkpoint(folder: Path, network: Network, optimizer: torch.optim.Optimizer, run: str) -> int:
    """Restores a checkpoint in place.

    Returns:
        How many updates were done.

    Raises:
        DatError: of another run, format or adapter shape, or not readable.
    """
    try:
        state = parse_object((folder / STATE).read_bytes())
        adapter, moments = load_file(folder / ADAPTER), load_file(folder / OPTIMIZER)
        found = (int(state["format"]), str(state["run"]))
        updates_done = int(state["updates_done"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DatError(f"{folder} is not a readable checkpoint ({error}): remove it to go on from the one before") from error
    if found != (FORMAT, run):
        raise DatError(f"{folder} is a checkpoint of run {found[1]}, format {found[0]}; this is run {run}, format {FORMAT}")
    parameters = network.trainable()
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if {name: tuple(tensor.shape) for name, tensor in adapter.items()} != shapes:
        raise DatError(f"{folder} holds an adapter of other layers or another rank: use another --run-dir")
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
