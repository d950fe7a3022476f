"""No parser does anything but take what it is fed, or raise its own error; the same few inputs with each run.

`EG_FUZZ_EXAMPLES=10000 pytest tests/unit/fuzz` takes more of them; `nox -s fuzz` looks for those that reach new code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eg_distributed.agent.kernels import Kernel

from .targets import RECORDED, TARGETS, Target, folder

EXAMPLES = int(os.environ.get("EG_FUZZ_EXAMPLES", "20"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([1 << 31, -(1 << 63), 10**400, float("nan"), float("inf"), 1e300, "", "\0", "x" * 300, "\ud800"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
LOGGED = TARGETS["logs"].seeds[0]
ARCHIVE, CENTRAL = TARGETS["spec_folders"].seeds[0], b"PK\1\2\x14\3\x14\0"
DEEP = b"[" * 100_000


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something is in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a JSON value with *new* at *path*."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: replaced(each, path[1:], new) if key == path[0] else each for key, each in value.items()}
    return [replaced(each, path[1:], new) if key == path[0] else each for key, each in enumerate(value)]


@st.composite
def changed(draw: st.DrawFn, seed: bytes) -> bytes:
    """Draw *seed* with some bytes taken out, put in, or repeated."""
    data = seed
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(start + draw(st.integers(0, 12)), len(data))
        data = data[:start] + draw(st.binary(max_size=12) | st.just(data[start:stop] * 2)) + data[stop:]
    return data


@st.composite
def changed_json(draw: st.DrawFn, seed: bytes) -> bytes:
    """Draw the JSON in *seed* with some values replaced by what does not belong there."""
    value = json.loads(seed)
    for _ in range(draw(st.integers(1, 3))):
        value = replaced(value, draw(st.sampled_from(places(value))), draw(JSON))
    return json.dumps(value).encode("utf-8", "surrogatepass")


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return what to feed *target* with."""
    kinds = [st.binary(max_size=200), st.sampled_from([b"", DEEP, *target.seeds])]
    kinds += [changed(seed) for seed in target.seeds]
    if target.is_json:
        kinds += [changed_json(seed) for seed in target.seeds]
        kinds.append(JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
    return st.one_of(kinds)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_its_own_error(name: str) -> None:
    """Whatever is sent, a parser takes it or raises what it says that it raises."""
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        print_blob=False,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs(target))
    def feed(data: bytes) -> None:
        target.run(data)

    feed()


@pytest.mark.parametrize("name", TARGETS)
def test_what_an_honest_peer_sends_is_fed(name: str) -> None:
    """Each target has seeds, and takes them."""
    assert TARGETS[name].seeds
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


FOUND = [
    ("launchers", DEEP[:30_000]),
    ("launchers", b'{"shell_port": "x", "pid": []}'),
    ("launchers", b'{"shell_port": 1, "iopub_port": 1, "stdin_port": 1, "hb_port": 1, "control_port": 1, "key": {}}'),
    ("records", DEEP),
    ("records", json.dumps({**RECORDED, "argv": 5}).encode()),
    ("records", json.dumps({**RECORDED, "state": [], "log_path": "\0"}).encode()),
    ("records", json.dumps({**RECORDED, "start_time": float("inf"), "family": {"kernel": 1}}).encode()),
    ("logs", DEEP),
    ("logs", LOGGED.replace(b'"log_end": 9', b'"log_end": Infinity')),
    ("pending", DEEP),
    ("pending", b'{"argv": [], "env": {}}'),
    ("spec_folders", ARCHIVE.replace(CENTRAL + b"\0\0\0\0", CENTRAL + b"\0\0\xf6\0")),  # an unknown compression
    ("spec_folders", ARCHIVE.replace(CENTRAL + b"\0\0\0\0", CENTRAL + b"\1\0\0\0")),  # a password is wanted
    ("unended", b'[["node1", "k1", "a1", 1e999]]'),
    ("unended", b'[["node1", "k1", "a1", 1' + b"0" * 400 + b"]]"),
    ("hosts", b"x y" * 100_000),
    ("environments", json.dumps({f"KERNEL_{'-' * 100_000}": "x"}).encode()),
    ("notebooks", b"<IDS|MSG>\0sig\0{}"),
    ("notebooks", b"<IDS|MSG>\0sig\0{}\0" + DEEP),
    ("notebooks", b'<IDS|MSG>\0sig\0{}\0{"header": 7}'),
]
"""What once got through: as another error than the parser's own, or as an error's text without a bound."""


@pytest.mark.parametrize(("name", "data"), FOUND, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FOUND)])
def test_what_once_got_through_does_not_again(name: str, data: bytes) -> None:
    """A fault that was found stays mended."""
    TARGETS[name].run(data)


def test_a_malformed_record_is_nobodys_kernel() -> None:
    """A record whose fields are of other types than its agent's would end the next agent as soon as it used one."""
    for field, value in {
        "argv": 5,
        "state": "gone",
        "pid": -1,
        "interrupt": [1],
        "connection": [],
        "users": ["x"],
    }.items():
        with folder() as home:
            (home / "record.json").write_text(json.dumps({**RECORDED, field: value}))
            assert Kernel.load(home, lambda *_: None) is None, field
            (home / "record.json").write_text(json.dumps(RECORDED))
            assert Kernel.load(home, lambda *_: None) is not None


def test_a_hunt_needs_no_pytest() -> None:
    """`nox -s fuzz` has atheris and what the product needs, and nothing that only tests do."""
    without = "import sys; sys.modules.update(pytest=None, hypothesis=None); import tests.unit.fuzz.targets"
    subprocess.run((sys.executable, "-c", without), check=True, cwd=Path(__file__).parents[3])
