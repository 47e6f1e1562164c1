"""The driver of discoveries: when backends are asked, and what happens to their answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fakes import model_lists
from fakes.ports import free_port
from fakes.scripted_server import ScriptedServer, start_scripted_server

from hostler.adapters.remote_models import ListUnavailable, RemoteModel
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.discovery import ModelDiscovery, ask_models
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.registry import build_backends
from hostler.gateway.backends.transport import Backend
from hostler.gateway.gateway_settings import DiscoverySettings
from hostler.gateway.settings import Settings

pytestmark = pytest.mark.anyio

HOURLY = DiscoverySettings(every_s=3600)


class Reports:
    """The models that were reported, and when there are new ones."""

    def __init__(self) -> None:
        self.models: dict[str, list[str]] = {}
        self.count = 0
        self._changed = anyio.Event()

    def add(self, backend: str, models: tuple[RemoteModel, ...]) -> None:
        self.models[backend] = [model.name for model in models]
        self.count += 1
        self._changed.set()

    async def until(self, models: dict[str, list[str]]) -> None:
        with anyio.fail_after(20):
            while self.models != models:
                self._changed = anyio.Event()
                await self._changed.wait()


@asynccontextmanager
async def backends_at(url: str, **settings: Any) -> AsyncIterator[dict[str, Backend]]:
    transport = LanTransport()
    backend = BackendSettings(**{"kind": "openai", "url": url, **settings})
    yield build_backends(Settings(backends={"box": backend}), [], transport, transport)
    await transport.aclose()


@asynccontextmanager
async def discovering(
    server: ScriptedServer, reports: Reports, settings: DiscoverySettings = HOURLY, **backend: Any
) -> AsyncIterator[tuple[ModelDiscovery, dict[str, Backend]]]:
    async with backends_at(server.url, **backend) as backends, anyio.create_task_group() as tasks:
        discovery = ModelDiscovery(backends, settings, reports.add, time.monotonic)
        tasks.start_soon(discovery.run)
        with anyio.fail_after(20):
            await discovery.first()
        yield discovery, backends
        tasks.cancel_scope.cancel()


async def test_changes_are_reported_and_nothing_else() -> None:
    reports = Reports()
    async with start_scripted_server() as server:
        server.documents = {"/v1/models": {"data": [{"id": "a"}]}}
        async with discovering(server, reports, DiscoverySettings(every_s=0.01)):
            await reports.until({"box": ["a"]})
            asked = len(server.heads)
            with anyio.fail_after(20):
                while len(server.heads) < asked + 3:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
            assert reports.count == 1
            server.documents = {"/v1/models": {"data": [{"id": "b"}, {"id": "a"}]}}
            await reports.until({"box": ["a", "b"]})


async def test_a_backend_that_fails_keeps_its_models_and_its_problem_is_known() -> None:
    reports = Reports()
    async with start_scripted_server() as server:
        server.documents = {"/v1/models": {"data": [{"id": "a"}]}}
        async with discovering(server, reports, DiscoverySettings(every_s=0.01)) as (discovery, _):
            server.documents = {"/other": {}}
            with anyio.fail_after(20):
                while discovery.views["box"].problem is None:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
            view = discovery.views["box"]
    assert ([model.name for model in view.models], reports.count) == (["a"], 1)
    assert view.problem is not None and "status 404" in view.problem


async def test_an_unforeseen_error_ends_neither_the_gateway_nor_the_discovery(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[list[str]] = []

    def on_models(_: str, models: tuple[RemoteModel, ...]) -> None:
        seen.append([model.name for model in models])
        if len(seen) == 1:
            raise ZeroDivisionError

    async with start_scripted_server() as server, backends_at(server.url) as backends:
        server.documents = {"/v1/models": {"data": [{"id": "a"}]}}
        async with anyio.create_task_group() as tasks:
            discovery = ModelDiscovery(backends, HOURLY, on_models, time.monotonic)
            tasks.start_soon(discovery.run)
            with anyio.fail_after(20):
                await discovery.first()
                assert "the log has the error" in str(discovery.views["box"].problem)
                assert "ZeroDivisionError" in caplog.text
                server.documents = {"/v1/models": {"data": [{"id": "b"}]}}
                discovery.request("box")
                while discovery.views["box"].problem is not None:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    assert seen == [["a"], ["b"]]


async def test_the_prefix_that_has_a_list_is_used_from_then_on() -> None:
    async with start_scripted_server() as server:
        server.documents = model_lists.ROOTLESS
        async with discovering(server, Reports()) as (discovery, backends):
            assert (discovery.views["box"].prefix, backends["box"].health_path) == ("", "/models")


async def test_a_refresh_asks_again_but_not_time_after_time() -> None:
    reports = Reports()
    now = [100.0]
    async with (
        start_scripted_server() as server,
        backends_at(server.url) as backends,
        anyio.create_task_group() as tasks,
    ):
        server.documents = {"/v1/models": {"data": [{"id": "a"}]}}
        discovery = ModelDiscovery(backends, HOURLY, reports.add, lambda: now[0])
        tasks.start_soon(discovery.run)
        await discovery.first()
        server.documents = {"/v1/models": {"data": [{"id": "b"}]}}
        assert not await discovery.refresh()
        now[0] += 60
        assert await discovery.refresh()
        assert reports.models == {"box": ["b"]}
        tasks.cancel_scope.cancel()


async def test_a_backend_that_returns_is_asked_soon() -> None:
    reports, port = Reports(), free_port()
    async with backends_at(f"http://127.0.0.1:{port}") as backends, anyio.create_task_group() as tasks:
        discovery = ModelDiscovery(backends, HOURLY, reports.add, time.monotonic)
        tasks.start_soon(discovery.run)
        await discovery.first()
        assert "refused" in (discovery.views["box"].problem or "")
        async with start_scripted_server(port) as server:
            server.documents = {"/v1/models": {"data": [{"id": "a"}]}}
            discovery.request("box")
            discovery.request("unknown")
            await reports.until({"box": ["a"]})
        tasks.cancel_scope.cancel()


async def test_models_of_an_earlier_run_are_known_until_the_backend_answers() -> None:
    async with backends_at(f"http://127.0.0.1:{free_port()}") as backends:
        known = {"box": (RemoteModel(name="old"),)}
        discovery = ModelDiscovery(backends, HOURLY, Reports().add, time.monotonic, known=known)
    assert [model.name for model in discovery.views["box"].models] == ["old"]


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async with start_scripted_server() as server, backends_at(server.url) as backends:
        server.documents = {"/v1/models": {"data": [{"id": "x" * 100} for _ in range(100)]}}
        with pytest.raises(ListUnavailable, match="larger than"):
            await ask_models(backends["box"], {}, max_answer=1000)
