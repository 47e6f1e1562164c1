"""Which models run together, and the limits of each: groups, sets, GPUs, preloading, and answers that never end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, first_token

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]


async def ask(gateway: RunningGateway, *models: str) -> None:
    """One request after the other."""
    for model in models:
        assert (await gateway.chat(model)).status_code == 200


def running(gateway: RunningGateway) -> list[str]:
    """The models whose engines run, in the order of their starts."""
    stopped = {event["pid"] for event in gateway.events("stop")}
    return [event["model"] for event in gateway.events("start") if event["pid"] not in stopped]


async def test_a_set_runs_together_and_leaves_together(start_gateway: StartGateway) -> None:
    sets = [["qwen", "embedder"], ["flux"]]
    profiles: dict[str, dict[str, Any]] = {"qwen": {}, "embedder": {}, "flux": {}}
    async with start_gateway(profiles, supervisor={"sets": sets}) as gateway:
        await ask(gateway, "qwen", "embedder", "qwen")
        assert running(gateway) == ["qwen", "embedder"]
        await ask(gateway, "flux")
        assert running(gateway) == ["flux"]
        await ask(gateway, "embedder")
        assert running(gateway) == ["embedder"]


async def test_each_group_switches_by_itself(start_gateway: StartGateway, flags: Flags) -> None:
    last = flags("last")
    profiles: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "x": {"script": {"last_when": last.path}}, "y": {}}
    groups = {"first": ["a", "b"], "second": ["x", "y"]}
    async with start_gateway(profiles, supervisor={"groups": groups}) as gateway:
        await ask(gateway, "a")
        async with gateway.stream("x") as answer:
            await first_token(answer)
            # The other group's answer goes on.
            await ask(gateway, "b")
            assert running(gateway) == ["x", "b"]
            last.set()
        await ask(gateway, "y")
        assert running(gateway) == ["b", "y"]


async def test_models_share_each_gpu_up_to_its_budget(start_gateway: StartGateway) -> None:
    devices = {"gpu0": {"budget": "10GiB"}, "gpu1": {"budget": "4GiB"}}
    profiles = {
        "large": {"memory": "8GiB", "devices": ["gpu0"]}, "small": {"memory": "4GiB", "devices": ["gpu1"]},
        "other": {"memory": "3GiB", "devices": ["gpu0"]}, "huge": {"memory": "5GiB", "devices": ["gpu1"]},
        "cpu": {"memory": "64GiB", "devices": []},
    }  # fmt: skip
    async with start_gateway(profiles, supervisor={"devices": devices}) as gateway:
        await ask(gateway, "large", "small", "cpu")
        assert running(gateway) == ["large", "small", "cpu"]
        await ask(gateway, "other")
        assert running(gateway) == ["small", "cpu", "other"]
        refused = await gateway.chat("huge")
        assert refused.status_code == 503
        assert "huge can never fit on gpu1 of local: it needs 5.0 GiB of 4.0 GiB" in refused.json()["error"]["message"]
        assert running(gateway) == ["small", "cpu", "other"]


TOOL = """#!/bin/sh
case "$1" in
--query-gpu=*) echo "GPU-a, NVIDIA GeForce RTX 4090, 24576, {used}, 12, 41, 33.81";;
esac
"""


@pytest.fixture
def use_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with the GiB that are in use of the machine's GPU, as `nvidia-smi` says; there is none before."""
    tool = tmp_path / "bin" / "nvidia-smi"

    def use(gib: int) -> None:
        tool.parent.mkdir(exist_ok=True)
        new = tool.with_suffix(".new")
        new.write_text(TOOL.format(used=gib * 1024))
        new.chmod(0o755)
        new.replace(tool)

    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    return use


async def test_memory_of_other_programs_is_not_given_to_models(
    start_gateway: StartGateway, use_gpu: Callable[[int], None]
) -> None:
    use_gpu(20)
    profiles = {"small": {"memory": "3GiB"}, "large": {"memory": "8GiB"}}
    async with start_gateway(profiles, supervisor={"devices": {"gpu0": {}}}) as gateway:
        await gateway.until_status(
            lambda hosts: bool((hosts["local"]["host"] or {}).get("devices", [{}])[0].get("vendor"))
        )
        refused = await gateway.chat("large")
        assert refused.status_code == 503
        assert (
            "large does not fit on gpu0 of local now: it needs 8.0 GiB of 4.0 GiB, while other programs use 20.0 GiB"
            in refused.json()["error"]["message"]
        )
        await ask(gateway, "small")
        (device,) = (await gateway.status())["hosts"][0]["host"]["devices"]
        assert (device["model"], device["temperature_c"], device["power_w"]) == ("NVIDIA GeForce RTX 4090", 41, 33.81)


@pytest.mark.timeout(120)
async def test_idle_models_leave_when_other_programs_need_the_gpu(
    start_gateway: StartGateway, use_gpu: Callable[[int], None], flags: Flags
) -> None:
    use_gpu(0)
    last = flags("last")
    profiles = {"idle": {"memory": "6GiB"}, "busy": {"memory": "6GiB", "script": {"last_when": last.path}}}
    supervisor = {"devices": {"gpu0": {"budget": "23GiB"}}, "yield_to_others": True}
    async with start_gateway(profiles, supervisor=supervisor) as gateway:
        await ask(gateway, "idle")
        async with gateway.stream("busy") as answer:
            await first_token(answer)
            use_gpu(12)
            await gateway.until_status(lambda hosts: hosts["local"]["host"]["devices"][0]["used_bytes"] == 12 * 1024**3)
            # A game starts, and nothing is left.
            use_gpu(24)
            await gateway.until(lambda: running(gateway) == ["busy"], seconds=60)
            last.set()


async def test_preloaded_models_are_there_before_the_first_request(start_gateway: StartGateway) -> None:
    profiles = {"a": {"preload": True}, "b": {}}
    async with start_gateway(profiles) as gateway:
        await gateway.until(lambda: gateway.events("ready", "a"))
        await ask(gateway, "b")
        assert running(gateway) == ["b"]


async def test_an_idle_host_returns_to_its_default_model(start_gateway: StartGateway) -> None:
    profiles = {"a": {"default": True}, "b": {}}
    async with start_gateway(profiles, supervisor={"return_to_default_s": 0.2}) as gateway:
        await ask(gateway, "a", "b")
        await gateway.until(lambda: running(gateway) == ["a"])
        assert gateway.starts() == ["a", "b", "a"]


async def test_a_runaway_is_cut_off_and_others_get_their_model(start_gateway: StartGateway, flags: Flags) -> None:
    runaway = {"script": {"last_when": flags("never").path}, "max_answer_s": 0.5}
    async with start_gateway({"a": runaway, "b": {}}) as gateway, anyio.create_task_group() as tasks:
        endings: list[str] = []

        async def read() -> None:
            async with gateway.stream("a") as answer:
                endings.append((await answer.aread()).decode())

        tasks.start_soon(read)
        await gateway.until(lambda: gateway.requests("a"))
        await ask(gateway, "b")
        whole = await gateway.chat("a")
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "answer_too_long")
        assert "max_answer_s" in endings[0]


async def test_a_model_has_limits_of_its_own_for_requests_at_a_time_and_in_its_queue(
    start_gateway: StartGateway, flags: Flags
) -> None:
    speak = flags("speak")
    batching = {"script": {"answer_when": speak.path}, "max_concurrent": 2, "max_waiting": 1}
    async with start_gateway({"a": batching}) as gateway, anyio.create_task_group() as tasks:
        for serving, waiting in ((1, 0), (2, 0), (2, 1)):
            tasks.start_soon(ask, gateway, "a")
            await gateway.until_counts(serving, waiting)
        refused = await gateway.chat("a")
        assert refused.status_code == 429
        assert "max_waiting" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        speak.set()


async def test_a_profile_waits_for_its_first_byte_as_long_as_it_says(start_gateway: StartGateway, flags: Flags) -> None:
    silent = {"script": {"answer_when": flags("never").path}, "first_byte_s": 0.3}
    async with start_gateway({"a": silent}) as gateway:
        assert (await gateway.chat("a")).status_code == 504
