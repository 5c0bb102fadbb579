"""One question to every node: which versions it has, and whether it sees the run directory's storage as we do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray

from dat_ray.data.shards import exists, join, open_filesystem, read_bytes, write_bytes
from dat_ray.errors import DatError
from dat_ray.ops.needs import Finding
from dat_ray.placement import on_node

# A first process on a node imports ray and pyarrow.
SECONDS_FOR_A_NODE = 60.0


def ask_every_node(nodes: Sequence[Mapping[str, Any]], run_dir: str | None, installed: Mapping[str, str]) -> list[Finding]:
    """Asks each node once, at the same time, with a deadline.

    Args:
        nodes: live nodes, of `ray.nodes()`.
        run_dir: local path or URI; a probe folder is made in it and removed again. None leaves storage out.
        installed: versions of this machine.
    """
    if run_dir is None:
        return _answers_of(nodes, None, installed)[1]
    with ExitStack() as stack:
        try:
            probe = stack.enter_context(_probe(run_dir))
        except (DatError, OSError) as error:
            return [Finding("storage", False, str(error), "choose a --run-dir that this machine can write")]
        answers, findings = _answers_of(nodes, probe, installed)
        return [*findings, _same_storage(answers, probe, run_dir, nodes)]


def _answers_of(
    nodes: Sequence[Mapping[str, Any]], probe: str | None, installed: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """What the nodes say, by name, and which of them are silent or have other versions."""
    findings = []
    asked = {}
    for node in nodes:
        # No CPU: the question must not wait behind the work that it is about.
        task: Any = ray.remote(num_cpus=0, max_retries=0, **on_node(node["NodeID"]))(_look)
        asked[task.remote(probe, node["NodeID"], tuple(installed))] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_FOR_A_NODE)
    answers, silent = {}, [_name(asked[ref]) for ref in late]
    for ref in done:
        try:
            answers[_name(asked[ref])] = ray.get(ref)
        except ray.exceptions.RayError as error:
            silent.append(f"{_name(asked[ref])} ({' '.join(str(error).split())[-160:]})")
    if silent:
        detail = f"{len(silent)} of {len(asked)} do not answer within {SECONDS_FOR_A_NODE:g} s: {', '.join(silent)}"
        findings.append(
            Finding("nodes", False, detail, "look at `ray status` and that node's logs; dat_ray must be installed there")
        )
    for ref in late:
        ray.cancel(ref)  # it would write into a probe that is gone
    return answers, [*findings, _same_versions(answers, installed)]


def _look(probe: str | None, node: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """Runs on the node."""
    import importlib.metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    trouble = ""
    if probe:
        try:
            if read_bytes(join(probe, "driver")) != b"driver":
                trouble = "reads something else than was written"
            write_bytes(join(probe, node), node.encode())
        except (DatError, OSError) as error:
            trouble = " ".join(str(error).split())[:200]
    return {"versions": versions, "trouble": trouble, "time": time.time()}


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeName") or node["NodeManagerAddress"]) + f"/{node['NodeID'][:6]}"


def _same_versions(answers: Mapping[str, dict[str, Any]], installed: Mapping[str, str]) -> Finding:
    wrong = [
        f"{node} has {package} {version}, this machine {installed[package]}"
        for node, answer in answers.items()
        for package, version in answer["versions"].items()
        # A GPU build calls itself 2.13.0+cu128, a CPU build 2.13.0+cpu.
        if version.split("+")[0] != installed[package].split("+")[0]
    ]
    if wrong:
        return Finding("versions on every node", False, "; ".join(wrong[:4]), "use one image everywhere: cluster/Dockerfile")
    return Finding("versions on every node", True, f"{len(answers)} nodes as this machine")


def _same_storage(answers: Mapping[str, dict[str, Any]], probe: str, run_dir: str, nodes: Sequence[Mapping[str, Any]]) -> Finding:
    trouble = [f"{node}: {answer['trouble']}" for node, answer in answers.items() if answer["trouble"]]
    unseen = [
        _name(node)
        for node in nodes
        if _name(node) in answers and not answers[_name(node)]["trouble"] and not exists(join(probe, node["NodeID"]))
    ]
    if unseen:
        trouble.append(f"what {', '.join(unseen)} wrote is not there for this machine")
    if trouble:
        remedy = "mount the same file system on every node, or use an s3:// or gs:// address"
        return Finding("storage", False, f"{run_dir} is not shared: {'; '.join(trouble[:4])}", remedy)
    return Finding("storage", True, f"{run_dir} is written and read by {len(answers)} nodes")


@contextmanager
def _probe(run_dir: str) -> Iterator[str]:
    """A folder of a new name with one file, inside a `with` block.

    Of the folders above it those that were made here go too, if they are empty: a run may begin there meanwhile.
    """
    probe = join(run_dir, f".doctor-{uuid.uuid4().hex[:8]}")
    filesystem, inner = open_filesystem(probe)
    made: list[Path] = []
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            for parent in reversed(Path(inner).parents):
                with suppress(FileExistsError):
                    parent.mkdir()
                    made.append(parent)
        write_bytes(join(probe, "driver"), b"driver")
        yield probe
    finally:
        if filesystem.get_file_info(inner).type == pafs.FileType.Directory:
            filesystem.delete_dir(inner)
        for parent in reversed(made):
            with suppress(OSError):  # somebody has put something there
                parent.rmdir()
