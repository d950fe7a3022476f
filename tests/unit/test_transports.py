"""What a gateway remembers of its kernels' transports."""

from __future__ import annotations

from eg_distributed.transports import Transports


def test_python_gets_sockets_until_a_kernel_could_not_take_them() -> None:
    """The language is a first guess for each kernelspec, and what was seen of its kernels counts more."""
    transports = Transports()
    assert transports.choose("auto", "Python", ["xpython"]) == "ipc"
    assert not transports.is_proven(["xpython"])
    transports.note(["xpython"], takes_sockets=False)
    assert transports.choose("auto", "python", ["xpython"]) == "tcp"
    assert transports.choose("auto", "python", ["xpython", "--other"]) == "ipc"
    assert transports.choose("ipc", "python", ["xpython"]) == "ipc"
    assert transports.choose("auto", "R", ["R"]) == "tcp"


def test_what_has_run_on_sockets_is_proven() -> None:
    """ipykernel is known to take them, also where a shell starts it; another kernel once it has."""
    transports = Transports()
    assert transports.is_proven(["bash", "-lc", "exec python -m ipykernel_launcher -f $0", "{connection_file}"])
    transports.note(["own"], takes_sockets=True)
    assert transports.is_proven(["own"])


def test_only_so_many_kernelspecs_are_remembered() -> None:
    """A gateway lives for months, and clients may choose parts of an argv."""
    transports = Transports()
    for number in range(3000):
        transports.note([str(number)], takes_sockets=False)
    assert transports.choose("auto", "python", ["0"]) == "ipc"
    assert transports.choose("auto", "python", ["2999"]) == "tcp"
