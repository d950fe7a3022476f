"""Measure us beside others that run kernels by SSH, and beside a local kernel, in one run: `nox -s "bench(peers)"`.

Each has a server of its own; all of them are up at once, and what is measured goes from one to the next, in another order with
each repeat. With `--docs docs` the page, its pictures and docs/figures.json are written; with `--guard` only ours and a local
kernel are measured, and the run fails where a ratio is worse than that file's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import this_machine, today
from benchmarks.peers import environments, measures, wire
from benchmarks.peers.contenders import GP_LAUNCHER, WARM, Contender, contenders
from benchmarks.peers.figures import LOCAL, Found, guard, ratios
from benchmarks.peers.measures import STORMS, Runner
from benchmarks.peers.nodes import Nodes
from benchmarks.peers.page import Run, page, verdict
from benchmarks.peers.servers import Host, Server
from lab import Lab
from lab.errors import LabError

REPEATS, LIVES, FAR_STARTS, FAR_CELLS, FAR_SECONDS = 3, 3, 3, 20, 45.0
LONG_SECONDS = 40.0
BETWEEN_SECONDS = 1.0
"""What kernels have for their end before the next contender's turn."""
DISTANCES = (20, 100)
"""Milliseconds of a round trip."""
KEPT = "figures.json"
PICTURES = Path(__file__).with_name("pictures.py")


def main() -> None:
    """Run everything; called by `nox -s "bench(peers)"`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(".bench/peers.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help=f"a folder for figures.md, its pictures and {KEPT}")
    parser.add_argument(
        "--guard", action="store_true", help=f"compare our ratios with docs/{KEPT}, measure nobody else"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of all but the cuts")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders: ours, ours_eg, stock, sshpyk, local…")
    parser.add_argument("--keep", action="store_true", help="keep the lab afterwards")
    options = parser.parse_args()
    if options.guard and options.docs:
        parser.error("--guard measures too few for --docs")
    if options.guard and options.repeats < 2:
        parser.error("--guard needs several repeats: one alone has no spread")
    options.json.parent.mkdir(parents=True, exist_ok=True)

    def keep(run: Run) -> None:
        options.json.write_text(run.to_json(), "utf-8")

    kept = Path("docs") / KEPT
    if options.guard and not kept.exists():
        parser.error(f"there is no {kept} to compare with: `--docs docs` makes it")
    if options.guard:
        chosen = [each for each in contenders() if each.ours or each.key == LOCAL]
    else:
        chosen = [each for each in contenders() if not options.only or each.key in options.only]
    run = measure(chosen, options.repeats, keep, far=not options.guard, keep_lab=options.keep)
    print(page(run))
    if options.docs:
        (options.docs / KEPT).write_text(run.to_json(), "utf-8")
        (options.docs / "figures.md").write_text(page(run), "utf-8")
        draw(options.docs)
    if options.guard:
        before = ratios(Run.from_json(kept.read_text("utf-8")).found)
        complaints = guard({key: each for key, each in before.items() if key in run.found}, ratios(run.found))
        print(verdict(complaints))
        sys.exit(1 if complaints else 0)


def draw(docs: Path) -> None:
    """Make the page's pictures, by an environment of their own: nothing else of ours needs matplotlib."""
    try:
        python = environments.ensure("plots", environments.own("plots")) / "bin" / "python"
    except LabError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        return
    environments.run(str(python), str(PICTURES), str(docs / KEPT), str(docs))


def measure(
    chosen: Sequence[Contender], repeats: int, keep: Callable[[Run], None], *, far: bool, keep_lab: bool = False
) -> Run:
    """Bring everything up, measure all that is to be measured of *chosen*, and return it.

    *keep* is called with what there is after each part: what breaks the next one costs no more than that.
    """
    found = {each.key: Found(each.label) for each in chosen}
    there = []
    for contender in chosen:
        try:
            contender.environment()
            there.append(contender)
        except LabError as error:
            found[contender.key].left_out = f"its environment could not be made: {error.cause or error}"
            print(f"{contender.label} is left out: {error}", file=sys.stderr)
    began = time.monotonic()
    run = Run(today(), this_machine(os.getloadavg()[0]), repeats, 0.0, found)

    def is_done() -> None:
        run.seconds = time.monotonic() - began
        keep(run)

    lab = Lab.up(name="bench", nodes=3, driver="docker")
    try:
        nodes = prepare(lab)
        identity, here = lab.folder.identity, gateway_address(lab)
        with servers(there, found, nodes.hosts, identity, here) as up:
            asyncio.run(near(up, found, nodes, repeats))
        run.no_distance = wire.missing() if far else "it was not asked for"
        is_done()
        if not run.no_distance:
            remote = [each for each in there if each.remote]
            host = Host(wire.THERE, nodes.hosts[0].host_key, nodes.hosts[0].user)
            with wire.Wire(nodes.main_pid) as way:
                for distance in DISTANCES:
                    way.take(distance / 1e3)
                    with servers(remote, found, [host], identity, wire.HERE, distance / 1e3) as up:
                        asyncio.run(far_away(up, found, nodes, distance))
                    is_done()
                with servers(remote, found, [host], identity, wire.HERE) as up:
                    asyncio.run(cut_off(up, found, way))
    finally:
        if not keep_lab:
            lab.down()
    is_done()
    return run


def gateway_address(lab: Lab) -> str:
    """Return this machine's address in the lab's network: what nodes connect back to."""
    networks = lab.nodes[0].native.attrs["NetworkSettings"]["Networks"].values()
    return str(next(each["Gateway"] for each in networks if each["Gateway"]))


def prepare(lab: Lab) -> Nodes:
    """Put on the nodes what gateway_provisioners wants there; return them as they are seen from outside."""
    hosts, containers = [], []
    for node in lab.nodes:
        host_key = " ".join(node.host_key.split()[:2])
        hosts.append(Host(node.address, host_key, node.user))
        containers.append(str(node.native.id))
        folder = str(Path(GP_LAUNCHER).parent)
        node.exec(["mkdir", "-p", folder], user="root").check()
        for source in gateway_provisioners_files():
            node.copy_in(source, folder)
    lab.nodes[0].native.reload()
    return Nodes(hosts, containers, int(lab.nodes[0].native.attrs["State"]["Pid"]))


def gateway_provisioners_files() -> Iterable[Path]:
    """Return the files of its launcher, of its environment if that is there."""
    for name in (
        "kernel-launchers/python/scripts/launch_ipykernel.py",
        "kernel-launchers/shared/scripts/server_listener.py",
    ):
        pattern = f"gateway_provisioners/lib/python3.*/site-packages/gateway_provisioners/{name}"
        yield from environments.FOLDER.glob(pattern)


@contextlib.contextmanager
def servers(
    chosen: Iterable[Contender],
    found: dict[str, Found],
    hosts: Sequence[Host],
    identity: Path,
    here: str,
    round_trip: float = 0.0,
) -> Iterator[list[Server]]:
    """All their servers at once; one that does not come up is noted as a failure, and left out."""
    with contextlib.ExitStack() as stack:
        started = []
        for contender in chosen:
            server = Server(contender, hosts if contender.remote else [], identity, here, round_trip)
            started.append(stack.enter_context(server))
        up = []
        for server in started:
            try:
                server.await_answer()
                up.append(server)
            except RuntimeError as error:
                found[server.contender.key].failures.append(str(error))
                print(error, file=sys.stderr)
        try:
            yield up
        finally:
            for server in started:
                server.terminate()  # all at once; each is waited for on the way out


async def near(up: Sequence[Server], found: dict[str, Found], nodes: Nodes, repeats: int) -> None:
    """Everything on the machine's own network."""
    runners = [Runner(server, found[server.contender.key]) for server in up]
    try:
        for runner in runners:
            await runner.attempt("first", partial(measures.first_start, runner, "first", len(nodes.hosts)), 120)
        await nodes.end_what_is_left(BETWEEN_SECONDS)
        for repeat in range(repeats):
            print(f"repeat {repeat + 1} of {repeats}, {time.strftime('%H:%M:%S')}", flush=True)
            order = runners[repeat % len(runners) :] + runners[: repeat % len(runners)]
            for runner in order:
                await runner.attempt("lives", partial(measures.lives, runner, LIVES), 120)
                await runner.end_kernels()
                await nodes.end_what_is_left(BETWEEN_SECONDS)
            await measures.cells(order)
            await nodes.end_what_is_left(BETWEEN_SECONDS)
            for count in STORMS:
                for runner in order:
                    if not takes_long(runner.found, count):
                        await runner.attempt(f"storm_{count}", partial(measures.storm, runner, count, nodes), 180)
        for runner in runners:
            if runner.key == WARM:
                await runner.attempt("its counts", partial(measures.forked, runner), 30)
    finally:
        for runner in runners:
            await runner.close()


def takes_long(found: Found, count: int) -> bool:
    """Return True if *count* starts at once took so long that once is enough: a run is to be over in a quarter of an hour."""
    return any(wall > 1e3 * LONG_SECONDS for (wall,) in found.samples.get(f"storm_{count}_wall", []))


async def far_away(up: Sequence[Server], found: dict[str, Found], nodes: Nodes, distance: int) -> None:
    """Starts and cells where a round trip takes *distance* milliseconds; what can't start there in time is left alone."""
    print(f"a round trip of {distance} ms, {time.strftime('%H:%M:%S')}", flush=True)
    runners = [Runner(server, found[server.contender.key]) for server in up]

    async def starts(runner: Runner) -> None:
        await measures.first_start(runner, f"first_rtt_{distance}", 1)
        await measures.starts(runner, f"start_rtt_{distance}", FAR_STARTS)

    try:
        for runner in runners:
            await runner.attempt(f"a round trip of {distance} ms", partial(starts, runner), FAR_SECONDS)
        reached = [runner for runner in runners if f"start_rtt_{distance}" in runner.found.samples]
        await measures.cells(reached, FAR_CELLS, 1, f"_rtt_{distance}", FAR_SECONDS)
    finally:
        for runner in runners:
            await runner.close()
        await nodes.end_what_is_left(BETWEEN_SECONDS)


async def cut_off(up: Sequence[Server], found: dict[str, Found], way: wire.Wire) -> None:
    """Ten seconds without the network, twice."""
    way.take(0)
    runners = [Runner(server, found[server.contender.key]) for server in up]
    try:
        for name, ends in (("silent", False), ("ended", True)):
            await measures.cut(runners, way, name, ends_connections=ends)
    finally:
        way.take(0)
        for runner in runners:
            await runner.close()


if __name__ == "__main__":
    main()
