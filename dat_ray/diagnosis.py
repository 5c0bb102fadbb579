"""What a run leaves behind when it fails or stalls, for the person who has to find out why.

Past a deadline one file of the run's logs says what is pending, what the nodes have, how the dead processes ended, and
what each live process is doing at that moment. The last is asked of the process by a signal, which its interpreter
answers even while native code holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from dat_ray.data.processes import has_ended
from dat_ray.data.shards import write_bytes
from dat_ray.errors import StorageError
from dat_ray.placement import on_node
from dat_ray.progress import stage_line
from dat_ray.secrets import redact

# How long the processes of one node may take to write their stacks, and how long a node is waited for.
STACK_SECONDS, NODE_SECONDS = 1.0, 15.0
# The innermost frame of each thread in what faulthandler writes.
_MAIN_FRAME = re.compile(r'most recent call first\):\n  File "([^"]+)", line (\d+) in (\S+)')

# Where the reason begins in what Ray says of an actor that died.
_BECAUSE = "The actor died because"

_stack_file: Any = None


def keep_traceback(path: str, error: BaseException) -> str:
    """Writes an exception with its traceback to a file of the run's logs.

    Returns:
        "details: PATH", or why there are none: a full disk must not hide the error that it caused.
    """
    return _keep(path, "".join(traceback.format_exception(error)))


def _keep(path: str, text: str) -> str:
    try:
        write_bytes(path, redact(text).encode())
    except StorageError:
        return "no details, since the logs cannot be written"
    return f"details: {path}"


def answer_for_stacks() -> None:
    """Makes this process write the stacks of all its threads to a file of its own when it gets SIGUSR1."""
    global _stack_file
    if _stack_file is None:
        remove_stacks()
        path = _stacks_of(os.getpid())
        while _stack_file is None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            with suppress(FileNotFoundError):  # another process has just removed the empty folder
                _stack_file = open(path, "x", encoding="utf-8")  # noqa: SIM115  # stays open as long as the process lives
        faulthandler.register(signal.SIGUSR1, _stack_file, all_threads=True)


def _stacks_of(pid: int) -> Path:
    return _stacks_folder() / str(pid)


def _stacks_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"dat-stacks-{os.getuid()}"


def remove_stacks() -> None:
    """Removes the files of `answer_for_stacks` whose processes have ended, and their folder once it is empty."""
    with suppress(OSError):
        for path in _stacks_folder().iterdir():
            if path.name.isdigit() and has_ended(int(path.name), ""):
                path.unlink(missing_ok=True)
        _stacks_folder().rmdir()


@dataclass(frozen=True)
class Actor:
    """One actor of this job, as the cluster knows it."""

    name: str
    state: str
    node: str
    pid: int
    death: str

    def line(self) -> str:
        where = f"process {self.pid} on node {self.node[:8]}" if self.pid else "no process yet"
        return f"{self.name}: {self.state}, {where}"


def job_actors() -> list[Actor]:
    """The actors of this job, dead ones too."""
    job = ray.get_runtime_context().get_job_id()
    return [
        Actor(
            name=actor["Name"] or actor["ActorClassName"],
            state=actor["State"],
            node=actor["Address"]["NodeID"],
            pid=actor["Pid"],
            death=_death(str(actor["DeathCause"])) if actor["State"] == "DEAD" else "",
        )
        for actor in ray._private.state.actors().values()
        if actor["JobID"] == job
    ]


def _death(cause: str) -> str:
    """The sentence of Ray's record of a death that says why."""
    said = re.search(r'error_message: "((?:[^"\\]|\\.)*)"', cause)
    return " ".join((said[1] if said else cause).split())[:600]


def death_in_a_line(error: BaseException) -> str:
    """Why an actor or its answer is lost, from what Ray raised: without the ids that Ray puts before the reason."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[max(0, text.find(_BECAUSE)) :]}"[:300]


def _actor_lines(actors: Sequence[Actor]) -> list[str]:
    """A line an actor; those that ended alike share one, since a stage may have used up many helpers."""
    lines = [actor.line() for actor in actors if actor.state != "DEAD"]
    ended = Counter((actor.name, actor.death) for actor in actors if actor.state == "DEAD")
    return lines + [f"{count} x {name}: DEAD, {death or 'no reason given'}" for (name, death), count in ended.items()]


def node_lines() -> list[str]:
    """What each node has and what of it is free."""
    free = ray._private.state.available_resources_per_node()
    lines = []
    for node in ray.nodes():
        if not node["Alive"]:
            lines.append(f"node {node['NodeID'][:8]}: DEAD, {node.get('DeathReasonMessage') or 'no reason given'}")
            continue
        has, left = node["Resources"], free.get(node["NodeID"], {})
        parts = [f"{left.get(kind, 0):g} of {has[kind]:g} {kind} free" for kind in ("CPU", "GPU") if kind in has]
        labels = {name: value for name, value in node.get("Labels", {}).items() if not name.startswith("ray.io/")}
        lines.append(f"node {node['NodeID'][:8]}: {', '.join(parts) or 'no CPU'}{f', labels {labels}' if labels else ''}")
    return lines


def pending_line(actors: Sequence[Actor]) -> str:
    """What waits for a place, in a few words; empty where nothing does."""
    waiting: defaultdict[str, int] = defaultdict(int)
    for actor in actors:
        if actor.state in ("PENDING_CREATION", "DEPENDENCIES_UNREADY", "RESTARTING"):
            waiting[actor.name] += 1
    return ", ".join(f"{count} x {name}" for name, count in sorted(waiting.items()))


def diagnose(path: str, waited: str) -> str:
    """Writes down what the cluster and every process of this job are doing, before anything is stopped.

    Args:
        path: file of the run's logs.
        waited: what nothing came of, as the first line.

    Returns:
        One line: what is pending, the nodes, and where the rest is.
    """
    actors, nodes = job_actors(), node_lines()
    pending = pending_line(actors)
    text = [waited, "", "Nodes", *nodes, "", "Actors of this job", *_actor_lines(actors), "", _all_stacks(actors)]
    details = _keep(path, "\n".join(text) + "\n")
    return f"pending: {pending or 'nothing'}; {'; '.join(nodes)}; {details}"


def in_one_line() -> str:
    """What is pending, the nodes, and in which function each process of this job is, for a message without a file."""
    actors = job_actors()
    frames = [
        f"{line.split(',')[0]} is in {match[2]} ({os.path.basename(match[0])}:{match[1]})"
        for line, match in ((line, _MAIN_FRAME.findall(text)) for line, text in _stacks(actors).items())
        for match in match[-1:]
    ]
    return "; ".join([f"pending: {pending_line(actors) or 'nothing'}", *node_lines(), *frames])


def _all_stacks(actors: Sequence[Actor]) -> str:
    return "\n".join(f"Stacks of {name}\n{text}" for name, text in _stacks(actors).items())


def _stacks(actors: Sequence[Actor]) -> dict[str, str]:
    """Actor and process -> stacks of all its threads, the main one last; or why there are none."""
    by_node: defaultdict[str, list[int]] = defaultdict(list)
    for actor in actors:
        if actor.state == "ALIVE" and actor.pid:
            by_node[actor.node].append(actor.pid)
    asked = {node: ray.remote(num_cpus=0, **on_node(node))(_node_stacks).remote(pids) for node, pids in by_node.items()}
    names = {(actor.node, actor.pid): actor.name for actor in actors}
    found = {}
    for node, answer in asked.items():
        try:
            stacks: dict[int, str] = ray.get(answer, timeout=NODE_SECONDS)
        except ray.exceptions.RayError as error:
            found[f"node {node[:8]}"] = f"no answer ({type(error).__name__})"
            continue
        found.update({f"{names[node, pid]}, process {pid}": text for pid, text in stacks.items()})
    return found


def _answers(pid: int) -> bool:
    """Whether this very process has called `answer_for_stacks`, and not one before it that had the same id."""
    path = _stacks_of(pid)
    try:
        # A process opens its file after its start; clocks of files and of processes differ by some hundredths of a second.
        return bool(path.stat().st_mtime > psutil.Process(pid).create_time() - 1.0)
    except (OSError, psutil.Error):
        return False


def _node_stacks(pids: Sequence[int]) -> dict[int, str]:
    """Stacks of processes of this node, those that answer for them."""
    before = {}
    for pid in pids:
        if _answers(pid):  # to any other process the signal would be the end
            before[pid] = _stacks_of(pid).stat().st_size
            os.kill(pid, signal.SIGUSR1)
    time.sleep(STACK_SECONDS)
    return {pid: _stacks_of(pid).read_text(encoding="utf-8")[size:] for pid, size in before.items()}


class StallWatch:
    """Notices that a count stands still, and writes a diagnosis once, while what stalls is still there to be asked.

    Args:
        what: what is counted, for the message.
        path: file of the run's logs for the diagnosis.
        deadline: seconds without progress after which the run will stop; half of it makes a stall.
    """

    def __init__(self, what: str, path: str, deadline: float) -> None:
        self._what, self._path, self._patience = what, path, deadline / 2
        self._count: int | None = None
        self._since = time.monotonic()
        self.found = ""

    def tick(self, count: int, ask: Callable[[str, str], str] = diagnose) -> None:
        """Takes the count of this moment."""
        now = time.monotonic()
        if count != self._count:
            self._count, self._since, self.found = count, now, ""
        elif not self.found and now - self._since > self._patience:
            waited = f"{self._what}: nothing came in {now - self._since:.0f} s"
            self.found = ask(self._path, waited)
            stage_line(f"{waited}; {self.found}")
