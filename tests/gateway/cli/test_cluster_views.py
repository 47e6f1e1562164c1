"""What commands show of a cluster."""

from __future__ import annotations

from typing import Any

from hostler.gateway.cli import cluster_views

CLUSTER: dict[str, Any] = {
    "name": "home", "store": "redis://store", "connected": True, "reason": "", "since": 0.0, "hosts": [],
    "gateways": [{"name": "one", "own": True}],
}  # fmt: skip


def test_problems_stand_below_the_members() -> None:
    status = {"cluster": {**CLUSTER, "problems": ["gateway two has the same identity"]}}
    assert cluster_views.cluster(status)[1:] == ["  1 gateway: one (this one)", "  gateway two has the same identity"]
    assert cluster_views.cluster_problems(status) == ["gateway two has the same identity"]


def test_older_gateways_and_those_without_a_cluster_have_none() -> None:
    assert (
        cluster_views.cluster_problems({"cluster": CLUSTER}) == cluster_views.cluster_problems({"cluster": None}) == []
    )
    assert cluster_views.cluster_problems({}) == []


def test_models_of_hosts_that_only_other_gateways_use() -> None:
    models = [{"model": "m", "phase": "ready"}, {"model": "other", "phase": "cold"}]
    shown = {"cluster": {"elsewhere": [{"name": "attic", "gateways": ["one", "two"], "models": models}]}}
    assert [*cluster_views.elsewhere_with(shown, "m")] == [
        "attic has it as well (ready), but only one, two can send requests there."
    ]
    assert [*cluster_views.elsewhere_with(shown, "unknown")] == [*cluster_views.elsewhere_with({}, "m")] == []


def test_gateways_of_another_release_are_named_with_it() -> None:
    gateways = [{"name": name, "own": own, "version": version} for name, own, version in (
        ("one", True, "2"), ("two", False, "2"), ("three", False, "1"))]  # fmt: skip
    shown = {"version": "2", "cluster": {**CLUSTER, "gateways": gateways}}
    assert cluster_views.cluster(shown)[1] == "  3 gateways: one (this one), two, three (1)"
