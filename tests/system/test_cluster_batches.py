"""Files and batches that one gateway of a cluster has, at the others; and hosts that die while a batch is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx
import openai
import pytest
from fakes.certificates import make_pair
from fakes.ports import free_port
from fakes.redis_server import RedisServer, needs_redis
from system.cluster_programs import PATIENCE_S, Cluster, status, until
from system.running_gateway import EngineLog
from system.several_gateways import GatewayProgram

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), needs_redis]

#: A request of Anthropic's batches.
MESSAGE: Any = {"model": "a", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


def address() -> dict[str, Any]:
    """Settings of a gateway that others reach: its port is known before it starts."""
    return {"listen": [f"127.0.0.1:{free_port()}"], "batches": {"idle_s": 0, "concurrency": 2}}


def key(gateway: GatewayProgram) -> str:
    return gateway.auth()["Authorization"].removeprefix("Bearer ")


def client(gateway: GatewayProgram) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.running.address}/v1", api_key=key(gateway), max_retries=0)


def messages_client(gateway: GatewayProgram) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.running.address, api_key=key(gateway), max_retries=0)


def lines(count: int) -> bytes:
    body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
    requests = (
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(count)
    )
    return b"".join(json.dumps(each).encode() + b"\n" for each in requests)


async def know_each_other(*gateways: GatewayProgram) -> None:
    """Wait until each gateway knows the others, and where they are reached."""
    with anyio.fail_after(PATIENCE_S):
        for gateway in gateways:
            while not (  # noqa: ASYNC110 - here and below, what is waited for happens in other processes
                len(found := (await status(gateway))["cluster"]["gateways"]) == len(gateways)
                and all(each["url"] for each in found)
            ):
                await anyio.sleep(0.05)


async def two_gateways(cluster: Cluster) -> tuple[GatewayProgram, GatewayProgram]:
    """Gateways that know each other, and a host whose model is `a`."""
    first, second = await cluster.gateway("one", **address()), await cluster.gateway("two", **address())
    await cluster.host("attic", "a")
    await until(first, lambda hosts: hosts == {"attic": True})
    await know_each_other(first, second)
    return first, second


async def ended(api: openai.AsyncOpenAI, batch_id: str) -> Any:
    with anyio.fail_after(PATIENCE_S):
        while (batch := await api.batches.retrieve(batch_id)).status not in ("completed", "failed", "cancelled"):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return batch


@pytest.mark.parametrize("workers", [1, 2])
async def test_every_gateway_answers_for_files_and_batches_of_the_others(cluster: Cluster, workers: int) -> None:
    first, second = (
        await cluster.gateway("one", **address()),
        await cluster.gateway("two", workers=workers, **address()),
    )
    await cluster.host("attic", "a")
    await until(first, lambda hosts: hosts == {"attic": True})
    await know_each_other(first, second)
    async with client(first) as one, client(second) as two:
        file = await one.files.create(file=("input.jsonl", lines(5)), purpose="batch")
        assert (await two.files.retrieve(file.id)).filename == "input.jsonl"
        assert (await two.files.content(file.id)).content == lines(5)
        # It is created where its file is, wherever it was asked for.
        batch = await two.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        done = await ended(two, batch.id)
        assert done.status == "completed" and done.request_counts.completed == 5
        for api in (one, two):
            content = (await api.files.content(done.output_file_id)).text
            assert sorted(json.loads(line)["custom_id"] for line in content.splitlines()) == ["0", "1", "2", "3", "4"]
            assert (await api.batches.retrieve(batch.id)) == done
        with pytest.raises(openai.BadRequestError, match="a batch that is completed cannot be cancelled"):
            await two.batches.cancel(batch.id)
        assert (await two.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await one.files.retrieve(file.id)
        # An id of a gateway that does not exist, or that has no such file, is not passed on for ever.
        missing = file.id[: len("file-hst-") + 16] + "0" * 24
        with pytest.raises(openai.NotFoundError, match="no such file"):
            await two.files.retrieve(missing)
        with pytest.raises(openai.InternalServerError, match=r"\(0{16}\) is not in the cluster now"):
            await two.files.retrieve("file-hst-" + "0" * 40)


async def page(gateway: GatewayProgram, path: str, **parameters: Any) -> Any:
    """A page of a list, once all gateways have answered in time on this machine."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            answer = await gateway.http.get(path, params=parameters, headers=gateway.auth())
            if "x-hostler-missing-gateways" not in answer.headers:
                return answer.json()


async def listed(gateway: GatewayProgram, path: str, *, after: str = "after", **parameters: Any) -> list[str]:
    """The ids of all pages of a list."""
    found: list[str] = []
    while True:
        shown = await page(gateway, path, **parameters)
        found += [each["id"] for each in shown["data"]]
        if not shown["has_more"]:
            return found
        parameters[after] = shown["last_id"]


async def test_every_gateway_lists_the_files_and_batches_of_all(cluster: Cluster) -> None:
    first = await cluster.gateway("one", **address())
    second = await cluster.gateway("two", workers=2, **address())
    third = await cluster.gateway("three", **address())
    await cluster.host("attic", "a")
    await until(first, lambda hosts: hosts == {"attic": True})
    await know_each_other(first, second, third)
    async with client(first) as one, client(second) as two, client(third) as three:
        files, batches = [], []
        for api in (one, two, one, three, two, one):
            file = await api.files.create(file=("input.jsonl", lines(1)), purpose="batch")
            batch = await api.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            files, batches = [file.id, *files], [batch.id, *batches]
        for batch_id in batches:
            await ended(two, batch_id)
        for gateway in (first, second, third):
            for limit in (1, 4, 20):
                assert await listed(gateway, "/v1/batches", limit=limit) == batches
            assert await listed(gateway, "/v1/files", purpose="batch", limit=4) == files
            everything = await listed(gateway, "/v1/files")
            assert len(everything) == len(set(everything)) == 2 * len(files)
            assert await listed(gateway, "/v1/files", order="asc", limit=5) == everything[::-1]
        with pytest.raises(openai.AuthenticationError):
            await two.with_options(api_key="wrong").batches.list()
        await third.kill()
        # A page begins behind an entry of the gateway that is away, too.
        gone = batches[2]
        answer = await first.http.get(f"/v1/batches?after={gone}", headers=first.auth())
        assert [each["id"] for each in answer.json()["data"]] == batches[3:]
        assert '"three"' not in answer.text
        assert answer.headers["x-hostler-missing-gateways"] == "three"


async def test_message_batches_are_listed_by_all_gateways_in_both_directions(cluster: Cluster) -> None:
    first, second = await two_gateways(cluster)
    async with messages_client(first) as one, messages_client(second) as two:
        batches: list[str] = []
        for api in (one, two, two, one):
            batch = await api.messages.batches.create(requests=[{"custom_id": "x", "params": MESSAGE}])
            batches.insert(0, batch.id)
    path = "/v1/messages/batches"
    for gateway in (first, second):
        assert await listed(gateway, path, after="after_id", limit=1) == batches
        shown = await page(gateway, path, before_id=batches[3], limit=2)
        assert ([each["id"] for each in shown["data"]], shown["has_more"]) == (batches[1:3], True)
        assert (shown["first_id"], shown["last_id"]) == (batches[1], batches[2])
        shown = await page(gateway, path, before_id=batches[1])
        assert ([each["id"] for each in shown["data"]], shown["has_more"]) == (batches[:1], False)
        base = gateway.running.address
        assert all(each["results_url"] in (None, f"{base}{path}/{each['id']}/results") for each in shown["data"])


async def test_message_batches_are_found_as_well_and_their_results_where_they_were_asked_for(cluster: Cluster) -> None:
    first, second = await two_gateways(cluster)
    async with messages_client(first) as one, messages_client(second) as two:
        batch = await one.messages.batches.create(requests=[{"custom_id": "x", "params": MESSAGE}])
        with anyio.fail_after(PATIENCE_S):
            while (found := await two.messages.batches.retrieve(batch.id)).processing_status != "ended":  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert found.results_url == f"{second.running.address}/v1/messages/batches/{batch.id}/results"
        results = [each async for each in await two.messages.batches.results(batch.id)]
        assert [(each.custom_id, each.result.type) for each in results] == [("x", "succeeded")]


async def test_a_gateway_that_is_gone_is_named_and_its_batch_goes_on_when_it_returns(
    cluster: Cluster, server: RedisServer
) -> None:
    first, second = await cluster.gateway("one", **address()), await cluster.gateway("two", **address())
    await cluster.host("attic", "a", chunk_delay=0.5)
    await until(first, lambda hosts: hosts == {"attic": True})
    await know_each_other(first, second)
    async with client(first) as one, client(second) as two:
        file = await one.files.create(file=("input.jsonl", lines(1)), purpose="batch")
        batch = await one.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        server.kill()  # the last known members stay
        await first.kill()
        with pytest.raises(openai.InternalServerError, match="gateway one has it, and does not answer") as raised:
            await two.batches.retrieve(batch.id)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == "5"
        server.start()
        await first.start()
        await know_each_other(first, second)
        assert (await ended(two, batch.id)).request_counts.completed == 1


def in_flight(log: EngineLog) -> int:
    """How many chats an engine works on."""
    chats = [
        [each for each in log.events(kind) if each["path"].endswith("/completions")] for kind in ("request", "done")
    ]
    return len(chats[0]) - len(chats[1])


async def test_requests_of_a_batch_go_to_another_host_when_one_dies(cluster: Cluster) -> None:
    gateway = await cluster.gateway("one", **address())
    attic, attic_log = await cluster.host("attic", "a", chunk_delay=0.1)
    _, cellar_log = await cluster.host("cellar", "a", chunk_delay=0.1)
    await until(gateway, lambda hosts: set(hosts.values()) == {True} and len(hosts) == 2)
    async with client(gateway) as api:
        file = await api.files.create(file=("input.jsonl", lines(12)), purpose="batch")
        batch = await api.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        with anyio.fail_after(PATIENCE_S):
            while (await api.batches.retrieve(batch.id)).request_counts.completed < 2:  # noqa: ASYNC110
                await anyio.sleep(0.02)
            while not in_flight(attic_log):  # noqa: ASYNC110 - another process
                await anyio.sleep(0.005)
        await attic.kill()
        done = await ended(api, batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 12, 0)
    assert (attic_log.starts(), cellar_log.starts()) == (["a"], ["a"])


async def test_requests_are_passed_on_over_tls_to_the_gateway_with_the_reported_certificate(
    cluster: Cluster, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, "gateway")
    first = await cluster.gateway("one", tls={"cert": pair.cert, "key": pair.key}, **address())
    second = await cluster.gateway("two", **address())
    async with httpx.AsyncClient(base_url=first.running.address, verify=False, trust_env=False) as secure:
        first.http = secure
        await know_each_other(first, second)
        form = {"purpose": (None, "batch"), "file": ("x.jsonl", lines(1))}
        file = (await secure.post("/v1/files", files=form, headers=first.auth())).json()
        answer = await second.http.get(f"/v1/files/{file['id']}/content", headers=second.auth())
        assert (answer.status_code, answer.content) == (200, lines(1))
        stranger = await second.http.get(f"/v1/files/{file['id']}", headers={"Authorization": "Bearer wrong"})
        assert stranger.status_code == 401
