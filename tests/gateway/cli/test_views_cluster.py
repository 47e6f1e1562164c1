"""What commands show of a cluster."""

from __future__ import annotations

from typing import Any

from hostler.gateway.cli import views

CLUSTER: dict[str, Any] = {
    "name": "home", "store": "redis://store", "connected": True, "reason": "", "since": 0.0, "hosts": [],
    "gateways": [{"name": "one", "own": True}],
}  # fmt: skip


def test_problems_stand_below_the_members() -> None:
    status = {"cluster": {**CLUSTER, "problems": ["gateway two has the same identity"]}}
    assert views.cluster(status)[1:] == ["  1 gateway: one (this one)", "  gateway two has the same identity"]
    assert views.cluster_problems(status) == ["gateway two has the same identity"]


def test_older_gateways_and_those_without_a_cluster_have_none() -> None:
    assert views.cluster_problems({"cluster": CLUSTER}) == views.cluster_problems({"cluster": None}) == []
    assert views.cluster_problems({}) == []
