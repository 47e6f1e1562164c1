"""Files and batches of one gateway: the store, the routes, and what serves the requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

import anyio

from hostler.adapters.base import Adapter
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.batches.anthropic_api import AnthropicBatches
from hostler.gateway.batches.http import OtherGateways, PassOnRoutes, UploadLimit
from hostler.gateway.batches.openai_api import OpenAIBatches
from hostler.gateway.batches.records import Batch, BatchItem
from hostler.gateway.batches.runner import BatchRunner
from hostler.gateway.batches.store import BatchStore
from hostler.gateway.context import Client
from hostler.gateway.gateway_settings import BatchSettings
from hostler.gateway.internal_request import InternalAnswer, internal_scope, send_internally
from hostler.gateway.routing import Router
from hostler.gateway.state_files import state_file
from hostler.profiles.file_reading import home_path

#: How often servers without a supervisor are looked at, since nothing tells when they are used, in seconds.
_LOOK_S: Final = 0.1

_VERSION: Final = ((b"anthropic-version", b"2023-06-01"),)
_PREEMPTED: Final = InternalAnswer(status=503, headers={"retry-after": "1"}, body=b"{}", complete=True)


class Batches:
    """`find_client` returns whose requests those of a batch are, `None` if the key is no longer valid. `must_wait(model)`
    is whether requests for the model have to wait for others, or for its host. `pass_on`: a backend may have
    files and batches of its own. `gateways` are those of the cluster. `run` until cancelled."""

    def __init__(
        self,
        settings: BatchSettings,
        *,
        find_client: Callable[[Batch], Client | None],
        must_wait: Callable[[str], bool],
        pass_on: bool,
        gateways: OtherGateways | None = None,
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._must_wait = must_wait
        self._gateways = gateways
        self._router: Router | None = None
        self._file = home_path(settings.file) if settings.file else state_file("batches.sqlite3")
        self._begun = anyio.Event()
        self._pass_on = PassOnRoutes(expected=pass_on)
        self._store = BatchStore(self._file, max_bytes=settings.max_size, max_age_s=settings.max_age_s, wall=wall)
        self._runner = BatchRunner(
            self._store,
            send=self._send,
            find_client=find_client,
            may_run=self._may_run,
            max_requests=settings.max_requests,
            concurrency=settings.concurrency,
        )

    def routes(self, adapters: Sequence[Adapter], known: Collection[RouteMatch]) -> list[RouteMatch]:
        """The routes; `known` are the others, those of paths that no protocol describes among them."""
        self._pass_on.by_method = {
            method: route
            for route in known
            if route.operation.path == "/{rest:path}"
            for method in (*route.operation.methods, "DELETE")
        }
        by_name = {adapter.name: adapter for adapter in adapters}
        limits: dict[str, Any] = {
            "max_file": self._settings.max_file,
            "uploads": UploadLimit(),
            "gateways": self._gateways,
        }
        found: list[RouteMatch] = []
        if (openai := by_name.get("openai")) is not None:
            found += OpenAIBatches(self._store, openai, self._notify, self._pass_on, **limits).routes()
        if (anthropic := by_name.get("anthropic")) is not None:
            batches = AnthropicBatches(
                self._store, anthropic, self._notify, self._pass_on, max_requests=self._settings.max_requests, **limits
            )
            found += batches.routes()
        return found

    def use(self, router: Router) -> None:
        """Send requests by these routes."""
        self._router = router

    async def run(self) -> None:
        """Serve batches until cancelled."""
        try:
            if await self._is_absent():
                await self._begun.wait()
            await self._runner.run()
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.aclose()

    async def _is_absent(self) -> bool:
        """Whether nothing was ever stored. A file that cannot be looked at is reported when it is used."""
        try:
            return not await anyio.Path(self._file).exists()
        except OSError:
            return False

    def _notify(self) -> None:
        self._begun.set()
        self._runner.notify()

    async def _may_run(self, model: str) -> None:
        while self._must_wait(model):  # noqa: ASYNC110 - nothing tells when that changes
            await anyio.sleep(_LOOK_S)

    async def _send(self, batch: Batch, item: BatchItem, client: Client) -> InternalAnswer:
        assert self._router is not None, "routes are built before anything runs"
        request_id = f"{batch.id}-{item.number}"[-64:].encode()
        headers = ((b"x-request-id", request_id), *(_VERSION if batch.protocol == "anthropic" else ()))
        scope = internal_scope("POST", batch.endpoint, headers=headers, background=True)
        answers: list[InternalAnswer] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(self._watch, item.model, tasks.cancel_scope))
            answers.append(await send_internally(self._router, scope, client, item.body))
            tasks.cancel_scope.cancel()
        return answers[0] if answers else _PREEMPTED

    async def _watch(self, model: str, scope: anyio.CancelScope) -> None:
        """Cut the request off when the server of its model is used by others."""
        while not self._must_wait(model):  # noqa: ASYNC110 - as above
            await anyio.sleep(_LOOK_S)
        scope.cancel()
