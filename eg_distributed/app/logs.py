"""`jupyter distributed logs KERNEL`: what a kernel printed, from its node, while it runs and for a day after its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostError, HostUnreachable, HostUnresponsive, KernelGone, RequestInvalid
from eg_distributed.hosts import HostSet
from eg_distributed.kernel import exit_text
from eg_distributed.protocol import LogEntry, LogPart
from eg_distributed.wire import MAX_ANSWER

_PAUSE = 0.3  # seconds between two looks at a log that is followed
_ALMOST_ALL = MAX_ANSWER // 8 - 16  # bytes of a part behind which there may be more; a character may be cut off its end
_PATIENCE = 60.0  # seconds for which a host may be away while a log of it is followed


def show(
    cluster: Cluster,
    hosts: HostSet,
    kernel: str,
    *,
    follow: bool = False,
    previous: bool = False,
    as_json: bool = False,
) -> int:
    """Print the log of *kernel*, an id or how one begins; return the process's exit code. Raises DistributedError.

    *follow* goes on until the kernel ends; *previous*: the log of the start before the last one. What is said of
    the log, and is not in it, goes to stderr.
    """
    if not kernel:
        raise RequestInvalid("no kernel is named", remedy="name its id, or how it begins")
    host, entry = _find(cluster, hosts, kernel, previous=previous)
    if as_json:
        parts = [part.text for part in _parts(cluster, host, entry, follow=False)]
        known = {"host": host, "kernel": entry.kernel, "attempt": entry.attempt, "state": entry.state}
        print(json.dumps({**known, "exit_code": entry.exit_code, "log": "".join(parts)}))
        return 0
    said = f"kernel {entry.kernel} on {host} {exit_text(entry.exit_code)}" if entry.state == "exited" else ""
    last = ""
    for part in _parts(cluster, host, entry, follow=follow):
        sys.stdout.write(part.text)
        sys.stdout.flush()
        last = part.text or last
        if part.ended:
            said = f"kernel {entry.kernel} on {host} {exit_text(part.exit_code)}"
    if last and not last.endswith("\n"):
        print()
    if said or not last:
        print(said or f"kernel {entry.kernel} on {host} has printed nothing so far", file=sys.stderr)
    return 0


def _find(cluster: Cluster, hosts: HostSet, kernel: str, *, previous: bool) -> tuple[str, LogEntry]:
    """Return where the log of *kernel* is, and whose it is; raises KernelGone or RequestInvalid where that is not one."""
    answers = cluster.submit(cluster.find_logs(kernel, hosts, newest=not previous)).result()
    errors = [answer for answer in answers.values() if isinstance(answer, HostError)]
    starts = [(host, entry) for host, found in answers.items() if not isinstance(found, HostError) for entry in found]
    ids = sorted({entry.kernel for _, entry in starts})
    if kernel in ids:
        ids = [kernel]
    if not ids:
        _refuse_unknown(kernel, hosts, errors)
    if len(ids) > 1:
        raise RequestInvalid(
            f"{len(ids)} kernels have ids that begin with {kernel}: {', '.join(ids[:10])}{', …' * (len(ids) > 10)}",
            remedy="say more of it",
        )
    for error in errors:  # a host that is away may have a newer one
        print(f"note: {error}", file=sys.stderr)
    (name,) = ids
    own = sorted(
        ((host, entry) for host, entry in starts if entry.kernel == name), key=lambda found: found[1].start_time
    )
    if not previous:
        return own[-1]
    if len(own) < 2:
        raise KernelGone(
            f"no log of an earlier start of kernel {name} is kept", remedy="leave --previous out for its last one"
        )
    return own[-2]


def _refuse_unknown(kernel: str, hosts: HostSet, errors: list[HostError]) -> None:
    """Raise what there is to say of a *kernel* that no host knows."""
    if len(errors) == len(hosts) == 1:
        raise errors[0]
    where = ", ".join(name for name in hosts if name not in {error.host for error in errors})
    away = " ".join(str(error) for error in errors)
    raise KernelGone(
        f"no kernel's id is {kernel}, or begins so, {f'on {where}' if where else 'on any host'}."
        + (f" These could not be asked: {away}" if away else ""),
        remedy="see `jupyter distributed kernels` for what runs; logs are kept for a day after a kernel's end, and --hosts names "
        "hosts of kernelspecs with hosts of their own",
    )


def _parts(cluster: Cluster, host: str, entry: LogEntry, *, follow: bool) -> Iterator[LogPart]:
    """Read a log, to its end as it is now or, with *follow*, to the kernel's. Raises HostError and KernelGone."""
    position, heard, said = 0, time.monotonic(), ""
    give_up = heard + _PATIENCE  # on a log that grows faster than it can be read
    while True:
        try:
            part = cluster.submit(cluster.read_log_part(host, entry.kernel, entry.attempt, position)).result()
        except (HostUnreachable, HostUnresponsive) as error:
            if not follow or time.monotonic() - heard > _PATIENCE:
                raise
            if str(error) != said:
                print(f"note: {error} Trying again for {_PATIENCE:g} s.", file=sys.stderr)
            said = str(error)
            time.sleep(_PAUSE)
            continue
        yield part
        gained, position = part.position - position, part.position
        heard, said = time.monotonic(), ""
        if part.ended or (not follow and (gained < _ALMOST_ALL or time.monotonic() > give_up)):
            return
        if gained < _ALMOST_ALL:
            time.sleep(_PAUSE)
