"""What `deploy/` gives to Prometheus and Grafana, held against what gateway and supervisor really tell."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from fakes.openrouter import open_router
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from system.chain import open_chain, plain, said
from system.house import another_host

from hostler.gateway.backends.breaker import BreakerState
from hostler.gateway.exchange import Outcome
from hostler.supervisor.contract import State

pytestmark = pytest.mark.anyio

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "hostler.json").read_text(encoding="utf-8"))
RULES = YAML(typ="safe").load(DEPLOY / "alerts.yaml")["groups"]
SCRAPES = YAML(typ="safe").load(DEPLOY / "prometheus.yaml")

#: What Prometheus adds by itself.
ADDED = {"job", "instance"}

Told = dict[str, set[str]]
"""The names of samples, each with the names of its labels."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def told(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Told]]:
    """What both services tell once everything has happened that is counted."""
    tmp_path = tmp_path_factory.mktemp("monitoring")
    profiles = {"m": {}, "broken": {"script": {"exit_code": 1}}}
    async with (
        open_router("cloud") as cloud,
        another_host(tmp_path / "main", profiles, supervisor={"memory_budget": "1GiB"}) as host,
        open_chain(
            tmp_path,
            {"main": host.backend, "cloud": plain(cloud, local=False)},
            gateway={"spending": {"file": str(tmp_path / "spending.json"), "daily_limit": 10}},
        ) as chain,
    ):
        assert (await chain.ask(model="m")).headers["x-hostler-backend"] == "main"
        assert said(await chain.ask(model="broken")).startswith("cloud:")
        await chain.ask(model="broken", headers={"X-Hostler-Local-Only": "true"})
        cloud.then = (500,)
        while not any(event.backend == "cloud" for event in chain.events if hasattr(event, "before")):
            await chain.ask(model="broken")
        gateway = (await chain.http.get("/metrics")).text
        supervisor = (await host.scrape()).text
    yield {"gateway": samples(gateway), "supervisor": samples(supervisor)}


def samples(text: str) -> Told:
    """The names of a page of metrics."""
    names: Told = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names[sample.name] |= set(sample.labels)
    return dict(names)


def parts(node: Any) -> Iterator[Any]:
    """An expression and all within it."""
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from parts(inner)
    for inner in getattr(node, "args", None) or ():
        yield from parts(inner)


def expression(text: str) -> Any:
    """PromQL as Grafana sends it, its variables filled in. Raises `ValueError` for what is none."""
    for name, value in (("$__rate_interval", "5m"), ("$backend", ".*"), ("$model", ".*")):
        text = text.replace(name, value)
    assert "$" not in text, text
    return promql_parser.parse(text)


def wanted(text: str) -> tuple[dict[str, set[str]], set[str], list[tuple[str, str]]]:
    """The metrics of an expression with the labels they are chosen by; the labels that are grouped by; and the values."""
    metrics: dict[str, set[str]] = defaultdict(set)
    grouped: set[str] = set()
    values: list[tuple[str, str]] = []
    for node in parts(expression(text)):
        if isinstance(node, promql_parser.VectorSelector):
            for matcher in node.matchers.matchers:
                metrics[node.name].add(matcher.name)
                values += [(matcher.name, value) for value in matcher.value.split("|")]
            metrics[node.name] |= set()
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            grouped |= set(modifier.labels)
        elif modifier is not None and modifier.matching is not None:
            grouped |= set(modifier.matching.labels)
    return dict(metrics), grouped, values


def expressions() -> list[Any]:
    """Every expression of the dashboard and of the rules, with where it stands."""
    found = [
        pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [pytest.param(rule["expr"], "", id=rule["alert"]) for group in RULES for rule in group["rules"]]


KNOWN_VALUES = {
    "outcome": {*Outcome.__args__, "ready", "failed", "answered", "key_refused", "unpaid"},  # type: ignore[attr-defined]
    "state": {*BreakerState.__args__, *State.__args__},  # type: ignore[attr-defined]
    "reason": {"queue_full", "wait_limit_reached", "model_not_available", "shutting_down"},
    "job": {"hostler-.*"},
    "model": {".*", ""},
    "backend": {".*", ""},
}


@pytest.mark.parametrize(("expr", "legend"), expressions())
async def test_every_name_and_label_exists(told: dict[str, Told], expr: str, legend: str) -> None:
    exists = {**told["gateway"], **told["supervisor"], "up": set()}
    for name in set(told["gateway"]) & set(told["supervisor"]):
        assert name.startswith("process_")
    metrics, grouped, values = wanted(expr)
    assert metrics
    for name, labels in metrics.items():
        assert name in exists, f"{name} is told by nobody"
        assert labels <= exists[name] | ADDED, name
    labels = set().union(*(exists[name] for name in metrics)) | ADDED
    assert grouped <= labels
    shown = {part.partition("}}")[0] for part in legend.split("{{")[1:]}
    assert shown <= labels
    for label, value in values:
        assert value in KNOWN_VALUES[label], (label, value)


async def test_nobody_tells_a_name_that_the_documents_do_not(told: dict[str, Told]) -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in {name for names in told.values() for name in names}:
        if not name.endswith("_created"):
            family = re.sub("_(bucket|count|sum)$", "", name)
            assert f"`{family}`" in text or name.startswith("process_"), name


def test_rules_say_what_happened_and_what_to_do() -> None:
    names = [rule["alert"] for group in RULES for rule in group["rules"]]
    assert len(set(names)) == len(names)
    for group in RULES:
        for rule in group["rules"]:
            assert {"summary", "description"} <= set(rule["annotations"]), rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            metrics, grouped, _ = wanted(rule["expr"])
            assert metrics or grouped


def test_jobs_are_named_as_the_rules_want_them() -> None:
    assert [job["job_name"] for job in SCRAPES["scrape_configs"]] == ["hostler-gateway", "hostler-supervisor"]
    assert SCRAPES["rule_files"] == ["alerts.yaml"]


def test_the_dashboard_can_be_imported_everywhere() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["source"]["type"] == "datasource"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${source}"
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken), "panels lie on each other"


async def test_variables_of_the_dashboard_have_values(told: dict[str, Told]) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["definition"].removeprefix("label_values(").removesuffix(")").split(", ")
            assert label in told["gateway"][metric]
