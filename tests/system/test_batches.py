"""Batches with OpenAI's and Anthropic's own clients: in idle time, for each key, over kills."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anthropic
import anyio
import openai
import pytest
from system.running_gateway import RunningGateway, StartGateway, write_keys

from hostler.gateway.auth import keys
from hostler.gateway.batches.records import Batch, BatchItem
from hostler.gateway.batches.store import BatchStore
from hostler.gateway.context import KeyRules

pytestmark = pytest.mark.anyio


def batches(folder: Path, **more: Any) -> dict[str, Any]:
    return {"batches": {"file": str(folder / "batches.sqlite3"), "idle_s": 0, **more}}


def lines(*requests: tuple[str, str], endpoint: str = "/v1/chat/completions") -> bytes:
    """An input file with requests, each a custom ID and a model."""
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    return b"".join(
        json.dumps({"custom_id": name, "method": "POST", "url": endpoint, "body": {"model": model, **body}}).encode()
        + b"\n"
        for name, model in requests
    )


def openai_client(gateway: RunningGateway, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def anthropic_client(gateway: RunningGateway, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0)


async def create(client: openai.AsyncOpenAI, content: bytes, endpoint: Any = "/v1/chat/completions") -> Any:
    file = await client.files.create(file=("input.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    with anyio.fail_after(60):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await anyio.sleep(0.05)


async def content(client: openai.AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    text = (await client.files.content(file_id)).text
    return [json.loads(line) for line in text.splitlines()]


def ids(results: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(each["custom_id"] for each in results)


async def test_openai_uploads_creates_follows_and_reads_a_batch(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway({"a": {}}, gateway=batches(tmp_path)) as gateway, openai_client(gateway) as client:
        text = lines(("one", "a"), ("two", "missing"), ("three", "a"))
        file = await client.files.create(file=("input.jsonl", text), purpose="batch")
        assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(text), "input.jsonl", "batch")
        assert [each.id async for each in client.files.list()] == [file.id]
        assert (await client.files.content(file.id)).content == text
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "nightly"}
        )
        assert batch.status in ("validating", "in_progress")
        done = await ended(client, batch.id)
        counts = done.request_counts
        assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
        assert done.metadata == {"run": "nightly"} and done.completed_at and done.expires_at - done.created_at == 86400
        results = await content(client, done.output_file_id)
        assert ids(results) == ["one", "three"]
        assert results[0]["response"]["status_code"] == 200
        assert results[0]["response"]["body"]["choices"][0]["message"]["content"]
        (failed,) = await content(client, done.error_file_id)
        assert (failed["custom_id"], failed["response"]["status_code"]) == ("two", 404)
        assert failed["response"]["body"]["error"]["code"] == "model_not_found"
        assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)


async def test_anthropic_creates_follows_and_reads_a_batch(start_gateway: StartGateway, tmp_path: Path) -> None:
    params: Any = {"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
    async with start_gateway({"a": {}}, gateway=batches(tmp_path)) as gateway, anthropic_client(gateway) as client:
        batch = await client.messages.batches.create(
            requests=[{"custom_id": "one", "params": params}, {"custom_id": "two", "params": {**params, "model": "x"}}]
        )
        assert (batch.type, batch.processing_status) == ("message_batch", "in_progress")
        with anyio.fail_after(60):
            while (batch := await client.messages.batches.retrieve(batch.id)).processing_status != "ended":  # noqa: ASYNC110
                await anyio.sleep(0.05)
        counts = batch.request_counts
        assert (counts.succeeded, counts.errored, counts.processing, counts.canceled) == (1, 1, 0, 0)
        results = {each.custom_id: each.result async for each in await client.messages.batches.results(batch.id)}
        one, two = results["one"], results["two"]
        assert one.type == "succeeded" and one.message.content[0].type == "text" and one.message.content[0].text
        assert two.type == "errored" and two.error.error.type == "not_found_error"
        assert [each.id async for each in client.messages.batches.list()] == [batch.id]
        await client.messages.batches.delete(batch.id)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(batch.id)


async def test_a_request_comes_first_and_the_batch_goes_on_after_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    flag = tmp_path / "go"
    profiles = {"a": {"script": {"answer_when": str(flag)}}}
    async with start_gateway(profiles, gateway=batches(tmp_path)) as gateway, openai_client(gateway) as client:
        batch = await create(client, lines(("one", "a"), ("two", "a")))
        await gateway.until(lambda: gateway.requests("a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            # The one slot is free for the request although the batch has no answer yet.
            await gateway.until(lambda: len(gateway.requests("a")) == 2)
            assert (await gateway.counts())[1] == 0
            flag.touch()
        done = await ended(client, batch.id)
        assert (done.status, done.request_counts.completed) == ("completed", 2)
        assert ids(await content(client, done.output_file_id)) == ["one", "two"]


async def test_models_are_switched_once_for_each_and_not_while_others_are_in_use(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    requests = [(f"{model}{number}", model) for number in range(4) for model in ("a", "b")]
    async with (
        start_gateway({"a": {}, "b": {}}, gateway=batches(tmp_path)) as gateway,
        openai_client(gateway) as client,
    ):
        batch = await create(client, lines(*requests))
        done = await ended(client, batch.id)
        assert done.request_counts.completed == 8
    assert len(gateway.starts()) == 2


async def test_a_key_sees_its_own_files_and_batches_only(start_gateway: StartGateway, tmp_path: Path) -> None:
    path, named = write_keys(tmp_path, ann=0, bob=0)
    sections = {"gateway": {"api_keys_file": path, **batches(tmp_path)}}
    async with (
        start_gateway({"a": {}}, **sections) as gateway,
        openai_client(gateway, named["ann"]) as ann,
        openai_client(gateway, named["bob"]) as bob,
    ):
        batch = await create(ann, lines(("one", "a")))
        done = await ended(ann, batch.id)
        for call in (
            bob.batches.retrieve(batch.id), bob.batches.cancel(batch.id), bob.files.retrieve(done.output_file_id),
            bob.files.content(done.output_file_id), bob.files.delete(done.input_file_id),
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                await call
        with pytest.raises(openai.BadRequestError):
            await bob.batches.create(
                input_file_id=done.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert [each async for each in bob.batches.list()] == [each async for each in bob.files.list()] == []


async def test_requests_of_a_batch_count_against_the_limits_of_its_key(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    rules = KeyRules(requests_per_minute=1)
    key = keys.add(tmp_path / "keys", "ann", ["infer", "read", "operate"], rules=rules)
    sections = {"api_keys_file": str(tmp_path / "keys"), "key_usage_file": str(tmp_path / "usage.json")}
    async with (
        start_gateway({"a": {}}, gateway={**sections, **batches(tmp_path, concurrency=1)}) as gateway,
        openai_client(gateway, key) as client,
    ):
        batch = await create(client, lines(("one", "a"), ("two", "a")))
        with anyio.fail_after(60):
            while True:
                counts = (await client.batches.retrieve(batch.id)).request_counts
                if counts is not None and counts.completed:
                    break
                await anyio.sleep(0.05)
        assert (await gateway.chat("a", key=key)).status_code == 429
        await client.batches.cancel(batch.id)
        done = await ended(client, batch.id)
        assert (done.status, done.request_counts.completed) == ("cancelled", 1)
        assert len(gateway.requests("a")) == 1


async def test_a_batch_expires_after_24_hours(start_gateway: StartGateway, tmp_path: Path) -> None:
    created_at = time.time() - 86_400
    batch = Batch(
        id="batch_hst_old", owner="127.0.0.1", client="127.0.0.1", protocol="openai", endpoint="/v1/chat/completions",
        created_at=created_at, expires_at=created_at + 86_400, status="in_progress", total=1,
    )  # fmt: skip
    item = BatchItem(batch=batch.id, number=1, custom_id="one", model="a", body=b'{"model":"a"}')
    store = BatchStore(tmp_path / "batches.sqlite3", max_bytes=10**6, max_age_s=10**6, wall=time.time)
    await store.add_batch(batch, [item])
    await store.aclose()
    async with start_gateway({"a": {}}, gateway=batches(tmp_path)) as gateway, openai_client(gateway) as client:
        done = await ended(client, batch.id)
        assert (done.status, done.expired_at is not None, done.output_file_id) == ("expired", True, None)
        assert (done.request_counts.completed, done.request_counts.failed) == (0, 1)
        (failed,) = await content(client, done.error_file_id)
        assert (failed["custom_id"], failed["error"]["code"]) == ("one", "batch_expired")
        assert gateway.starts() == []


async def test_mistakes_of_a_file_are_listed_with_their_lines(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway({"a": {}}, gateway=batches(tmp_path)) as gateway, openai_client(gateway) as client:
        text = lines(("one", "a"), ("one", "a")) + b"nonsense\n" + lines(("two", "a"), endpoint="/v1/embeddings")
        done = await ended(client, (await create(client, text)).id)
        assert (done.status, done.output_file_id) == ("failed", None)
        found = [(each.code, each.line) for each in done.errors.data]
        assert found == [("duplicate_custom_id", 2), ("invalid_json_line", 3), ("mismatched_endpoint", 4)]
    assert gateway.starts() == []


async def test_a_cancelled_batch_keeps_what_is_done(start_gateway: StartGateway, tmp_path: Path) -> None:
    profiles = {"a": {"script": {"chunk_delay": 0.1}}}
    async with (
        start_gateway(profiles, gateway=batches(tmp_path, concurrency=1)) as gateway,
        openai_client(gateway) as client,
    ):
        batch = await create(client, lines(*((f"{number}", "a") for number in range(20))))
        await gateway.until(lambda: len(gateway.requests("a")) >= 2)
        await client.batches.cancel(batch.id)
        done = await ended(client, batch.id)
        assert done.status == "cancelled" and done.cancelled_at and 1 <= done.request_counts.completed < 20
        kept = await content(client, done.output_file_id)
        rest = await content(client, done.error_file_id)
        assert len(kept) + len(rest) == 20 and rest[0]["error"]["code"] == "batch_cancelled"


async def test_uploads_are_bounded(start_gateway: StartGateway, tmp_path: Path) -> None:
    sections = batches(tmp_path, max_file=400, max_size=500)
    async with start_gateway({"a": {}}, gateway=sections) as gateway, openai_client(gateway) as client:
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=("input.jsonl", b"x" * 401), purpose="batch")
        assert large.value.status_code == 413
        await client.files.create(file=("input.jsonl", b"x" * 100), purpose="batch")
        for _ in range(5):
            full = await gateway.http.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", b"x" * 100)}
            )
        assert full.status_code == 413 and "gateway.batches.max_size" in full.json()["error"]["message"]


async def test_batches_can_be_disabled(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway({"a": {}}, gateway=batches(tmp_path, enabled=False)) as gateway:
        assert (await gateway.http.get("/v1/batches")).status_code == 404
        assert "batches" not in (await gateway.http.post("/v1/batches", json={"model": "a"})).text
    assert not (tmp_path / "batches.sqlite3").exists()


async def test_metadata_has_the_limits_of_openai_and_lists_begin_where_they_can(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway({"a": {}}, gateway=batches(tmp_path)) as gateway, openai_client(gateway) as client:
        for metadata in ({str(key): "" for key in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}):
            body = {"input_file_id": "file-hst-1", "endpoint": "/v1/embeddings", "metadata": metadata}
            refused = await gateway.http.post("/v1/batches", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata")
        with pytest.raises(openai.BadRequestError, match="names nothing in this list"):
            await client.batches.list(after="batch_hst_gone")
