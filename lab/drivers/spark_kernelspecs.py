"""The product's own Spark kernelspecs, as a site with the lab's clusters would install them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from eg_distributed import kernelspecs
from lab.kernelspecs import KERNEL_PYTHON
from lab.names import fqdn
from lab.topology import daemons as kinds

ENV: Final = {"JAVA_HOME": "/usr/lib/jvm/java-17-openjdk-amd64", "TOREE_JAR": "/opt/toree/toree-assembly.jar"}
"""What a login of a node does not know: images/spark."""
SITE: Final = kernelspecs.Site(
    spark_home="/opt/spark",
    master=f"spark://{fqdn(kinds.MACHINES['spark'])}:7077",
    hadoop_conf_dir="/etc/hadoop",
    python=KERNEL_PYTHON,
    env=ENV,
)
"""Where images/spark and images/yarn have what."""
NEEDS: Final[dict[str, kinds.Kind]] = {"standalone": "spark", "yarn_client": "yarn"}
"""Which cluster a kernelspec is for, by the end of its name."""


def offered(
    wanted: Iterable[str],
    sites: Mapping[kinds.Kind, kernelspecs.Site] | None = None,
    languages: Sequence[str] = kernelspecs.LANGUAGES,
) -> dict[str, dict[str, Any]]:
    """Return kernel.json contents by name for a lab with the kinds *wanted*, of these *languages*; none for a plain lab.

    *sites* say where a local lab has what, for each kind; the images' own places are the default.
    """
    there = kinds.check(wanted)
    found = {}
    for name in kernelspecs.names(languages) if there else ():
        kind = next((kind for end, kind in NEEDS.items() if name.startswith("spark_") and name.endswith(end)), None)
        if kind in there or name == "R_distributed":
            found[name] = kernelspecs.sample(name, (sites or {}).get(kind or there[0], SITE))
    return found
