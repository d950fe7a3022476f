"""What a user reads when something fails."""

from __future__ import annotations

import re

import pytest

from eg_distributed import errors
from eg_distributed.errors import (
    DistributedError,
    HostError,
    HostKeyRejected,
    HostUnreachable,
    KernelStartFailed,
    KernelStartTimeout,
    LoginRefused,
    NoHostAvailable,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]
ORDINARY = [cls for cls in CLASSES if cls is not NoHostAvailable]


@pytest.mark.parametrize("cls", ORDINARY, ids=lambda cls: str(cls.__name__))
def test_an_error_names_host_cause_and_remedy_on_one_line(cls: type[DistributedError]) -> None:
    """Two sentences behind the host's name, without line breaks, since they become an HTTP reason."""
    text = str(cls("the disk\nis full", host="node1", remedy="make room;\r\ntry again"))
    assert text == "Host node1: The disk is full. Make room; try again."


@pytest.mark.parametrize("cls", ORDINARY, ids=lambda cls: str(cls.__name__))
def test_host_and_remedy_may_be_missing(cls: type[DistributedError]) -> None:
    """What is not known leaves no gap."""
    assert str(cls("it failed!")) == "It failed!"


def test_the_drawing_is_the_tree() -> None:
    """The drawing at the top of errors.py shows every class below its real parent."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:│   |    )*(?:├── |└── )?)([A-Z][A-Za-z]+)\s{2,}\S", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else None
    real = {cls.__name__: cls.__base__.__name__ for cls in CLASSES}
    real["DistributedError"] = None
    assert drawn == real


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.__name__))
def test_every_error_has_an_http_status(cls: type[DistributedError]) -> None:
    """A client can always be answered."""
    assert 400 <= cls.http_status < 600


def test_a_failed_kernel_says_its_last_words_on_one_line() -> None:
    """The log's lines are joined, empty ones left out."""
    error = KernelStartFailed("it exited", host="n", exit_code=1, log="Traceback:\n\n  boom\r\nlast\u2028line\n")
    assert str(error) == "Host n: It exited. Its last output: Traceback: | boom | last | line"
    assert "\n" not in str(error)


def test_a_refused_login_carries_its_user() -> None:
    """Programs need not parse the text."""
    assert LoginRefused("no", host="n", user="alice").user == "alice"


def test_no_host_available_lists_each_host() -> None:
    """Every host that was tried is there with its own cause and remedy, in order."""
    tried: list[HostError] = [
        HostUnreachable("no route", host="a", remedy="check the network"),
        HostKeyRejected("unknown key", host="b", remedy="add it"),
    ]
    error = NoHostAvailable(tried)
    assert error.errors == tried
    text = str(error)
    assert "2 hosts" in text
    assert text.index("Host a: No route. Check the network.") < text.index("Host b: Unknown key. Add it.")
    assert "\n" not in text


def test_no_host_available_of_one_host_is_that_hosts_error() -> None:
    """One candidate: its own words, without a frame."""
    only = HostUnreachable("no route", host="a", remedy="check the network")
    assert str(NoHostAvailable([only])) == str(only)


def test_no_host_available_without_hosts_says_where_to_look() -> None:
    """An empty host set is a mistake in a setting."""
    assert str(NoHostAvailable([])) == "No host is available for this kernel. Check remote_hosts."


def test_lines_for_those_who_show_them() -> None:
    """Cause and remedy have a line each, and so has each host; what a kernel said is indented, so that it is nobody else's."""
    gone, full = (
        HostUnreachable("refused", host="a", remedy="start sshd"),
        HostError("full", host="b", remedy="make room"),
    )
    assert gone.lines() == ["Host a: Refused.", "Start sshd."]
    exited = KernelStartFailed("it exited", host="n", remedy="see why", log="Traceback:\n\n  boom | bang\n")
    assert exited.lines() == [
        "Host n: It exited.", "See why.", "Its last output:", "  Traceback:", "  boom", "  bang",
    ]  # fmt: skip
    late = KernelStartTimeout("too late", host="n", remedy="wait")
    late.earlier = [gone, full]
    assert late.lines() == ["Host n: Too late.", "Wait.", "Before that:", str(gone), str(full)]
    several = NoHostAvailable([gone, full], remedy="ask again")
    assert several.lines() == [
        "None of the 2 hosts that were tried could take the kernel.", str(gone), str(full), "Ask again.",
    ]  # fmt: skip
    assert str(several) == " ".join(several.lines())
    assert NoHostAvailable([gone]).lines() == gone.lines()
    assert NoHostAvailable([]).lines() == ["No host is available for this kernel.", "Check remote_hosts."]
