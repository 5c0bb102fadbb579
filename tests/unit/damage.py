"""Damages valid files as disks, people and attackers do: the strategies of the fuzz tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

VALUES: list[str] = [
    *("null", "true", "0", "-1", "1e999", "NaN", "-Infinity", "9" * 5000, "1" * 30, "4294967296", "0.5", '""', '"x"', "[]", "{}"),
    *('"../../x"', '"/etc/passwd"', r'"\ud83d"', r'"\u0000\u001b[2J"', '"a\\nb"', "[" * 3000, "[" * 50 + "]" * 50, "[[1], [2]]"),
    *('{"a": 1, "a": 2}', '{"__metadata__": []}', '["x", 3, null]'),
]
BYTES = (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"]", b'"', b"\n", b"\xc2\x85", b"9" * 5000)
SEEDS = st.integers(0, 2**32 - 1)


def fuzz(examples: int) -> settings:
    """So many examples, the same ones every time, however slow the machine is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        # A seed has no simpler form, and tracing makes an example ten times as slow.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def damaged_bytes(data: bytes, seed: int) -> bytes:
    """The bytes cut short, flipped, repeated or with others in between."""
    rng = random.Random(seed)
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            del found[place:]
        elif kind == 1 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del found[place : place + rng.randrange(1, 20)]
        elif kind == 3:
            found[place:place] = rng.choice(
                (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"]", b'"', b"\n", b"\xc2\x85", b"9" * 5000)
            )
        else:
            found[place:place] = found[place : place + rng.randrange(1, 40)]
    return bytes(found)


def damaged_json(data: bytes, seed: int) -> bytes:
    """JSON with one or a few of its values replaced, entries lost, doubled or renamed; or its bytes damaged."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return damaged_bytes(data, rng.randrange(2**32))
    lines = data.splitlines() or [data]
    number = rng.randrange(len(lines)) if _is_json(lines[0]) else None
    tree = json.loads(data if number is None else lines[number])
    marks: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _damaged(tree, rng, marks)
    text = json.dumps(tree)
    for mark, value in marks.items():
        text = text.replace(f'"{mark}"', value)
    if number is None:
        return text.encode()
    lines[number] = text.encode()
    return b"\n".join(lines)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _damaged(tree: Any, rng: random.Random, marks: dict[str, str]) -> Any:
    """The tree with damage somewhere; a text of `marks` stands for what no Python value becomes."""
    if isinstance(tree, dict | list) and tree and rng.random() < 0.85:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = rng.choice(list(keys))
        found: Any = dict(tree) if isinstance(tree, dict) else list(tree)
        kind = rng.random()
        if kind < 0.1:
            del found[key]
        elif kind < 0.15 and isinstance(found, dict):
            found[rng.choice(("x", "", "../x", "\x1b[2J"))] = found.pop(key)
        elif kind < 0.2 and isinstance(found, list):
            found.append(found[key])
        else:
            found[key] = _damaged(found[key], rng, marks)
        return found
    mark = f"mark-{len(marks)}-{rng.randrange(10**9)}"
    marks[mark] = rng.choice(VALUES)
    return mark


Damage = Callable[[bytes, int], bytes]
