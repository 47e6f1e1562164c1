"""The hosts' offers, asked for and ranked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fakes.leases import FakeHost
from fakes.requests import target

from hostler.gateway.gateway_settings import PlacementSettings
from hostler.gateway.host_choice import HostChoice
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.views import HostOffer, ServiceDistance


def test_targets_and_names_and_hosts_have_the_same_order() -> None:
    hosts: dict[str, Any] = {"busy": FakeHost(), "free": FakeHost()}
    hosts["free"].offered = HostOffer(distance=ServiceDistance(steps=0), phase="ready")
    choice = HostChoice(hosts, PlacementSettings())
    prompt = PromptIdentity("anna")
    targets = tuple(target(name) for name in ("busy", "free", "cloud"))
    assert [each.backend for each in choice.ordered(targets, prompt)] == ["free", "busy", "cloud"]
    assert [host.prompts for host in hosts.values()] == [[prompt], [prompt]]
    assert choice.names(["busy", "free", "cloud"], "m") == ["free", "busy", "cloud"]
    assert [each.backend for each in choice.ranked(["cloud", "busy", "free"], "m")] == ["free", "busy"]
    assert choice.hosts(hosts, "m") == [hosts["free"], hosts["busy"]]


def test_what_other_gateways_know_counts_where_no_host_knows_the_conversation() -> None:
    class Hints:
        def answered(self, backend: str, model: str, prompt: PromptIdentity) -> None:
            raise AssertionError

        def find(self, model: str, prompt: PromptIdentity, backends: Collection[str]) -> tuple[str, int] | None:
            return "second", 40_000

    hosts: dict[str, Any] = {"first": FakeHost(), "second": FakeHost()}
    for host in hosts.values():
        host.offered = HostOffer(distance=ServiceDistance(steps=0), phase="ready")
    choice = HostChoice(hosts, PlacementSettings())
    targets, prompt = (target("first"), target("second")), PromptIdentity(marks=((1, 40_000),))
    assert [each.backend for each in choice.ordered(targets, prompt)] == ["first", "second"]
    choice.hints = Hints()
    assert [each.backend for each in choice.ordered(targets, prompt)] == ["second", "first"]
