"""Serves the requests of batches, one model after the other, while nothing else is to be done."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.adapters.errors import GatewayError
from hostler.gateway.batches.ids import result_id
from hostler.gateway.batches.input_file import InvalidFile, read_lines
from hostler.gateway.batches.records import Batch, BatchItem, ItemOutcome, ItemResult, LineError
from hostler.gateway.batches.store import BatchStore, StorageFailed
from hostler.gateway.context import Client
from hostler.gateway.internal_request import InternalAnswer
from hostler.profiles.file_flags import CLOSE_ON_EXEC
from hostler.profiles.file_lock import lock_file

logger = logging.getLogger(__name__)

#: How often another process is looked for that has batches, or has stopped serving them, in seconds.
_LOOK_S: Final = 5.0
#: How often old files and batches are deleted, in seconds.
_CLEAN_S: Final = 600.0
#: Pauses before a request is sent again, or its result written again, in seconds: the first one, and the longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
#: How often a request is sent whose errors come from a backend. Those that ask for time are sent until the batch expires.
_ATTEMPTS: Final = 4
_BUSY: Final = frozenset({408, 409, 425, 429, 503, 529})

_T = TypeVar("_T")

SendItem = Callable[[Batch, BatchItem, Client], Awaitable[InternalAnswer]]
FindClient = Callable[[Batch], Client | None]


class BatchRunner:
    """Sends the requests of all batches with `send`, as the clients that `find_client` returns: at most `concurrency` of
    each model at a time. `may_run(model)` waits until background work may begin.

    Of several processes with the same store one serves it. A request that was in flight when the process ended is sent
    again; no other one is.
    """

    def __init__(
        self, store: BatchStore, *, send: SendItem, find_client: FindClient, may_run: Callable[[str], Awaitable[None]],
        max_requests: int, concurrency: int,
    ) -> None:  # fmt: skip
        self._store = store
        self._send = send
        self._find_client = find_client
        self._may_run = may_run
        self._max_requests = max_requests
        self._concurrency = concurrency
        self._changed = anyio.Event()
        self._workers: set[str] = set()
        self._claimed: dict[tuple[str, int], anyio.CancelScope] = {}

    def notify(self) -> None:
        """A batch was created, or is to be cancelled."""
        self._changed.set()

    async def run(self) -> None:
        """Serve batches until cancelled."""
        async with self._only_process(), anyio.create_task_group() as tasks:
            tasks.start_soon(self._clean)
            while True:
                self._changed = anyio.Event()
                try:
                    await self._look(tasks)
                except StorageFailed as error:
                    logger.error("%s", error.message)
                except Exception:
                    logger.exception("serving batches failed; trying again")
                with anyio.move_on_after(_LOOK_S):
                    await self._changed.wait()

    @asynccontextmanager
    async def _only_process(self) -> AsyncIterator[None]:
        """Wait until no other process serves the store."""
        lock = self._store.file.with_name(f"{self._store.file.name}.lock")
        descriptor: int | None = None
        try:
            while descriptor is None:
                descriptor = await anyio.to_thread.run_sync(_lock, lock)
                if descriptor is None:
                    await anyio.sleep(_LOOK_S)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _clean(self) -> None:
        while True:
            try:
                await self._store.drop_old()
            except StorageFailed as error:
                logger.error("%s", error.message)
            await anyio.sleep(_CLEAN_S)

    async def _look(self, tasks: TaskGroup) -> None:
        """Take every batch one step on, and have a worker for every model that is needed."""
        now = self._store.wall()
        for batch in await self._store.active_batches():
            if batch.status == "cancelling":
                await self._end(batch, "cancelled")
            elif now >= batch.expires_at:
                await self._end(batch, "expired")
            elif batch.status == "validating":
                await self._validate(batch)
            else:
                await self._complete(batch)
        for model in await self._store.pending_models():
            if model not in self._workers:
                self._workers.add(model)
                tasks.start_soon(self._work, model, tasks)

    # Batches

    async def _validate(self, batch: Batch) -> None:
        content = await self._store.content(batch.input_file or "")
        if content is None:
            deleted = "the input file was deleted before its requests were read"
            await self._fail(batch, errors=(LineError(code="file_not_found", message=deleted),))
            return
        now = self._store.wall()

        def read() -> list[BatchItem]:
            return read_lines(content, batch=batch.id, endpoint=batch.endpoint, max_requests=self._max_requests)

        try:
            items = await anyio.to_thread.run_sync(read)
            begun = msgspec.structs.replace(batch, status="in_progress", total=len(items), in_progress_at=now)
            await self._store.begin(begun, items)
        except InvalidFile as invalid:
            await self._fail(batch, errors=invalid.errors)
        except StorageFailed:
            raise
        except GatewayError as error:
            await self._fail(batch, errors=(LineError(code=error.code, message=error.message),))

    async def _fail(self, batch: Batch, **fields: object) -> None:
        now = self._store.wall()
        await self._store.update(
            batch.id,
            lambda current: (
                msgspec.structs.replace(current, status="failed", ended_at=now, **fields)
                if current.status == "validating"
                else None
            ),
        )

    async def _complete(self, batch: Batch) -> None:
        """End the batch if all of its requests have ended."""
        if not (await self._store.counts(batch.id)).processing:
            await self._finish(batch, "completed")

    async def _end(self, batch: Batch, outcome: ItemOutcome) -> None:
        """End what has not ended, and with it the batch."""
        for key, scope in list(self._claimed.items()):
            if key[0] == batch.id:
                scope.cancel()
        await self._store.end_pending(batch.id, outcome)
        await self._finish(batch, "cancelled" if outcome == "cancelled" else "expired")

    async def _finish(self, batch: Batch, status: str) -> None:
        counts, now = await self._store.counts(batch.id), self._store.wall()
        files = {}
        if batch.protocol == "openai":
            failed = counts.errored or counts.expired or counts.cancelled
            files["output_file"] = result_id("out", batch.id, now) if counts.succeeded else None
            files["error_file"] = result_id("err", batch.id, now) if failed else None
        await self._store.update(
            batch.id,
            lambda current: (
                msgspec.structs.replace(current, status=status, finalizing_at=now, ended_at=now, **files)
                if current.active
                else None
            ),
        )
        logger.info(
            "batch %s is %s: %d succeeded, %d failed, %d expired, %d cancelled",
            batch.id, status, counts.succeeded, counts.errored, counts.expired, counts.cancelled,
        )  # fmt: skip

    # Items

    async def _work(self, model: str, tasks: TaskGroup) -> None:
        """Serve the requests for one model until there are no more."""
        try:
            slots = anyio.CapacityLimiter(self._concurrency)
            async with anyio.create_task_group() as running:
                while True:
                    async with slots:
                        item = await self._claim(model)
                    if item is None:
                        break
                    started = anyio.Event()
                    running.start_soon(self._in_slot, slots, item, started)
                    await started.wait()
        finally:
            self._workers.discard(model)
            self.notify()

    async def _claim(self, model: str) -> BatchItem | None:
        """The next request that is not in flight."""
        for item in await _retried(lambda: self._store.next_items(model, len(self._claimed) + 1)):
            if (item.batch, item.number) not in self._claimed:
                return item
        return None

    async def _in_slot(self, slots: anyio.CapacityLimiter, item: BatchItem, started: anyio.Event) -> None:
        async with slots:
            key = item.batch, item.number
            with anyio.CancelScope() as scope:
                self._claimed[key] = scope
                started.set()
                try:
                    await self._serve(item)
                except Exception:
                    logger.exception(
                        "%s: the request %r of batch %s failed", item.model, item.custom_id[:64], item.batch
                    )
                    await self._finish_item(item, _failure("internal_error", "internal error; see the gateway's log"))
                finally:
                    del self._claimed[key]

    async def _serve(self, item: BatchItem) -> None:
        """Send a request until it has a result, and store that."""
        active = await _retried(self._store.active_batches)
        batch = next((each for each in active if each.id == item.batch), None)
        if batch is None or batch.status != "in_progress":
            return
        pause, attempts = _FIRST_PAUSE_S, 0
        while self._store.wall() < batch.expires_at:
            await self._may_run(item.model)
            client = self._find_client(batch)
            if client is None:
                await self._finish_item(
                    item, _failure("invalid_api_key", "the API key of this batch is no longer valid")
                )
                return
            answer = await self._send(batch, item, client)
            result = _result(answer)
            if result is not None and (result.outcome == "succeeded" or not _is_worth_a_retry(answer)):
                await self._finish_item(item, result)
                return
            attempts += answer.status not in _BUSY
            if result is not None and attempts >= _ATTEMPTS:
                await self._finish_item(item, result)
                return
            await anyio.sleep(min(_LONGEST_PAUSE_S, max(pause, _retry_after_s(answer))) * (1 + random.random() / 4))
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
        self.notify()

    async def _finish_item(self, item: BatchItem, result: ItemResult) -> None:
        await _retried(lambda: self._store.finish(item, result))


async def _retried(call: Callable[[], Awaitable[_T]]) -> _T:
    """The result of a call to the store, repeated while the disk fails: nothing is sent again for that."""
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except StorageFailed as error:
            logger.error("%s", error.message)
        await anyio.sleep(pause)
        pause = min(_LONGEST_PAUSE_S, 2 * pause)


def _result(answer: InternalAnswer) -> ItemResult | None:
    """The answer as a result; `None` if it broke off."""
    if not answer.complete or not answer.status:
        return None
    try:
        msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return ItemResult(
        outcome="succeeded" if answer.status < 300 else "errored", status=answer.status,
        request_id=answer.headers.get("x-request-id", ""), body=msgspec.Raw(answer.body),
    )  # fmt: skip


def _failure(code: str, message: str) -> ItemResult:
    return ItemResult(outcome="errored", code=code, message=message)


def _is_worth_a_retry(answer: InternalAnswer) -> bool:
    """Whether the same request may succeed later: what is over by itself has a `Retry-After`, even if clients should not
    wait for it."""
    if "retry-after" in answer.headers:
        return answer.status >= 500 or answer.status in _BUSY
    final = answer.headers.get("x-should-retry") == "false"
    return not final and (answer.status >= 500 or answer.status in _BUSY)


def _retry_after_s(answer: InternalAnswer) -> float:
    try:
        return float(answer.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0


def _lock(path: Path) -> int | None:
    """The descriptor of the locked file; `None` if another process has it, or it cannot be made."""
    try:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | CLOSE_ON_EXEC, 0o600)
    except OSError as error:
        logger.error("batches are not served: %s", error)
        return None
    try:
        lock_file(descriptor)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
