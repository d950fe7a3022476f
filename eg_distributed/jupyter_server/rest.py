"""`/api/distributed/hosts` and `/api/distributed/kernels`: what `jupyter distributed hosts` and `kernels` show, by the same code.

The server's own authentication and authorization stand before both; an authorizer knows them as the resource `distributed`, which
is read. Hosts are asked by the cluster's thread, and files are read in threads aside, so that neither holds up the server's loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import authenticated

from eg_distributed.aside import aside
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, RequestInvalid
from eg_distributed.hosts import HostSet, canonical_name, parse_hosts
from eg_distributed.kernelspecs import PROVISIONER
from eg_distributed.link.deadlines import within
from eg_distributed.overview import hosts_seen, kernels_seen, kernels_written, unended_on
from eg_distributed.settings import Distributed
from eg_distributed.wire import shown

from .process import cluster_soon_for, server_cluster, settings_for

__all__ = ["begin"]

log = logging.getLogger(__name__)

_SECONDS = 10.0
"""For hosts, all at once, where the request does not say."""
_FEWEST_SECONDS, _MOST_SECONDS = 0.1, 60.0
_FILES_SECONDS = 5.0
"""For files on this machine: kernelspecs, and what is still to be ended."""
_SERVERS_OWN = ("token", "no_track_activity", "_")
"""Parameters that are the server's; the last one is what front-ends defeat caches with."""
_SWITCH = {"1": True, "true": True, "0": False, "false": False, "": False}


def begin(app: Any) -> None:
    """Add the two addresses to the server *app*; called when it loads us."""
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return  # its kernels, and the kernelspecs that name hosts, are a gateway's
    base = url_path_join(app.web_app.settings["base_url"], "api", "distributed")
    found = [(url_path_join(base, name), handler) for name, handler in _HANDLERS.items()]
    app.web_app.add_handlers(".*$", found)


class _Handler(APIHandler):
    """What both have in common: who may, which hosts, how long, and what is refused."""

    auth_resource = "distributed"
    PARAMETERS: tuple[str, ...] = ("hosts", "seconds")

    async def _answer(self) -> dict[str, Any]:
        raise NotImplementedError

    @authenticated
    @authorized
    async def get(self) -> None:
        """Answer with JSON, or with why not: 400 for what was asked wrongly, 500 for a setting that is wrong."""
        try:
            self._check_names()
            answer = await self._answer()
        except RequestInvalid as error:
            self._refuse(400, error)
        except DistributedError as error:
            self._refuse(error.http_status, error)
        else:
            self.finish(json.dumps(answer))

    def _refuse(self, status: int, error: DistributedError) -> None:
        """Answer as jupyter_server's handlers do, whose own way reads per cents in a text as places to be filled in."""
        self.set_status(status)
        self.finish(json.dumps({"message": str(error), "reason": None}))

    def _check_names(self) -> None:
        for name in self.request.query_arguments:
            if name not in (*self.PARAMETERS, *_SERVERS_OWN):
                raise RequestInvalid(f"{shown(name)} is unknown here", remedy=f"ask with {', '.join(self.PARAMETERS)}")

    def _seconds(self) -> float:
        """Return how long the request may wait for hosts; raises RequestInvalid."""
        text = self.get_query_argument("seconds", "")
        try:
            seconds = float(text) if text else _SECONDS
        except ValueError:
            seconds = math.nan
        if not _FEWEST_SECONDS <= seconds <= _MOST_SECONDS:  # nor is nan
            raise RequestInvalid(
                f"seconds={shown(text)} cannot be waited for",
                remedy=f"say {_FEWEST_SECONDS:g} to {_MOST_SECONDS:g}, or nothing for {_SECONDS:g}",
            )
        return seconds

    def _switch(self, name: str) -> bool:
        text = self.get_query_argument(name, "")
        if text.lower() not in _SWITCH:
            raise RequestInvalid(f"{name}={shown(text)} is neither yes nor no", remedy=f"say {name}=1, or leave it out")
        return _SWITCH[text.lower()]

    async def _cluster(self) -> Cluster:
        """Return the server's cluster; raises DistributedError where a setting is wrong."""
        try:
            return await cluster_soon_for(self.kernel_manager, self.kernel_manager.config)
        except RequestInvalid as error:  # not of this request
            raise DistributedError(error.cause, remedy=error.remedy) from error

    def _settings(self) -> Distributed:
        """Return what counts for the server's cluster, or will; raises as `_cluster` does."""
        if (cluster := server_cluster()) is not None:
            return cluster.settings
        try:
            return settings_for(self.kernel_manager.config)
        except RequestInvalid as error:  # as above
            raise DistributedError(error.cause, remedy=error.remedy) from error

    async def _hosts(self) -> HostSet:
        """Return the hosts that were asked for, by default all that this server knows; raises RequestInvalid.

        No others, as for kernels: to name a host is to have this server's user log in there.
        """
        known: dict[str, str] = {}
        for name in await self._known_hosts():
            known.setdefault(canonical_name(name), name)  # a node keeps the spelling by which it was first asked for
        texts = self.get_query_arguments("hosts")
        if not texts:
            return tuple(known.values())
        wanted = parse_hosts(",".join(texts))
        if not wanted:
            raise RequestInvalid("no host is named", remedy="name some, or leave `hosts` out for all")
        if unknown := [name for name in wanted if canonical_name(name) not in known]:
            raise RequestInvalid(
                f"{shown(unknown[0])} is none of this server's hosts",
                remedy="name hosts that c.Distributed.remote_hosts or a kernelspec names",
            )
        return tuple(known[canonical_name(name)] for name in wanted)

    async def _known_hosts(self) -> list[str]:
        """Return the hosts of the settings, of kernelspecs, and those that kernels were started on besides."""
        try:
            names = list(parse_hosts(self._settings().remote_hosts))
        except RequestInvalid as error:  # not of this request
            raise DistributedError(
                f"the setting remote_hosts is wrong: {error.cause}",
                remedy="correct c.Distributed.remote_hosts, or EG_REMOTE_HOSTS",
            ) from error
        for spec in (await self._kernelspecs()).values():
            names += _hosts_of(spec)
        if (cluster := server_cluster()) is not None:
            names += [host.name for host in cluster.hosts.copy().values()]
        return names

    async def _kernelspecs(self) -> Mapping[str, Any]:
        """Return the server's kernelspecs; none where they cannot be read in time, as on a home that hangs."""
        read = self.kernel_spec_manager.get_all_specs
        try:
            reading = read() if inspect.iscoroutinefunction(read) else aside("kernelspecs", read)
            specs: Mapping[str, Any] = await within(reading, _FILES_SECONDS)
        except asyncio.TimeoutError:
            log.warning(
                "kernelspecs could not be read within %g s: hosts that they alone name are left out", _FILES_SECONDS
            )
            return {}
        except Exception as error:  # noqa: BLE001 - a site's own manager raises what it likes, and hosts can be told of without
            log.warning("kernelspecs could not be read: hosts that they alone name are left out: %s", error)
            return {}
        return specs


class HostsHandler(_Handler):
    """The hosts: whether they answer, and how many kernels run there."""

    async def _answer(self) -> dict[str, Any]:
        seconds, hosts = self._seconds(), await self._hosts()
        if not hosts:  # what a server is that has no use for us
            return {"hosts": []}
        cluster = await self._cluster()
        return {"hosts": await cluster.run(hosts_seen(cluster, hosts, seconds))}


class KernelsHandler(_Handler):
    """The kernels on the hosts, whichever gateway started them; with `orphans`, what no gateway answers for or could end."""

    PARAMETERS = (*_Handler.PARAMETERS, "orphans")

    async def _answer(self) -> dict[str, Any]:
        seconds, orphans, hosts = self._seconds(), self._switch("orphans"), await self._hosts()
        seen: dict[str, Any] = {"kernels": [], "errors": {}}
        if hosts:
            cluster = await self._cluster()
            seen = await cluster.run(kernels_seen(cluster, hosts, seconds, orphans=orphans))
        if not orphans:
            return seen
        named = hosts if self.get_query_arguments("hosts") else None
        read = functools.partial(unended_on, self._settings(), named)
        try:
            unended = await within(aside(("unended", named), read), _FILES_SECONDS)
        except asyncio.TimeoutError:
            unended = [], {"unended": f"The files could not be read within {_FILES_SECONDS:g} s."}
        return kernels_written(seen, unended)


def _hosts_of(kernelspec: Any) -> HostSet:
    """Return the hosts that a kernelspec of ours names; none for others, and for what is no host's name: a start says so."""
    try:
        stanza = kernelspec["spec"]["metadata"]["kernel_provisioner"]
        is_ours = stanza["provisioner_name"] == PROVISIONER
        return parse_hosts(stanza["config"]["remote_hosts"]) if is_ours else ()
    except (KeyError, TypeError, RequestInvalid):  # any JSON may stand there
        return ()


_HANDLERS = {"hosts": HostsHandler, "kernels": KernelsHandler}
