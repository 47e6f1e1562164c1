"""The store of batches: owners, results that are written once, limits, and what a restart finds."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from hostler.adapters.errors import RequestTooLarge
from hostler.gateway.batches.records import Batch, BatchItem, Counts, ItemResult, StoredFile
from hostler.gateway.batches.store import BatchStore, StorageFailed

pytestmark = pytest.mark.anyio

BATCH = Batch(
    id="b1", owner="ann", client="ann", protocol="openai", endpoint="/v1/chat/completions", created_at=0.0,
    expires_at=86400.0, status="in_progress", total=3,
)  # fmt: skip
OTHER = msgspec.structs.replace(BATCH, id="b2", owner="bob")
DONE = ItemResult(outcome="succeeded", status=200, body=msgspec.Raw(b'{"a":1}'))


def items(batch: str, *models: str) -> list[BatchItem]:
    return [
        BatchItem(batch=batch, number=number, custom_id=f"{number}", model=model, body=b"{}")
        for number, model in enumerate(models)
    ]


def stored(file_id: str, owner: str = "ann", *, expires_at: float | None = None) -> StoredFile:
    return StoredFile(
        id=file_id, owner=owner, filename="f", purpose="batch", bytes=1, created_at=0.0, expires_at=expires_at
    )


@asynccontextmanager
async def opened(folder: Path, *, max_bytes: int = 10_000, now: float = 100.0) -> AsyncIterator[BatchStore]:
    store = BatchStore(folder / "batches.sqlite3", max_bytes=max_bytes, max_age_s=1000.0, wall=lambda: now)
    try:
        yield store
    finally:
        await store.aclose()


async def test_owners_see_their_own_files_and_batches_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_file(stored("f1"), b"one")
        await store.add_file(stored("f2", "bob"), b"two")
        await store.add_batch(BATCH)
        await store.add_batch(OTHER)
        assert [each.id for each in await store.files("ann")] == ["f1"]
        assert await store.find_file("ann", "f2") is None
        assert [each.id for each in await store.batches("bob", "openai")] == ["b2"]
        assert await store.batches("bob", "anthropic") == []
        assert await store.find_batch("ann", "b2") is None
        assert await store.content("f1") == b"one"


async def test_a_result_is_written_once_and_kept_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_batch(BATCH, items("b1", "a", "b", "a"))
        first = (await store.next_items("a", 5))[0]
        assert await store.finish(first, DONE)
        assert not await store.finish(first, ItemResult(outcome="errored"))
    async with opened(tmp_path) as store:
        assert [each.number for each in await store.next_items("a", 5)] == [2]
        assert sorted(await store.pending_models()) == ["a", "b"]
        assert await store.counts("b1") == Counts(processing=2, succeeded=1)
        assert await store.results("b1", ("succeeded",)) == [(0, "0", DONE)]
        assert await store.results("b1", ("succeeded",), after=0) == []


async def test_the_requests_of_earlier_batches_come_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_batch(BATCH, items("b1", "a", "a"))
        await store.add_batch(OTHER, items("b2", "a"))
        assert [(each.batch, each.number) for each in await store.next_items("a", 5)] == [
            ("b1", 0),
            ("b1", 1),
            ("b2", 0),
        ]


async def test_a_batch_that_was_cancelled_while_it_was_checked_does_not_begin(tmp_path: Path) -> None:
    validating = msgspec.structs.replace(BATCH, status="validating")
    async with opened(tmp_path) as store:
        await store.add_batch(validating)
        await store.update("b1", lambda batch: msgspec.structs.replace(batch, status="cancelling"))
        assert not await store.begin(BATCH, items("b1", "a"))
        assert await store.pending_models() == []


async def test_ended_batches_have_nothing_pending(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_batch(BATCH, items("b1", "a", "a"))
        await store.finish((await store.next_items("a", 1))[0], DONE)
        await store.end_pending("b1", "expired")
        assert await store.counts("b1") == Counts(succeeded=1, expired=1)
        ended = await store.update(
            "b1",
            lambda batch: msgspec.structs.replace(
                batch, status="expired", ended_at=100.0, output_file="out", error_file="err"
            ),
        )
        assert ended is not None
        assert await store.active_batches() == []
        files = {each.id: each for each in await store.files("ann")}
        assert files.keys() == {"out", "err"}
        assert (files["out"].source, files["out"].outcomes) == ("b1", ("succeeded",))


async def test_bounds_what_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as store:
        await store.add_file(stored("f1"), b"x" * 510)
        with pytest.raises(RequestTooLarge, match=r"gateway\.batches\.max_size"):
            await store.add_file(stored("f2"), b"x" * 510)
        await store.add_batch(BATCH, items("b1", "a"))
        large = ItemResult(outcome="succeeded", status=200, body=msgspec.Raw(b'"' + b"x" * 500 + b'"'))
        assert await store.finish((await store.next_items("a", 1))[0], large)
        ((_, _, result),) = await store.results("b1", ("errored",))
        assert result.code == "storage_full"
        await store.delete_file(stored("f1"))
        await store.add_file(stored("f3"), b"x" * 100)


async def test_bounds_what_batches_say_of_themselves(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as store:
        await store.add_batch(msgspec.structs.replace(BATCH, metadata={"a": "x" * 500}))
        with pytest.raises(RequestTooLarge, match=r"gateway\.batches\.max_size"):
            await store.add_batch(msgspec.structs.replace(OTHER, metadata={"a": "x" * 500}))
        assert await store.find_batch("bob", "b2") is None


async def test_the_results_of_a_deleted_file_take_no_more_room(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as store:
        await store.add_batch(BATCH, items("b1", "a", "a"))
        large = ItemResult(outcome="succeeded", status=200, body=msgspec.Raw(b'"' + b"x" * 200 + b'"'))
        await store.finish((await store.next_items("a", 1))[0], large)
        await store.end_pending("b1", "cancelled")
        await store.update(
            "b1",
            lambda batch: msgspec.structs.replace(
                batch, status="cancelled", ended_at=100.0, output_file="out", error_file="err"
            ),
        )
        with pytest.raises(RequestTooLarge):
            await store.add_file(stored("f1"), b"x" * 500)
        output = await store.find_file("ann", "out")
        assert output is not None
        await store.delete_file(output)
        await store.add_file(stored("f1"), b"x" * 500)
        assert b"xxx" not in b"".join(bytes(each.body) for *_, each in await store.results("b1", ("succeeded",)))
        assert await store.counts("b1") == Counts(succeeded=1, cancelled=1)
        assert [each.id for each in await store.files("ann")] == ["f1", "err"]


async def test_old_files_and_batches_are_deleted_with_their_results(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_file(stored("f1", expires_at=50.0), b"one")
        await store.add_file(stored("f2", expires_at=5000.0), b"two")
        await store.add_batch(BATCH, items("b1", "a"))
        await store.end_pending("b1", "cancelled")
        await store.update(
            "b1",
            lambda batch: msgspec.structs.replace(batch, status="cancelled", ended_at=100.0, error_file="err"),
        )
    async with opened(tmp_path, now=1101.0) as store:
        await store.drop_old()
        assert [each.id for each in await store.files("ann")] == ["f2"]
        assert await store.find_batch("ann", "b1") is None
        assert await store.results("b1", ("cancelled",)) == []


async def test_a_broken_disk_is_an_error_that_clients_may_retry(tmp_path: Path) -> None:
    (tmp_path / "batches.sqlite3").mkdir()
    async with opened(tmp_path) as store:
        with pytest.raises(StorageFailed, match=r"gateway\.batches\.file"):
            await store.files("ann")


async def test_calls_that_wait_for_the_disk_hold_no_threads(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_batch(BATCH)
        entered, leave = threading.Event(), threading.Event()

        def slow(batch: Batch) -> None:
            entered.set()
            assert leave.wait(20)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.update, "b1", slow)
            with anyio.fail_after(20):
                await anyio.to_thread.run_sync(entered.wait)
                for _ in range(50):
                    tasks.start_soon(store.files, "ann")
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(leave.set)
