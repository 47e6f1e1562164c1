"""What is sent of a batch, what is sent again, and how batches end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from hostler.gateway.batches.records import Batch, BatchItem, Counts, ItemResult
from hostler.gateway.batches.runner import BatchRunner
from hostler.gateway.batches.store import BatchStore, StorageFailed
from hostler.gateway.context import Client
from hostler.gateway.internal_request import InternalAnswer

pytestmark = pytest.mark.anyio

BATCH = Batch(
    id="batch_hst_1", owner="ann", client="ann", protocol="openai", endpoint="/v1/chat/completions", created_at=0.0,
    expires_at=86400.0, status="in_progress", total=2,
)  # fmt: skip
ANN = Client(name="ann")
OK = InternalAnswer(status=200, headers={}, body=b'{"ok":true}', complete=True)
ITEMS = [BatchItem(batch=BATCH.id, number=number, custom_id=f"{number}", model="a", body=b"{}") for number in range(3)]


def answer(status: int, complete: bool = True, **headers: str) -> InternalAnswer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InternalAnswer(status=status, headers=named, body=b'{"error":{}}', complete=complete)


class Running:
    """A store with a runner, and what was sent: `answers` in order, the last one for ever."""

    def __init__(self, store: BatchStore, *answers: InternalAnswer) -> None:
        self.store = store
        self.answers = list(answers)
        self.sent: list[str] = []
        self.client: Client | None = ANN
        self.gate = anyio.Event()
        self.gate.set()
        self.runner = BatchRunner(
            store, send=self._send, find_client=lambda batch: self.client, may_run=self._may_run, max_requests=10,
            concurrency=2,
        )  # fmt: skip

    async def _send(self, batch: Batch, item: BatchItem, client: Client) -> InternalAnswer:
        self.sent.append(item.custom_id)
        await self.gate.wait()
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def _may_run(self, model: str) -> None:
        await anyio.lowlevel.checkpoint()

    async def until(self, condition: Callable[[Batch], bool]) -> Batch:
        with anyio.fail_after(20):
            while True:
                batch = await self.store.find_batch("ann", BATCH.id)
                if batch is not None and condition(batch):
                    return batch
                await anyio.sleep(0.01)

    async def ended(self) -> tuple[str, Counts]:
        batch = await self.until(lambda batch: not batch.active)
        return batch.status, await self.store.counts(BATCH.id)


@asynccontextmanager
async def running(
    folder: Path,
    *answers: InternalAnswer,
    items: int = 1,
    now: float = 100.0,
    client: Client | None = ANN,
    store: BatchStore | None = None,
) -> AsyncIterator[Running]:
    store = store or BatchStore(folder / "batches.sqlite3", max_bytes=10**6, max_age_s=10**6, wall=lambda: now)
    subject = Running(store, *answers)
    subject.client = client
    await store.add_batch(BATCH, ITEMS[:items])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.runner.run)
        yield subject
        tasks.cancel_scope.cancel()
    await store.aclose()


async def test_sends_every_request_once(tmp_path: Path) -> None:
    async with running(tmp_path, OK, items=3) as subject:
        assert await subject.ended() == ("completed", Counts(succeeded=3))
        assert sorted(subject.sent) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "failure",
    [
        answer(503, retry_after="0.01", x_should_retry="false"),
        answer(429, retry_after="0.01"),
        answer(503),
        answer(502),
        answer(200, complete=False),
    ],
)
async def test_sends_again_what_may_succeed_later(tmp_path: Path, failure: InternalAnswer) -> None:
    async with running(tmp_path, failure, OK) as subject:
        assert await subject.ended() == ("completed", Counts(succeeded=1))
        assert subject.sent == ["0", "0"]


@pytest.mark.parametrize("failure", [answer(400), answer(404), answer(503, x_should_retry="false")])
async def test_keeps_the_error_of_what_fails_for_good(tmp_path: Path, failure: InternalAnswer) -> None:
    async with running(tmp_path, failure, OK) as subject:
        assert await subject.ended() == ("completed", Counts(errored=1))
        ((_, _, result),) = await subject.store.results(BATCH.id, ("errored",))
        assert (result.status, bytes(result.body), subject.sent) == (failure.status, b'{"error":{}}', ["0"])


async def test_a_batch_without_a_valid_key_fails_item_by_item(tmp_path: Path) -> None:
    async with running(tmp_path, OK, client=None) as subject:
        assert await subject.ended() == ("completed", Counts(errored=1))
        ((_, _, result),) = await subject.store.results(BATCH.id, ("errored",))
        assert (result.code, subject.sent) == ("invalid_api_key", [])


async def test_what_has_no_time_left_expires(tmp_path: Path) -> None:
    async with running(tmp_path, OK, now=90_000.0) as subject:
        assert await subject.ended() == ("expired", Counts(expired=1))
        assert subject.sent == []


async def test_a_request_in_flight_is_cut_off_when_its_batch_is_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, OK, items=3) as subject:
        subject.gate = anyio.Event()
        with anyio.fail_after(20):
            while not subject.sent:  # noqa: ASYNC110 - sent by the runner
                await anyio.sleep(0.01)
        await subject.store.update(BATCH.id, lambda batch: msgspec.structs.replace(batch, status="cancelling"))
        subject.runner.notify()
        status, counts = await subject.ended()
        assert (status, counts.processing) == ("cancelled", 0)
        assert counts.cancelled >= 1


async def test_one_process_serves_a_store(tmp_path: Path) -> None:
    async with running(tmp_path, OK) as subject:
        await subject.ended()
        second = BatchStore(subject.store.file, max_bytes=10**6, max_age_s=10**6, wall=lambda: 100.0)
        other = Running(second, OK)
        await subject.store.add_batch(msgspec.structs.replace(BATCH, id="batch_hst_2"), ())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.runner.run)
            await anyio.wait_all_tasks_blocked()
            assert other.sent == []
            tasks.cancel_scope.cancel()
        await second.aclose()


class FailingStore(BatchStore):
    """A store whose methods of these names fail once each."""

    def __init__(self, file: Path, *failing: str) -> None:
        super().__init__(file, max_bytes=10**6, max_age_s=10**6, wall=lambda: 100.0)
        self.failing = set(failing)

    def fail(self, name: str) -> None:
        if name in self.failing:
            self.failing.remove(name)
            raise StorageFailed("the disk is full")

    async def next_items(self, model: str, limit: int) -> list[BatchItem]:
        self.fail("next_items")
        return await super().next_items(model, limit)

    async def finish(self, item: BatchItem, result: ItemResult) -> bool:
        self.fail("finish")
        return await super().finish(item, result)


@pytest.mark.parametrize("failing", ["next_items", "finish"])
async def test_goes_on_after_a_failure_of_the_disk_without_sending_again(tmp_path: Path, failing: str) -> None:
    store = FailingStore(tmp_path / "batches.sqlite3", failing)
    async with running(tmp_path, OK, items=3, store=store) as subject:
        assert await subject.ended() == ("completed", Counts(succeeded=3))
        assert sorted(subject.sent) == ["0", "1", "2"]
        assert store.failing == set()


async def test_an_unexpected_error_ends_its_request_even_if_the_disk_fails_then(tmp_path: Path) -> None:
    store = FailingStore(tmp_path / "batches.sqlite3", "finish")
    async with running(tmp_path, OK, store=store) as subject:
        subject.answers = []
        assert await subject.ended() == ("completed", Counts(errored=1))
        assert store.failing == set()


async def test_a_batch_whose_input_file_was_deleted_says_so(tmp_path: Path) -> None:
    store = BatchStore(tmp_path / "batches.sqlite3", max_bytes=10**6, max_age_s=10**6, wall=lambda: 100.0)
    await store.add_batch(msgspec.structs.replace(BATCH, status="validating", input_file="file-hst-gone"))
    subject = Running(store, OK)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.runner.run)
        batch = await subject.until(lambda batch: not batch.active)
        tasks.cancel_scope.cancel()
    await store.aclose()
    assert (batch.status, [error.code for error in batch.errors]) == ("failed", ["file_not_found"])
    assert "was deleted" in batch.errors[0].message
