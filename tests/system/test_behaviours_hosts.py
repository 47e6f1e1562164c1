"""Several machines: which one serves, and what happens while one is silent or returns as another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from system.running_gateway import RunningGateway, StartGateway, data_events, first_token, remote_supervisor

pytestmark = pytest.mark.anyio

LONG = {"chunks": 50_000, "chunk_delay": 0.02}


async def reachable(gateway: RunningGateway, expected: bool) -> None:
    """Wait until the gateway knows whether its one host answers."""
    await gateway.until_status(lambda hosts: hosts["one"]["reachable"] is expected)


async def loaded(gateway: RunningGateway, *backends: str) -> None:
    """Wait until the gateway knows that model `a` is loaded on these hosts."""

    def so(hosts: dict[str, dict[str, Any]]) -> bool:
        return all(
            any(each["model"] == "a" and each["state"] == "ready" for each in hosts[name]["host"]["models"])
            for name in backends
        )

    await gateway.until_status(so)


async def answering(gateway: RunningGateway, model: str) -> str:
    answer = await gateway.chat(model)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-hostler-backend"]


async def test_a_model_on_two_hosts_is_served_where_it_is_loaded(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}, "b": {}}) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        await two.manager.switch("a")
        await loaded(gateway, "two")
        assert await answering(gateway, "a") == "two"
        assert one.starts() == []


async def test_a_cold_model_is_loaded_where_nothing_must_be_evicted(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}, "b": {}}) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        assert await answering(gateway, "b") == "one"
        assert await answering(gateway, "a") == "two"
        assert one.events("stop") == []


async def test_of_two_hosts_with_the_model_the_less_busy_one_serves(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    profile: dict[str, Any] = {"a": {"parallel": 2, "script": LONG}}
    async with (
        remote_supervisor(tmp_path / "one", profile) as one,
        remote_supervisor(tmp_path / "two", profile) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        for each in (one, two):
            await each.manager.switch("a")
        await loaded(gateway, "one", "two")
        async with gateway.stream("a") as first, gateway.stream("a") as second:
            lines = [await first_token(answer) for answer in (first, second)]
            assert len(lines) == 2
            assert {answer.headers["x-hostler-backend"] for answer in (first, second)} == {"one", "two"}


async def test_a_second_request_is_served_by_the_host_that_is_idle(start_gateway: StartGateway, tmp_path: Path) -> None:
    profile: dict[str, Any] = {"a": {"script": LONG}}
    async with (
        remote_supervisor(tmp_path / "one", profile) as one,
        remote_supervisor(tmp_path / "two", profile) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
        gateway.stream("a") as first,
    ):
        await first_token(first)
        async with gateway.stream("a") as second:
            await first_token(second)
            backends = {each.headers["x-hostler-backend"] for each in (first, second)}
        assert backends == {"one", "two"}


async def test_a_backend_between_two_hosts_stays_between_them(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}}) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
    ):
        plain = {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"*": "x"}}
        backends = {"one": one.backend, "plain": plain, "two": two.backend}
        async with start_gateway({}, backends=backends) as gateway:
            await two.manager.switch("a")
            await loaded(gateway, "two")
            assert await answering(gateway, "a") == "one"


async def test_falls_back_to_the_next_host_when_a_load_fails(start_gateway: StartGateway, tmp_path: Path) -> None:
    broken = {"a": {"script": {"exit_code": 1}}}
    async with (
        remote_supervisor(tmp_path / "one", broken) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
    ):
        settings = {"switching": {"progress_after_s": 0, "progress_every_s": 0.05}}
        async with start_gateway({}, gateway=settings, backends={"one": one.backend, "two": two.backend}) as gateway:
            async with gateway.stream("a") as answer:
                text = (await answer.aread()).decode()
            words = [event["choices"][0]["delta"].get("content") or "" for event in data_events(text)]
            assert "".join(words).split()[-1] == "word4"
            assert "x-hostler-backend=two" in text
            assert len(one.starts()) >= 1


async def test_an_answer_survives_an_unreachable_supervisor_and_new_requests_go_elsewhere(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    last = tmp_path / "last"
    script = {"script": {"last_when": str(last), "chunk_delay": 0.005}}
    async with (
        remote_supervisor(tmp_path / "one", {"a": script, "b": {}}) as one,
        start_gateway({}, backends={"one": one.backend}) as gateway,
        gateway.stream("a") as answer,
    ):
        lines = await first_token(answer)
        await one.stop_listening()
        await reachable(gateway, False)
        # Before the host is back, since that is not waited for.
        for model in ("a", "b"):
            refused = await gateway.chat(model)
            assert refused.status_code in (502, 503)
            assert refused.json()["error"]["message"].startswith(f"no backend could answer for {model}: one")
        await one.listen()
        await reachable(gateway, True)
        # The host knows again that the answer is in progress.
        await gateway.until_counts(1, 0)
        last.touch()
        assert "data: [DONE]" in [line async for line in lines]
        assert (await gateway.chat("b")).status_code == 200
        assert one.starts() == ["a", "b"]


async def test_changes_during_a_disconnect_are_reconciled_afterwards(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}, "b": {}}) as one,
        start_gateway({}, backends={"one": one.backend}) as gateway,
    ):
        await gateway.chat("a")
        await one.stop_listening()
        await reachable(gateway, False)
        await one.manager.switch("b")
        await one.listen()
        await reachable(gateway, True)
        assert (await gateway.chat("b")).status_code == 200
        assert one.starts() == ["a", "b"]
        assert (await gateway.chat("a")).status_code == 200


async def test_a_restarted_supervisor_is_reconciled(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}}) as one,
        start_gateway({}, backends={"one": one.backend}) as gateway,
    ):
        for _ in range(2):
            await gateway.chat("a")
            await gateway.action("unload", model="a")
        await gateway.chat("a")
        port = one.port
        await one.stop_listening()
        await reachable(gateway, False)
        # The next one counts generations from the beginning, and has the model loaded before any request.
        async with remote_supervisor(tmp_path / "again", {"a": {}}, port=port) as again:
            await again.manager.switch("a")
            await reachable(gateway, True)
            asked = len(one.requests())
            assert (await gateway.chat("a")).status_code == 200
            # The engine of the old one would still answer.
            assert len(one.requests()) == asked
            assert len(again.requests()) == 1
            assert again.starts() == ["a"]


async def test_queued_requests_fall_back_when_the_supervisor_becomes_unreachable(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    slow = {"a": {"script": {"ready_after": 20}}}
    async with (
        remote_supervisor(tmp_path / "one", slow) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        await gateway.until_status(lambda hosts: all(host["reachable"] for host in hosts.values()))
        async with anyio.create_task_group() as tasks:
            backends: list[str] = []

            async def ask() -> None:
                backends.append(await answering(gateway, "a"))

            tasks.start_soon(ask)
            await one.until(lambda: one.starts())
            await one.stop_listening()
            await gateway.until(lambda: backends)
        assert backends == ["two"]
