"""The gateway's `/metrics`, made of its events and of current values."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hostler.gateway.cluster_view import ClusterMember, ClusterView
from hostler.gateway.events import (
    AttemptOutcome,
    BreakerChanged,
    EngineChanged,
    Event,
    FinishedElsewhere,
    HopOutcome,
    HostChanged,
    RequestFinished,
    SwitchChanged,
)
from hostler.gateway.telemetry.metrics import BackendGauges, ChainGauges, GatewayMetrics
from hostler.supervisor.contract import FirstAnswer, HostStatus, ModelStatus, SwitchMoved

pytestmark = pytest.mark.anyio

READY = ModelStatus(model="m", state="ready", since=1.0, memory_bytes=1000)


def finished(**more: object) -> RequestFinished:
    common = {"id": "1", "at": 1.0, "protocol": "openai", "operation": "chat", "client": "anna", "outcome": "ok"}
    return RequestFinished(**{**common, "status": 200, "seconds": 0.3, **more})  # type: ignore[arg-type]


EVENTS: tuple[Event, ...] = (
    finished(model="m", backend="a", first_token_s=0.2, prompt_tokens=4, completion_tokens=5),
    finished(
        model="m", backend="b", seconds=7.0, queue_s=1.5, cost=0.25, completion_tokens=1,
        attempts=(AttemptOutcome(backend="a", outcome="refused", seconds=1.0), AttemptOutcome(backend="b", outcome="answered", seconds=1.0)),
        failed_hops=(HopOutcome(backend="a", reason="refused"),),
    ),
    finished(model="m", backend="b", cost=0.5),
    finished(model='no "such"\n', outcome="failed", status=503, code="queue_full"),
    BreakerChanged(backend="a", model=None, state="open", previous="closed"),
    SwitchChanged(backend="here", switch=SwitchMoved(id="1", model="m", phase="ready", from_models=("n",), elapsed_s=2.0)),
    SwitchChanged(
        backend="here",
        switch=SwitchMoved(id="1", model="m", phase="ready", first_answer=FirstAnswer(prompt=900, cached=840)),
    ),
    SwitchChanged(backend="here", switch=SwitchMoved(id="1", model="m", phase="loading")),
    EngineChanged(backend="here", status=ModelStatus(model="gone", state="ready", since=1.0)),
    HostChanged(backend="here", reachable=True, host=HostStatus(models=(READY,))),
    HostChanged(backend="there", reachable=False),
)  # fmt: skip


async def samples() -> dict[tuple[str, tuple[str, ...]], float]:
    """Every value by its name and its labels' values, in the order of the labels' names."""
    chain = ChainGauges(
        backends=[BackendGauges(backend="a", reachable=True, breakers={"": "open"}, cost=0.75)], limit=2.0
    )
    metrics = GatewayMetrics(lambda: [("here", 3, 1)], lambda: chain, version="1.2")
    for event in EVENTS:
        metrics.on_event(event)
    families = text_string_to_metric_families((await metrics.render()).decode())
    return {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_events_are_counted() -> None:
    values = await samples()
    for name, labels, value in (
        ("hostler_attempts_total", ("a", "refused"), 1),
        ("hostler_fallbacks_total", ("a", "refused", "b"), 1),
        ("hostler_cost_usd_total", ("b",), 0.75),
        ("hostler_rejected_total", ("queue_full",), 1),
        ("hostler_breaker_transitions_total", ("a", "", "open"), 1),
        ("gen_ai_client_token_usage_sum", ("a", "m", "output"), 5),
        ("gen_ai_server_request_duration_seconds_count", ("b", "m", "chat", "ok", "openai"), 2),
        ("gen_ai_server_request_duration_seconds_bucket", ("b", "0.5", "m", "chat", "ok", "openai"), 1),
        ("gen_ai_server_request_duration_seconds_bucket", ("b", "+Inf", "m", "chat", "ok", "openai"), 2),
        ("gen_ai_server_request_duration_seconds_count", ("", "", "chat", "failed", "openai"), 1),
        ("gen_ai_server_time_to_first_token_seconds_sum", ("a", "m"), 0.2),
        ("hostler_queue_wait_seconds_sum", ("m",), 1.5),
        ("hostler_switch_duration_seconds_sum", ("here", "n", "ready", "m"), 2.0),
        ("hostler_first_answer_prompt_tokens_total", ("here", "m", "cached"), 840),
        ("hostler_first_answer_prompt_tokens_total", ("here", "m", "read"), 60),
    ):
        assert values[name, labels] == value, name


async def test_counters_that_alerts_watch_start_at_zero() -> None:
    values = await samples()
    for name, labels in (
        ("hostler_attempts_total", ("a", "auth_failed")),
        ("hostler_attempts_total", ("a", "payment_required")),
        ("hostler_rejected_total", ("wait_limit_reached",)),
    ):
        assert values[name, labels] == 0


async def test_gauges_show_current_values_only() -> None:
    values = await samples()
    for name, labels, value in (
        ("hostler_info", ("1.2",), 1),
        ("hostler_supervisor_reachable", ("here",), 1),
        ("hostler_supervisor_reachable", ("there",), 0),
        ("hostler_model_state", ("here", "m", "ready"), 1),
        ("hostler_model_memory_bytes", ("here", "m"), 1000),
        ("hostler_queue_depth", ("here",), 3),
        ("hostler_serving", ("here",), 1),
        ("hostler_backend_reachable", ("a",), 1),
        ("hostler_breaker_state", ("a", "", "open"), 1),
        ("hostler_breaker_state", ("a", "", "closed"), 0),
        ("hostler_cost_today_usd", ("a",), 0.75),
        ("hostler_cost_limit_usd", (), 2.0),
    ):
        assert values[name, labels] == value, name
    assert ("hostler_model_state", ("here", "gone", "ready")) not in values
    assert values["process_resident_memory_bytes", ()] > 1_000_000


async def test_the_requests_of_other_gateways_are_counted_apart() -> None:
    members = [ClusterMember(id=each, name=each, version="1", listen=(), since=0.0, own=each == "a") for each in "ab"]
    view = ClusterView(
        name="home", store="s", connected=True, reason="", since=0.0, gateways=tuple(members), requests={"a": 2, "x": 1}
    )
    metrics = GatewayMetrics(list, cluster=lambda: view)
    own = RequestFinished(
        id="r", at=1.0, protocol="openai", operation="chat", client="anna", outcome="ok", status=200, seconds=1.0,
        backend="pc", model="m", gateway="b",
    )  # fmt: skip
    for outcome in ("ok", "ok", "broken", "made up"):
        metrics.on_event(FinishedElsewhere(request=msgspec.structs.replace(own, outcome=outcome)))
    for number in range(1000):
        metrics.on_event(FinishedElsewhere(request=msgspec.structs.replace(own, gateway=f"g{number}")))
    lines = (await metrics.render()).decode().splitlines()
    assert 'hostler_cluster_requests_in_flight{gateway="a"} 2.0' in lines
    assert 'hostler_cluster_requests_in_flight{gateway="b"} 0.0' in lines
    assert "hostler_cluster_hosts_elsewhere 0.0" in lines
    finished = [line for line in lines if line.startswith("hostler_cluster_requests_finished_total{")]
    for outcome, count in (("ok", 2), ("broken", 1), ("failed", 1)):
        assert f'hostler_cluster_requests_finished_total{{gateway="b",outcome="{outcome}"}} {count}.0' in finished
    assert len(finished) == 3 + 255
    assert not any(line.startswith("gen_ai_server_request_duration_seconds_count") for line in lines)
