"""YARN's ResourceManager as a launcher sees it: where it is, what it says of our applications, and their end."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Mapping, Optional

from .env import own_user

TIMEOUT = 3.0
"""Seconds for one answer."""
FINAL = ("FINISHED", "FAILED", "KILLED")
_REFERENCE = re.compile(r"\$\{([^}]+)\}")
# Cluster services on the node's own network; a proxy for the web is none for them.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ResourceManagers:
    """The ResourceManagers that a Hadoop configuration names: one, or several that stand in for each other."""

    def __init__(self, addresses: list[tuple[str, int]], webs: list[str]) -> None:
        self.addresses = addresses
        """Where clients submit applications: (host, port) for each."""
        self.webs = webs
        """Where the REST interface is, for each."""

    @classmethod
    def of(cls, env: Mapping[str, str]) -> ResourceManagers:
        """Return those that HADOOP_CONF_DIR or YARN_CONF_DIR in *env* names; none if neither does."""
        values = configuration(env)
        if not values:
            return cls([], [])
        secure = values.get("yarn.http.policy") == "HTTPS_ONLY"
        web_key = "yarn.resourcemanager.webapp." + ("https.address" if secure else "address")
        web_port = 8090 if secure else 8088
        ids = [name.strip() for name in values.get("yarn.resourcemanager.ha.rm-ids", "").split(",") if name.strip()]
        if values.get("yarn.resourcemanager.ha.enabled", "").lower() != "true":
            ids = []
        addresses, webs = [], []
        for suffix in [f".{name}" for name in ids] or [""]:
            host = values.get(f"yarn.resourcemanager.hostname{suffix}", "")
            address = values.get(f"yarn.resourcemanager.address{suffix}") or f"{host or '0.0.0.0'}:8032"
            web = values.get(f"{web_key}{suffix}") or f"{host or address.rpartition(':')[0]}:{web_port}"
            name, _, port = address.rpartition(":")
            addresses.append((name, int(port) if port.isdigit() else 8032))
            webs.append(f"{'https' if secure else 'http'}://{web}")
        return cls(addresses, webs)

    def ask(self, path: str, body: Optional[Mapping[str, Any]] = None) -> Any:
        """Return the answer to a GET of *path*, or to a PUT of *body*; None if nobody answers, or not to us."""
        for web in self.webs:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(  # noqa: S310 - http or https, as `of` made it
                f"{web}/ws/v1/cluster/{path}",
                data=data,
                method="GET" if body is None else "PUT",
                headers={"Accept": "application/json", "Content-Type": "application/json"},
            )
            try:
                with _OPENER.open(request, timeout=TIMEOUT) as answer:
                    return json.loads(answer.read() or b"{}")
            except (OSError, ValueError):  # down, standing by, asking for Kerberos, or no ResourceManager at all
                continue
        return None

    def applications(self, tag: str) -> Optional[list[dict[str, Any]]]:
        """Return what is known of the applications that carry *tag*; None if nobody answers."""
        answer = self.ask("apps?" + urllib.parse.urlencode({"applicationTags": tag}))
        if answer is None:
            return None
        found = answer.get("apps") or {}
        return list(found.get("app") or []) if isinstance(found, dict) else []

    def kill(self, application: str) -> bool:
        """Ask for the end of an application; returns whether that was taken."""
        user = urllib.parse.urlencode({"user.name": own_user()})
        return self.ask(f"apps/{application}/state?{user}", {"state": "KILLED"}) is not None


def configuration(env: Mapping[str, str]) -> dict[str, str]:
    """Return core-site.xml and yarn-site.xml of the Hadoop configuration that *env* names, references resolved."""
    values: dict[str, str] = {}
    for variable in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        for name in ("core-site.xml", "yarn-site.xml"):
            if env.get(variable):
                values.update(_read(Path(env[variable]) / name))
    return {name: _resolved(value, values) for name, value in values.items()}


def _read(path: Path) -> dict[str, str]:
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - the node's own configuration
    except (OSError, ET.ParseError):
        return {}
    found = {}
    for entry in root.iter("property"):
        name, value = entry.findtext("name"), entry.findtext("value")
        if name and value is not None:
            found[name.strip()] = value.strip()
    return found


def _resolved(value: str, values: Mapping[str, str]) -> str:
    for _ in range(20):  # as many rounds as Hadoop itself takes
        changed = _REFERENCE.sub(lambda match: values.get(match[1], match[0]), value)
        if changed == value:
            break
        value = changed
    return value
