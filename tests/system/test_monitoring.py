"""The dashboard, alert rules and scrape configuration of `deploy/`, compared with the metrics that are exposed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import promql_parser
import pytest
from fakes.fake_openrouter import start_openrouter
from fakes.flag_file import FlagFile
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from system.fallback_chain import answer_text, openai_backend, start_chain
from system.running_gateway import gateway_starter, remote_supervisor, until_hosts_reachable

from hostler.gateway.backends.circuit_breaker import BreakerState
from hostler.gateway.context import RequestOutcome
from hostler.supervisor.contract import State

pytestmark = pytest.mark.anyio

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "hostler.json").read_text(encoding="utf-8"))
RULES = YAML(typ="safe").load(DEPLOY / "alerts.yaml")["groups"]
SCRAPES = YAML(typ="safe").load(DEPLOY / "prometheus.yaml")

#: Budgets, which are exposed without any GPU.
LIMITS = {"memory_budget": "1GiB", "devices": {"gpu0": {"budget": "1GiB"}}}

#: Labels that Prometheus adds.
ADDED = {"job", "instance"}


class Exposed:
    """What a service exposed in several scrapes: samples as names with labels, and label names by sample name."""

    def __init__(self) -> None:
        self.samples: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        self.labels: dict[str, set[str]] = defaultdict(set)

    def add(self, text: str) -> None:
        """Another scrape."""
        families = list(text_string_to_metric_families(text))
        names = [family.name for family in families]
        assert len(set(names)) == len(names), "exposed twice"
        for sample in (sample for family in families for sample in family.samples):
            self.samples.add((sample.name, frozenset(sample.labels.items())))
            self.labels[sample.name] |= set(sample.labels)

    def has(self, selector: Any) -> bool:
        """Whether a PromQL selector selects anything."""
        return any(
            name == selector.name and all(_fits(matcher, dict(labels)) for matcher in selector.matchers.matchers)
            for name, labels in self.samples
        )


def _fits(matcher: Any, labels: dict[str, str]) -> bool:
    value = labels.get(matcher.name, "")
    if matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe):
        same = re.fullmatch(matcher.value, value) is not None
    else:
        same = matcher.value == value
    return same is (matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.Equal))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def exposed(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Exposed]]:
    """What both services expose, each on its own machine, while everything happens that is counted."""
    tmp_path = tmp_path_factory.mktemp("monitoring")
    ready, answers = FlagFile(tmp_path / "ready"), FlagFile(tmp_path / "answers")
    script = {"ready_when": ready.path, "answer_when": answers.path, "queue": True}
    profiles = {"m": {"script": script}, "broken": {"script": {"exit_code": 1}}}
    seen = {"gateway": Exposed(), "supervisor": Exposed()}
    async with (
        start_openrouter("cloud") as cloud,
        start_openrouter("paid") as paid,
        remote_supervisor(tmp_path / "main", profiles, supervisor=LIMITS) as host,
        start_chain(
            tmp_path,
            {
                "main": host.backend,
                "cloud": openai_backend(cloud, local=False),
                "paid": openai_backend(paid, local=False),
            },
            gateway={
                "spending": {"file": str(tmp_path / "spending.json"), "daily_limit": 10},
                "queue": {"max_waiting": 1},
                "timeouts": {"connect_s": 5, "first_byte_s": 60, "between_bytes_s": 60},
            },
        ) as chain,
    ):
        await until_hosts_reachable(chain.app)
        paid.default = (401,)

        async def look() -> None:
            seen["gateway"].add((await chain.http.get("/metrics")).text)
            seen["supervisor"].add((await host.scrape()).text)

        async def at(serving: int, waiting: int, state: str) -> None:
            """Wait until so many requests are running and waiting, and the model has this state."""
            now: tuple[Any, ...] = ()
            with anyio.fail_after(20):
                while now != (serving, waiting, state):
                    (view,) = (await chain.http.get("/admin/status")).json()["hosts"]
                    states = {model["model"]: model["state"] for model in view["host"]["models"]}
                    now = (view["serving"], view["waiting"], states.get("m", "stopped"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chain.chat)
            await at(0, 1, "starting")
            await look()
            ready.set()
            await at(1, 0, "ready")
            inside = {"X-Hostler-Local-Only": "true"}
            tasks.start_soon(partial(chain.chat, headers=inside))
            await at(1, 1, "ready")
            assert (await chain.chat(headers=inside)).status_code == 429
            answers.set()
        assert answer_text(await chain.chat(model="broken")).startswith("cloud:")
        await chain.chat(model="broken", headers=inside)
        cloud.default = (500,)
        while not any(event.backend == "cloud" for event in chain.events if hasattr(event, "previous")):
            await chain.chat(model="broken")
        await chain.until(lambda: paid.requests)
        await look()
        await chain.http.post("/admin/unload", json={"model": "m"})
        await at(0, 0, "stopped")
        await look()
    yield seen


@pytest.fixture(scope="module")
async def in_one_process(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Exposed]:
    """What `hostler up` exposes: gateway and supervisor in one process."""
    profiles = {"m": {}, "broken": {"script": {"exit_code": 1}}}
    opened = gateway_starter(tmp_path_factory.mktemp("in_one_process"))
    async with opened(profiles, supervisor=LIMITS) as gateway:
        await gateway.chat("m")
        await gateway.chat("broken")
        seen = Exposed()
        seen.add((await gateway.http.get("/metrics")).text)
    yield seen


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
    """Every expression of the dashboard and of the rules, with its source."""
    found = [
        pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [pytest.param(rule["expr"], "", id=rule["alert"]) for group in RULES for rule in group["rules"]]


KNOWN_VALUES = {
    "outcome": {*RequestOutcome.__args__, "ready", "failed", "answered", "auth_failed", "payment_required"},  # type: ignore[attr-defined]
    "state": {*BreakerState.__args__, *State.__args__},  # type: ignore[attr-defined]
    "reason": {"queue_full", "wait_limit_reached", "model_not_available", "shutting_down"},
    "job": {"hostler-.*"},
    "model": {".*", ""},
    "backend": {".*", ""},
}


@pytest.mark.parametrize(("expr", "legend"), expressions())
async def test_every_name_and_label_exists(exposed: dict[str, Exposed], expr: str, legend: str) -> None:
    exists = {**exposed["gateway"].labels, **exposed["supervisor"].labels, "up": set()}
    for name in set(exposed["gateway"].labels) & set(exposed["supervisor"].labels):
        assert name.startswith("process_")
    metrics, grouped, values = wanted(expr)
    assert metrics
    for name, labels in metrics.items():
        assert name in exists, f"{name} is not exposed"
        assert labels <= exists[name] | ADDED, name
    labels = set().union(*(exists[name] for name in metrics)) | ADDED
    assert grouped <= labels
    shown = {part.partition("}}")[0] for part in legend.split("{{")[1:]}
    assert shown <= labels
    for label, value in values:
        assert value in KNOWN_VALUES[label], (label, value)


def selectors(text: str) -> list[Any]:
    """The selectors of an expression, except those of `up`."""
    found = [node for node in parts(expression(text)) if isinstance(node, promql_parser.VectorSelector)]
    return [each for each in found if each.name != "up"]


@pytest.mark.parametrize(("expr", "legend"), expressions())
async def test_every_panel_and_every_rule_has_data(exposed: dict[str, Exposed], expr: str, legend: str) -> None:
    for selector in selectors(expr):
        assert any(service.has(selector) for service in exposed.values()), selector.prettify()


@pytest.mark.parametrize(
    ("expr", "legend"), [each for each in expressions() if "hostler_supervisor_" in str(each.values[0])]
)
async def test_every_panel_has_data_with_gateway_and_supervisor_in_one_process(
    in_one_process: Exposed, expr: str, legend: str
) -> None:
    for selector in selectors(expr):
        assert in_one_process.has(selector), selector.prettify()


async def test_one_process_exposes_all_metrics_of_two(exposed: dict[str, Exposed], in_one_process: Exposed) -> None:
    supervisors = exposed["supervisor"].labels
    assert {name: in_one_process.labels.get(name) for name in supervisors} == supervisors


async def test_every_metric_is_documented(exposed: dict[str, Exposed]) -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in {name for service in exposed.values() for name in service.labels}:
        if not name.endswith("_created"):
            family = re.sub("_(bucket|count|sum)$", "", name)
            assert f"`{family}`" in text or name.startswith("process_"), name


def test_rules_describe_the_problem_and_the_remedy() -> None:
    names = [rule["alert"] for group in RULES for rule in group["rules"]]
    assert len(set(names)) == len(names)
    for group in RULES:
        for rule in group["rules"]:
            assert {"summary", "description"} <= set(rule["annotations"]), rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            metrics, grouped, _ = wanted(rule["expr"])
            assert metrics or grouped


def test_jobs_have_the_names_that_the_rules_use() -> None:
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


async def test_variables_of_the_dashboard_have_values(exposed: dict[str, Exposed]) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["definition"].removeprefix("label_values(").removesuffix(")").split(", ")
            assert label in exposed["gateway"].labels[metric]
