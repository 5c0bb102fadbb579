"""No helper of the package is left to whatever node Ray chooses: one that asks for nothing is put anywhere, and ends with it."""

from __future__ import annotations

import ast
from pathlib import Path

import dat_ray

BOUND = {"on_node", "beside_the_driver"}
# Not bound to a node: these ask for what a pool asks for, and are started again elsewhere, by Ray or by the pool.
FREE = {"engines/workers.py": 1, "generation/plan.py": 1, "generation/autoscaler.py": 1}


def is_remote(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "ray.remote"


def is_bound(call: ast.Call) -> bool:
    unpacked = [keyword.value for keyword in call.keywords if keyword.arg is None]
    return any(isinstance(value, ast.Call) and ast.unparse(value.func) in BOUND for value in unpacked)


def free_calls(source: str) -> int:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sum(is_remote(call) and not is_bound(call) for call in calls)


def test_every_actor_and_task_names_its_node_or_is_started_again() -> None:
    root = Path(dat_ray.__file__).parent
    sources = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.py")}
    assert {name: count for name, text in sources.items() if (count := free_calls(text))} == FREE
    # Nobody goes around `ray.remote`, which is what is looked for above.
    assert not [name for name, text in sources.items() if "@ray.remote" in text or "import remote" in text]


def test_the_reader_of_sources_tells_bound_from_free() -> None:
    assert free_calls("ray.remote(num_cpus=0)(Ledger).remote()") == 1
    assert free_calls("ray.remote(**beside_the_driver())(Ledger).remote()") == 0
    assert free_calls("ray.remote(num_cpus=0, **on_node(node))(look).remote()") == 0
