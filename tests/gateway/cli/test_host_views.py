"""What commands and the live view show of hosts and their GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.cli import host_views


def host(**more: Any) -> dict[str, Any]:
    return {"backend": "tower", "reachable": True, "host": None, "engines": [], "serving": 0, "waiting": 0, **more}


def device(**more: Any) -> dict[str, Any]:
    return {"name": "gpu0", "vendor": "nvidia", "model": "RTX 4090", "total_bytes": 24 * 1024**3, "used_bytes": 1024**3,
            "other_bytes": 0, "capacity_bytes": None, "utilization": None, "temperature_c": None, "power_w": None,
            **more}  # fmt: skip


def test_gpus_are_listed_with_what_their_drivers_report() -> None:
    full = device(other_bytes=1024**3, capacity_bytes=22 * 1024**3, utilization=40.4, temperature_c=61.0, power_w=121.5)
    missing = device(name="gpu1", vendor=None, total_bytes=None, used_bytes=None, capacity_bytes=1024**3)
    rows = host_views.device_rows({"hosts": [host(host={"devices": [full, missing, device(used_bytes=None)]}), host()]})
    assert rows == [
        ("gpu0", "tower", "RTX 4090", "1.0 GiB of 24.0 GiB", "1.0 GiB", "22.0 GiB", "40 %, 61 °C, 122 W"),
        ("gpu1", "tower", "not found", "-", "-", "1.0 GiB", "-"),
        ("gpu0", "tower", "RTX 4090", "24.0 GiB", "-", "-", "-"),
    ]


def far(**more: Any) -> dict[str, Any]:
    models = [{"model": "m", "phase": "ready", "running": 1, "parallel": 2, "waiting": 0},
              {"model": "other", "phase": "cold", "running": 0, "parallel": 1, "waiting": 0}]  # fmt: skip
    return {"name": "attic", "gateways": ["one", "two"], "reachable": True, "draining": False, "serving": 1,
            "waiting": 2, "memory_bytes": 0, "models": models, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "reachable: m"),
        ({"models": []}, "reachable"),
        ({"draining": True}, "draining: m"),
        ({"reachable": False}, "unreachable"),
    ],
)
def test_hosts_that_only_other_gateways_use_come_last(fields: dict[str, Any], state: str) -> None:
    rows = host_views.host_rows({"hosts": [host()], "cluster": {"elsewhere": [far(**fields)]}})
    assert len(rows) == 2
    assert rows[1] == ("attic at one, two", state, "1", "2", "-")
