"""Leases of models: the model stays, others are refused with the holder and the end, over HTTP, the command line and hosts."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from system.running_gateway import RunningGateway, StartGateway, remote_supervisor
from typer.testing import CliRunner

from hostler.gateway.cli.main import app as command_line

pytestmark = pytest.mark.anyio

TURNS = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": TURNS}),
    "responses": ("/v1/responses", {"input": "Hello"}),
    "embeddings": ("/v1/embeddings", {"input": "Hello"}),
    "anthropic": ("/v1/messages", {"messages": TURNS, "max_tokens": 9}),
    "ollama": ("/api/chat", {"messages": TURNS, "stream": False}),
    "llamacpp": ("/completion", {"prompt": "Hello"}),
    "lmstudio": ("/api/v1/chat", {"input": "Hello"}),
}


async def take(gateway: RunningGateway, **body: Any) -> dict[str, Any]:
    answer = await gateway.http.post("/admin/leases", json=body)
    assert answer.status_code == 200, answer.text
    lease: dict[str, Any] = answer.json()
    return lease


async def listed(gateway: RunningGateway) -> list[dict[str, Any]]:
    leases: list[dict[str, Any]] = (await gateway.http.get("/admin/leases")).json()["leases"]
    return leases


def message(body: dict[str, Any]) -> str:
    error = body["error"]
    return str(error) if isinstance(error, str) else str(error["message"])


@pytest.mark.parametrize("protocol", REQUESTS)
async def test_refuses_other_models_in_each_protocol_with_the_holder_and_the_end(
    start_gateway: StartGateway, protocol: str
) -> None:
    path, body = REQUESTS[protocol]
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        for duration, final in (("2h", True), ("50s", False)):
            lease = await take(gateway, model="a", holder="ann", **{"for": duration})
            refused = await gateway.http.post(path, json={"model": "b", **body})
            assert refused.status_code in (400, 500, 503)
            text = message(refused.json())
            assert "a is leased to ann until" in text
            assert time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(lease["expires_at"])) in text
            left = int(refused.headers["retry-after"])
            assert abs(left - (lease["expires_at"] - time.time())) < 20
            assert refused.headers.get("x-should-retry") == ("false" if final else None)
        assert (await gateway.chat("a")).status_code == 200
    assert gateway.starts() == ["a"]


async def test_loads_the_model_lists_extends_and_ends_the_lease(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("b")
        lease = await take(gateway, model="a", for_s=600, holder="ann")
        assert (lease["model"], lease["backend"], lease["holder"]) == ("a", "local", "ann")
        assert gateway.starts() == ["b", "a"]
        again = await take(gateway, model="a", for_s=1200, holder="ann")
        assert again["id"] == lease["id"] and again["expires_at"] > lease["expires_at"]
        extended = await gateway.http.post(f"/admin/leases/{lease['id']}", json={"for": "3h"})
        assert await listed(gateway) == [extended.json()]
        assert extended.json()["expires_at"] > again["expires_at"]
        host = (await gateway.status())["hosts"][0]["host"]
        assert [each["holder"] for each in host["leases"]] == ["ann"]
        metrics = (await gateway.http.get("/metrics")).text
        assert 'hostler_model_lease_expires_timestamp_seconds{backend="local",holder="ann",model="a"}' in metrics
        assert 'hostler_supervisor_model_lease_expires_timestamp_seconds{holder="ann",model="a"}' in metrics
        ended = await gateway.http.delete(f"/admin/leases/{lease['id']}")
        assert (ended.status_code, ended.json()["ended"]) == (200, True)
        assert await listed(gateway) == []
        assert (await gateway.http.delete(f"/admin/leases/{lease['id']}")).status_code == 404
        assert (await gateway.chat("b")).status_code == 200


async def test_says_what_is_wrong_with_a_lease(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for body, status in (
            ({"model": "a"}, 400),
            ({"model": "a", "for": "soon"}, 400),
            ({"model": "a", "for": "0h"}, 400),
            ({"model": "a", "for_s": -1}, 400),
            ({"model": "a", "for": "31d"}, 400),
            ({"model": "a", "for": 1e300}, 400),
            ({"model": "a", "for_s": 2592001}, 400),
            ({"model": "x", "for": "1h"}, 404),
            ({"model": "a", "for": "1h", "backend": "elsewhere"}, 404),
        ):
            answer = await gateway.http.post("/admin/leases", json=body)
            assert (answer.status_code, bool(message(answer.json()))) == (status, True), body
        assert gateway.starts() == []


async def test_a_second_lease_that_needs_the_place_of_the_first_is_refused(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await take(gateway, model="a", holder="ann", **{"for": "2h"})
        refused = await gateway.http.post("/admin/leases", json={"model": "b", "holder": "bob", "for": "1h"})
        assert (refused.status_code, "leased to ann" in message(refused.json())) == (503, True)
        assert [each["holder"] for each in await listed(gateway)] == ["ann"]


async def test_a_leased_model_is_not_unloaded_by_operators_or_clients(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 3600}}) as gateway:
        lease = await take(gateway, model="a", holder="ann", **{"for": "2h"})
        for force in (True, False):
            refused = await gateway.action("unload", model="a", force=force)
            assert (refused.status_code, f"hostler lease --end {lease['id']}" in message(refused.json())) == (503, True)
        await gateway.http.post("/api/generate", json={"model": "a", "keep_alive": 0, "stream": False})
        await gateway.http.post("/api/generate", json={"model": "a", "prompt": "Hi", "keep_alive": 0, "stream": False})
        assert gateway.events("stop") == []
        await gateway.http.delete(f"/admin/leases/{lease['id']}")
        assert (await gateway.action("unload", model="a")).status_code == 200


async def test_a_lease_survives_a_restart_and_expires_by_itself(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        lease = await take(gateway, model="a", holder="ann", **{"for": "2h"})
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        assert [each["id"] for each in await listed(gateway)] == [lease["id"]]
        assert "leased to ann" in message((await gateway.chat("b")).json())
        await gateway.until(lambda: gateway.starts() == ["a", "a"])
        await gateway.http.post(f"/admin/leases/{lease['id']}", json={"for_s": 0.2})
        with anyio.fail_after(20):
            while await listed(gateway):  # noqa: ASYNC110 - asked as an operator would
                await anyio.sleep(0.01)
        assert (await gateway.chat("b")).status_code == 200


async def test_a_leased_model_that_crashes_is_started_again(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await take(gateway, model="a", holder="ann", **{"for": "2h"})
        (start,) = gateway.events("start")
        os.kill(start["pid"], signal.SIGKILL)
        await gateway.until(lambda: gateway.starts() == ["a", "a"])
        assert "leased to ann" in message((await gateway.chat("b")).json())


async def test_leases_of_another_machine_hold_for_all_gateways(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with (
        remote_supervisor(tmp_path / "far", {"a": {}, "b": {}}) as far,
        start_gateway({}, backends={"far": far.backend}) as gateway,
    ):
        lease = await take(gateway, model="a", holder="ann", **{"for": "2h"})
        assert (lease["backend"], far.starts()) == ("far", ["a"])
        refused = await gateway.chat("b")
        assert "leased to ann until" in message(refused.json())
        assert refused.headers["x-should-retry"] == "false" and int(refused.headers["retry-after"]) > 7000
        assert [each.holder for each in far.manager.status_now().leases] == ["ann"]
        assert (await gateway.http.post("/admin/leases", json={"model": "b", "for": "1h"})).status_code == 503
        assert (await gateway.action("unload", model="a")).status_code == 503
        await gateway.http.delete(f"/admin/leases/{lease['id']}")
        assert await listed(gateway) == []
        await gateway.until_status(lambda hosts: hosts["far"]["host"]["leases"] == [])
        assert (await gateway.chat("b")).status_code == 200


async def test_another_host_answers_while_the_model_of_one_is_leased(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}, "b": {}}) as one,
        remote_supervisor(tmp_path / "two", {"b": {}}) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        await take(gateway, model="a", holder="ann", **{"for": "2h"})
        assert (await gateway.chat("b")).status_code == 200
        assert (one.starts(), two.starts()) == (["a"], ["b"])


async def test_the_command_line_takes_lists_and_ends_leases(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:

        async def hostler(*arguments: str) -> tuple[int, str]:
            run = partial(CliRunner().invoke, command_line, [*arguments, "--url", gateway.url])
            result = await anyio.to_thread.run_sync(run)
            return result.exit_code, result.output

        code, text = await hostler("lease", "a", "--for", "2h", "--holder", "ann")
        assert (code, "a is leased to ann until" in text) == (0, True), text
        (lease,) = await listed(gateway)
        code, text = await hostler("lease", "--list")
        assert code == 0 and "ann" in text and lease["id"] in text
        code, text = await hostler("lease", "--list", "--json")
        assert [each["id"] for each in json.loads(text)] == [lease["id"]]
        assert "leased until" in (await hostler("ps"))[1]
        assert await hostler("lease", "--end", "a") == (0, "The lease of a has ended.\n")
        assert "No model is leased." in (await hostler("lease", "--list"))[1]
        assert (await hostler("lease", "--end", "a"))[0] == 2
        assert (await hostler("lease"))[0] == 2
        assert (await hostler("lease", "a", "--for", "a while"))[0] == 2
        code, text = await hostler("lease", "a", "--for", "40d")
        assert (code, "30 days at most" in text) == (2, True)
        assert (await hostler("lease", "--list", "--for", "2h"))[0] == 2
