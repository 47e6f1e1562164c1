"""What commands show of a cluster, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hostler.gateway.cli.formatting import format_time


def cluster(status: Mapping[str, Any]) -> list[str]:
    """The cluster's store, its gateways and the hosts that joined, as lines."""
    found = status.get("cluster")
    if not found:
        return []
    state = store_problem(status) or f"store {found['store']} connected"
    names = [each["name"] + _remark(each, status.get("version")) for each in found["gateways"]]
    count = f"{len(names)} gateway{'' if len(names) == 1 else 's'}"
    lines = [f"Cluster {found['name']}: {state}", f"  {count}: {', '.join(names)}"]
    if hosts := found.get("hosts"):  # older gateways have none
        joined = f"{len(hosts)} host{'' if len(hosts) == 1 else 's'} joined"
        shown = [f"{each['name']} ({each['url']})" for each in hosts]
        lines.append(f"  {joined}: {', '.join(shown)}")
    return [*lines, *(f"  {each}" for each in cluster_problems(status))]


def cluster_problems(status: Mapping[str, Any]) -> list[str]:
    """What an operator should look at, besides the store."""
    return [*((status.get("cluster") or {}).get("problems", ()))]  # older gateways have none


def _remark(gateway: Mapping[str, Any], version: str | None) -> str:
    """What is worth to know of a gateway beside its name."""
    if gateway["own"]:
        return " (this one)"
    return f" ({gateway['version']})" if gateway["version"] != version else ""


def elsewhere_with(status: Mapping[str, Any], model: str) -> Iterator[str]:
    """Hosts that only other gateways use and that have the model, as lines."""
    for host in (status.get("cluster") or {}).get("elsewhere", ()):
        phases = [each["phase"] for each in host["models"] if each["model"] == model]
        if phases:
            gateways = ", ".join(host["gateways"])
            yield f"{host['name']} has it as well ({phases[0]}), but only {gateways} can send requests there."


def store_problem(status: Mapping[str, Any]) -> str:
    """Why the cluster's store is not in use; empty if it is."""
    found = status.get("cluster")
    if not found or found["connected"]:
        return ""
    since = format_time(found["since"])
    return f"store {found['store']} away since {since} ({found['reason']}); the gateways go on with local values"
