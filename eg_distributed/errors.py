"""Everything that can go wrong, as one shallow tree.

    DistributedError                 any failure of ours; names host, cause and remedy
    ├── HostError                    the host's fault: a start moves on to the next candidate
    │   ├── HostUnreachable          no such name, no route, refused, or silent past the connect deadline
    │   │   └── OutOfTime            not connected when the launch timeout ended; the host itself may be well
    │   ├── SSHConfigInvalid         ssh_config, or what it names for this host, cannot be used
    │   ├── HostKeyRejected          the host's key is unknown, or differs from the one on file
    │   ├── LoginRefused             the host turned down every way to log in
    │   ├── AgentUnavailable         logged in, but no agent: no python3, too old, forced command, full disk
    │   └── HostUnresponsive         connected, but an answer did not come in time
    ├── KernelError                  the kernel's fault: another host would not help
    │   ├── KernelStartFailed        it exited, or could not be executed, before it was ready
    │   │   └── KernelStartTimeout   it was not ready within the launch timeout
    │   ├── KernelGone               it is not, or no longer, on its node
    │   └── KernelTaken              another gateway has adopted it, and answers for it
    ├── RequestRefused               what the client asked for is not allowed (403)
    ├── RequestInvalid               what the client asked for is malformed (400)
    └── NoHostAvailable              every candidate failed; carries each one's own error

An error is one sentence of cause and one of remedy. Adapters show `str(error)` to the client, with `http_status`; or
`lines`, where the client shows lines as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AgentUnavailable",
    "DistributedError",
    "HostError",
    "HostKeyRejected",
    "HostUnreachable",
    "HostUnresponsive",
    "KernelError",
    "KernelGone",
    "KernelStartFailed",
    "KernelStartTimeout",
    "KernelTaken",
    "LoginRefused",
    "NoHostAvailable",
    "OutOfTime",
    "RequestInvalid",
    "RequestRefused",
    "SSHConfigInvalid",
]


_SHOWN = 1500
"""Characters of a kernel's last output in an error's text: gateways send it as HTTP's status line, and proxies take few KiB."""


def _sentence(text: str) -> str:
    """Return *text* on one line, as a sentence, so that parts can be joined into a paragraph."""
    line = " ".join(text.split())
    if not line:
        return ""
    return line[0].upper() + line[1:] + ("" if line[-1] in ".!?" else ".")


class DistributedError(Exception):
    """Base of all our errors: *cause* (what happened), *remedy* (what to do), *host* (where; None if nowhere)."""

    http_status: ClassVar[int] = 500

    def __init__(self, cause: str, *, host: str | None = None, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.host = host
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(DistributedError.lines(self))

    def lines(self) -> list[str]:
        """Return the same in lines, the cause on the first one and the remedy on the next. What a kernel said is indented."""
        where = f"Host {self.host}: " if self.host else ""
        return [line for line in (f"{where}{_sentence(self.cause)}", _sentence(self.remedy)) if line]


class HostError(DistributedError):
    """The host cannot take a kernel now; the cluster tries the next candidate."""

    http_status = 503


class HostUnreachable(HostError):
    """No SSH connection: the name does not resolve, no route, refused, or no answer before the deadline."""


class OutOfTime(HostUnreachable):
    """The launch timeout ended before there was a connection; that says nothing of the host, which stays a candidate."""


class SSHConfigInvalid(HostError):
    """The gateway's ssh_config says nothing usable of this host; nothing was sent to it."""


class HostKeyRejected(HostError):
    """The host's key is not the one on file, or none is on file; nothing was sent to it."""


class LoginRefused(HostError):
    """The host refused every authentication method that we could offer for *user*."""

    def __init__(self, cause: str, *, host: str | None = None, remedy: str = "", user: str = "") -> None:
        super().__init__(cause, host=host, remedy=remedy)
        self.user = user


class AgentUnavailable(HostError):
    """Login works, but our agent could not be brought up on the node."""


class HostUnresponsive(HostError):
    """The connection stands, but the node did not answer in time (paused, overloaded, or cut off just now)."""


class KernelError(DistributedError):
    """The kernel itself failed; no other host is tried, since it would fail there as well."""


class KernelStartFailed(KernelError):
    """The kernel exited or could not be executed; *log* holds its last lines, *exit_code* -N for signal N."""

    def __init__(
        self, cause: str, *, host: str | None = None, remedy: str = "", exit_code: int | None = None, log: str = ""
    ) -> None:
        super().__init__(cause, host=host, remedy=remedy)
        self.exit_code = exit_code
        self.log = log

    def __str__(self) -> str:
        tail = self._tail()
        return f"{super().__str__()} Its last output: {' | '.join(tail)}" if tail else super().__str__()

    def lines(self) -> list[str]:
        """Return also what the kernel said last."""
        tail = self._tail()
        return [*super().lines(), "Its last output:", *(f"  {line}" for line in tail)] if tail else super().lines()

    def _tail(self) -> list[str]:
        tail = " | ".join(line.strip() for line in self.log.splitlines() if line.strip())[-_SHOWN:]
        return tail.split(" | ") if tail else []


class KernelStartTimeout(KernelStartFailed):
    """The kernel was still not ready when the launch timeout ended; it has been stopped.

    *earlier* are the errors of hosts that were tried before and took their share of that time.
    """

    http_status = 504
    earlier: Sequence[HostError] = ()

    def __str__(self) -> str:
        before = " ".join(str(error) for error in self.earlier)
        return f"{super().__str__()} Before that: {before}" if before else super().__str__()

    def lines(self) -> list[str]:
        """Return also what was tried before, a line for each host."""
        before = [str(error) for error in self.earlier]
        return [*super().lines(), "Before that:", *before] if before else super().lines()


class KernelGone(KernelError):
    """The kernel is not on the node that should have it."""

    http_status = 404


class KernelTaken(KernelError):
    """Another gateway, *owner*, has adopted the kernel since, with the number *lease*; this one must leave it alone."""

    http_status = 409

    def __init__(
        self, cause: str, *, host: str | None = None, remedy: str = "", owner: str = "", lease: int = 0
    ) -> None:
        super().__init__(cause, host=host, remedy=remedy)
        self.owner = owner
        self.lease = lease


class RequestRefused(DistributedError):
    """The request is understood and not allowed, such as a pin outside the kernel's hosts."""

    http_status = 403


class RequestInvalid(DistributedError):
    """The request is malformed, such as an environment name with `=` in it; nothing was changed."""

    http_status = 400


class NoHostAvailable(DistributedError):
    """All candidates failed; *errors* has one HostError per host that was tried, in order."""

    http_status = 503

    def __init__(self, errors: Sequence[HostError], *, remedy: str = "") -> None:
        self.errors = list(errors)
        if not errors:
            super().__init__("No host is available for this kernel", remedy=remedy or "check remote_hosts")
        elif len(errors) == 1:
            super().__init__(errors[0].cause, host=errors[0].host, remedy=errors[0].remedy)
        else:
            causes = " ".join(str(error) for error in errors)
            super().__init__(f"{self._several()}. {causes}", remedy=remedy)

    def lines(self) -> list[str]:
        """Return a line for each host."""
        if len(self.errors) < 2:
            return super().lines()
        return [f"{self._several()}.", *(str(error) for error in self.errors), *super().lines()[1:]]

    def _several(self) -> str:
        return f"None of the {len(self.errors)} hosts that were tried could take the kernel"
