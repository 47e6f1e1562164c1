"""What commands and the live view show of hosts and their GPUs, as table rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.gateway.cli.formatting import MISSING, Row, format_bytes
from hostler.gateway.events import printable


def host_state(host: Mapping[str, Any]) -> str:
    """Whether a host serves requests: it is drained once it neither answers nor has a model loaded."""
    if not host["reachable"]:
        return "unreachable"
    if not (host["host"] or {}).get("draining"):
        return "reachable"
    busy = host["serving"] or any(each["phase"] != "cold" for each in host["engines"])
    return "draining" if busy else "drained"


def host_rows(status: Mapping[str, Any]) -> list[Row]:
    """The hosts of this gateway, then those that only others of its cluster use."""
    rows: list[Row] = [
        (
            host["backend"],
            host_state(host),
            MISSING if host["serving"] is None else str(host["serving"]),
            MISSING if host["waiting"] is None else str(host["waiting"]),
            _host_memory(host["host"] or {}),
        )
        for host in status["hosts"]
    ]
    for host in (status.get("cluster") or {}).get("elsewhere", ()):  # older gateways have none
        name = f"{host['name']} at {', '.join(host['gateways'])}"
        memory = format_bytes(host["memory_bytes"])
        rows.append((name, _state_elsewhere(host), str(host["serving"]), str(host["waiting"]), memory))
    return rows


def _state_elsewhere(host: Mapping[str, Any]) -> str:
    if not host["reachable"]:
        return "unreachable"
    loaded = [each["model"] for each in host["models"] if each["phase"] != "cold"]
    state = "draining" if host["draining"] else "reachable"
    return f"{state}: {', '.join(loaded)}" if loaded else state


def _host_memory(host: Mapping[str, Any]) -> str:
    used = sum(each["memory_bytes"] + each["gpu_bytes"] for each in host.get("models", ()))
    budget = host.get("budget_bytes")
    return f"{format_bytes(used)} of {format_bytes(budget)}" if budget else format_bytes(used)


def device_rows(status: Mapping[str, Any]) -> list[Row]:
    """The GPUs of all hosts."""
    return [
        (
            device["name"],
            host["backend"],
            printable(device["model"]) if device["vendor"] else "not found",
            _device_memory(device),
            MISSING if not device["other_bytes"] else format_bytes(device["other_bytes"]),
            MISSING if device["capacity_bytes"] is None else format_bytes(device["capacity_bytes"]),
            _device_load(device),
        )
        for host in status["hosts"]
        for device in (host["host"] or {}).get("devices", ())
    ]


def _device_memory(device: Mapping[str, Any]) -> str:
    used, total = device["used_bytes"], device["total_bytes"]
    if total is None:
        return MISSING
    return format_bytes(total) if used is None else f"{format_bytes(used)} of {format_bytes(total)}"


def _device_load(device: Mapping[str, Any]) -> str:
    readings = ((device["utilization"], "%"), (device["temperature_c"], "°C"), (device["power_w"], "W"))
    return ", ".join(f"{value:.0f} {unit}" for value, unit in readings if value is not None) or MISSING
