"""The supervisor's `/metrics`, made of its events and its status."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from hostler.supervisor.contract import (
    DeviceStatus,
    Failure,
    FirstAnswer,
    HostStatus,
    ModelChanged,
    ModelStatus,
    ProfileInfo,
    SwitchMoved,
)
from hostler.supervisor.metrics import SupervisorMetrics

pytestmark = pytest.mark.anyio

STARTING = ModelStatus(model="a", state="starting", since=1.0, generation=1, pid=9)
FAILURE = Failure(kind="out_of_memory", message="no memory")


async def values(metrics: SupervisorMetrics) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in (await metrics.render()).decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("hostler_supervisor_"): float(value) for name, value in lines}


async def test_a_start_counts_once_however_many_events_report_it() -> None:
    metrics = SupervisorMetrics(HostStatus)
    for status in (STARTING, replace(STARTING, percent=50.0), replace(STARTING, state="ready")):
        metrics.on_event(ModelChanged(status=status))
    assert (await values(metrics))['starts_total{model="a"}'] == 1
    metrics.on_event(ModelChanged(status=replace(STARTING, generation=2)))
    assert (await values(metrics))['starts_total{model="a"}'] == 2


async def test_failures_count_by_kind_and_an_old_one_does_not_count_again() -> None:
    metrics = SupervisorMetrics(HostStatus)
    metrics.on_event(ModelChanged(status=replace(STARTING, state="backoff", pid=None, failure=FAILURE)))
    metrics.on_event(ModelChanged(status=replace(STARTING, generation=2, failure=FAILURE)))
    again = replace(FAILURE, retry_after_s=4.0)
    metrics.on_event(ModelChanged(status=replace(STARTING, generation=2, state="failed", failure=again)))
    assert (await values(metrics))['failures_total{kind="out_of_memory",model="a"}'] == 2


async def test_a_switch_is_timed_as_a_whole_and_by_phase() -> None:
    metrics = SupervisorMetrics(HostStatus)
    moved = SwitchMoved(id="1", model="a", phase="loading", elapsed_s=0.5)
    metrics.on_event(moved)
    metrics.on_event(replace(moved, phase="ready", elapsed_s=2.0, phase_seconds={"stopping": 0.25, "loading": 1.5}))
    found = await values(metrics)
    assert found['switch_duration_seconds_sum{model="a",outcome="ready"}'] == 2.0
    assert found['switch_duration_seconds_count{model="a",outcome="ready"}'] == 1
    assert found['switch_phase_seconds_total{phase="loading"}'] == 1.5


async def test_the_first_answer_counts_its_tokens_and_no_second_switch() -> None:
    metrics = SupervisorMetrics(HostStatus)
    moved = SwitchMoved(id="1", model="a", phase="ready", elapsed_s=2.0)
    metrics.on_event(moved)
    metrics.on_event(replace(moved, first_answer=FirstAnswer(prompt=900, cached=840)))
    found = await values(metrics)
    assert found['switch_duration_seconds_count{model="a",outcome="ready"}'] == 1
    assert found['first_answer_prompt_tokens_total{model="a",source="cached"}'] == 840
    assert found['first_answer_prompt_tokens_total{model="a",source="read"}'] == 60


async def test_the_queue_is_exposed_where_it_is_known() -> None:
    metrics = SupervisorMetrics(HostStatus)
    assert b"queue" not in await metrics.render()
    text = (await metrics.render(queue=(3, 1))).decode()
    assert "hostler_supervisor_queue_depth 3.0\n" in text
    assert "hostler_supervisor_serving 1.0\n" in text


async def test_states_memory_and_load_times_are_current() -> None:
    host = HostStatus(
        models=(replace(STARTING, memory_bytes=10, gpu_bytes=20),),
        profiles=(ProfileInfo(name="a", memory_bytes=30, load_s=1.5),), budget_bytes=100,
    )  # fmt: skip
    found = await values(SupervisorMetrics(lambda: host))
    assert found['model_state{model="a",state="starting"}'] == 1
    assert found['model_state{model="a",state="ready"}'] == 0
    assert found['model_memory_bytes{model="a",where="ram"}'] == 10
    assert found['model_memory_bytes{model="a",where="gpu"}'] == 20
    assert (found['model_need_bytes{model="a"}'], found['model_load_seconds{model="a"}']) == (30, 1.5)
    assert found["memory_budget_bytes"] == 100


async def test_readings_of_gpus_are_exposed_as_far_as_there_are_any() -> None:
    devices = (
        DeviceStatus(
            name="gpu0", vendor="nvidia", model="RTX 4090", total_bytes=24, used_bytes=9, other_bytes=2,
            capacity_bytes=20, utilization=40.0, temperature_c=61.0, power_w=121.5,
        ),
        DeviceStatus(name="gpu1", capacity_bytes=8),
    )  # fmt: skip
    host = HostStatus(profiles=(ProfileInfo(name="a", device_bytes={"gpu0": 7}),), devices=devices)
    found = await values(SupervisorMetrics(lambda: host))
    amounts = {
        name.split("kind=")[1]: value
        for name, value in found.items()
        if name.startswith('device_memory_bytes{device="gpu0"')
    }
    assert amounts == {'"total"}': 24, '"used"}': 9, '"other_programs"}': 2, '"for_models"}': 20}
    assert found['device_utilization_ratio{device="gpu0"}'] == 0.4
    assert found['device_temperature_celsius{device="gpu0"}'] == 61
    assert found['device_power_watts{device="gpu0"}'] == 121.5
    assert found['device_info{device="gpu0",model="RTX 4090",vendor="nvidia"}'] == 1
    assert found['model_device_need_bytes{device="gpu0",model="a"}'] == 7
    assert [name for name in found if "gpu1" in name] == [
        'device_info{device="gpu1",model="",vendor=""}', 'device_memory_bytes{device="gpu1",kind="for_models"}',
    ]  # fmt: skip
