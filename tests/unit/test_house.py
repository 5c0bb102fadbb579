"""Imports point one way along the arrows that CONTRIBUTING draws."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dat_ray

PACKAGE = Path(dat_ray.__file__).parent
# From the ground up; rooms of one floor don't know of each other.
FLOORS = (
    ("config",),
    ("data",),
    ("measures", "diffusion"),
    ("models",),
    ("engines",),
    ("generation", "training", "evaluation"),
    ("bench",),
    ("reporting",),
    ("pipeline",),
    ("planning",),
    ("ops",),
    ("rehearsal",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Modules of one room that another one still borrows on its own floor, counted once for each module that does: these only fall.
BORROWED = {("evaluation", "training"): 10}
# Modules of the longest chain of imports inside a room, the first and the last one counted.
LONGEST_CHAIN = {"evaluation": 6}


# The most that a module, and a function's list of parameters, may have: what is longer has more than one job.
MOST_LINES, MOST_PARAMETERS = 400, 7
# Modules of different rooms with one name: each is that room's part of one thing.
ONE_THING = {
    "adapt": "the making of a sampler: its recipe, its verb",
    "attack": "the attack in embedding space, and its benchmark",
    "base": "the interfaces of a room",
    "beast": "the attack, and its search",
    "embedding": "the attack, and its search",
    "fp8": "layers in 8 bits, and their benchmark",
    "gcg": "the attack, and its search",
    "loading": "recipes, models: from their names",
    "memory": "arithmetic of memory, and its benchmark",
    "pgd": "the attack, and its search",
    "sampler": "the sampler, and its benchmark",
    "stage": "the door of a stage",
    "study": "arms by seeds: their file, their runs, their page",
    "sweep": "recipes side by side: their file, their runs, their page",
    "vllm_sampler": "the engine, and its benchmark",
    "vllm_target": "the engine, and its benchmark",
}
# Functions past it, which only get fewer.
LONG_LISTS = {"reporting/figures.py line_plot"}


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by dots"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOOR)


def test_a_room_imports_only_from_the_floors_below() -> None:
    borrowed: Counter[tuple[str, str]] = Counter()
    for room in FLOOR:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            for module in {name for name in imports(path) if name.startswith("dat_ray.")}:
                other = module.split(".")[1]
                # A module outside the rooms, such as errors.py, stands below them all.
                floor = FLOOR.get(other, -1)
                assert floor <= FLOOR[room], f"{path.relative_to(PACKAGE)} imports {module}"
                if other != room and floor == FLOOR[room]:
                    borrowed[room, other] += 1
    assert borrowed == BORROWED


def test_measures_are_pure() -> None:
    for path in sorted((PACKAGE / "measures").glob("*.py")):
        for name in imports(path):
            ours = name in ("dat_ray.data.text", "dat_ray.data.row_types") or name.startswith("dat_ray.measures.")
            assert ours or name.split(".")[0] in {*sys.stdlib_module_names, "numpy"}, f"{path.name} imports {name}"


def chain(room: str) -> list[str]:
    """The longest chain of imports inside a room, from the module that nobody there imports down to one that imports none.

    What a registry finds by its name at run time is no link: whoever reads the finder does not have to read what it finds.
    """
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in (PACKAGE / room).rglob("*.py")}
    found: dict[str, list[str]] = {}
    links = {name: {other for other in imports(path) if other in names.values()} for path, name in names.items()}

    def down(name: str, above: tuple[str, ...]) -> list[str]:
        assert name not in above, f"{' -> '.join(above)} -> {name} is a circle"
        if name not in found:
            below = [down(other, (*above, name)) for other in links[name]]
            found[name] = [name, *max(below, key=len, default=[])]
        return found[name]

    return max((down(name, ()) for name in links), key=len)


def test_a_room_is_read_in_few_steps() -> None:
    for room, longest in LONGEST_CHAIN.items():
        found = chain(room)
        assert len(found) <= longest, " -> ".join(found)


def test_evaluation_imports_torch_in_workers_alone() -> None:
    room = PACKAGE / "evaluation"
    for path in sorted(room.rglob("*.py")):
        if path.parent.name != "search" and path.name != "lm_eval_runner.py":
            assert "torch" not in {name.split(".")[0] for name in imports(path)}, path.relative_to(PACKAGE)


def test_modules_have_one_job() -> None:
    long = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > MOST_LINES}
    assert not long


def test_functions_take_few_parameters() -> None:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
                if len([name for name in names if name not in ("self", "cls")]) > MOST_PARAMETERS:
                    found.add(f"{path.relative_to(PACKAGE)} {node.name}")
    assert found <= LONG_LISTS


def test_a_name_has_one_meaning() -> None:
    classes: dict[str, list[str]] = {}
    modules: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        modules.setdefault(path.stem, set()).add(str(where.parent))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(str(where))
    assert {name: found for name, found in classes.items() if len(found) > 1} == {}
    assert {name for name, rooms in modules.items() if len(rooms) > 1} - {"__init__"} == set(ONE_THING)


def test_nothing_is_there_for_tests_alone() -> None:
    """Functions and classes at the top of a module that the package, jobs and pyproject.toml name nowhere else."""
    root = PACKAGE.parent
    texts = {path: path.read_text(encoding="utf-8") for folder in (PACKAGE, root / "jobs") for path in folder.rglob("*.py")}
    words = Counter(re.findall(r"\w+", "\n".join([*texts.values(), (root / "pyproject.toml").read_text(encoding="utf-8")])))
    for path, text in texts.items():
        # The registry finds attacks by their class.
        if path.parent != PACKAGE / "evaluation" / "attacks":
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    assert words[node.name] > 1, f"{path.relative_to(root)}: nothing uses {node.name}"
