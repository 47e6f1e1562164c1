"""Downloads on a remote host: started, followed and cancelled over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import FetchProgress, SourceError
from hostler.supervisor.client import ClientLimits, SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    Snapshot,
    SupervisorError,
    SupervisorUnreachable,
    SupportsPulling,
    UnknownProfile,
)
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.model_files import FileDescription

pytestmark = pytest.mark.anyio
ServeAPI = Callable[..., AbstractAsyncContextManager[str]]
PROFILES = (
    Profile(name="m", model="hf:a/b/m.gguf", aliases=("em",)),
    Profile(name="long", model="hf:a/b/m.gguf", context=8192),
)


class RemoteHost:
    """A host whose one file is delivered when `deliver` is set."""

    def __init__(self) -> None:
        self.asked, self.deliver, self.ended = anyio.Event(), anyio.Event(), anyio.Event()
        self.here = False
        self.error: Exception | None = None
        self.manager = EngineManager(PROFILES, SupervisorSettings(), prepare=self.prepare, describe=self.describe)

    async def prepare(self, profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
        report(FetchProgress(file="m.gguf", phase="downloading", completed=1, total=2))
        self.asked.set()
        try:
            await self.deliver.wait()
        finally:
            self.ended.set()
        if self.error is not None:
            raise self.error
        self.here = True
        return Path("/m.gguf")

    def describe(self, profile: Profile) -> FileDescription:
        return FileDescription(facts=ModelFacts(architecture="llama"), size=7) if self.here else FileDescription()


@pytest.fixture
async def far(serve_api: ServeAPI) -> Any:
    host = RemoteHost()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.manager.run)
        await host.manager.started()
        async with serve_api(host.manager, token="t") as url:
            limits = ClientLimits(attempts=1)
            async with SupervisorClient(url, "t", limits=limits) as client:
                yield host, client
        tasks.cancel_scope.cancel()


async def test_a_download_reports_progress_and_describes_every_profile_of_the_file(far: Any) -> None:
    host, client = far
    received: list[FetchProgress] = []

    def hear(progress: FetchProgress) -> None:
        received.append(progress)
        host.deliver.set()

    assert isinstance(client, SupportsPulling) and isinstance(host.manager, SupportsPulling)
    await client.pull("em", report=hear)
    assert received and (received[0].completed, received[0].total) == (1, 2)
    assert [profile.size for profile in (await client.status()).profiles] == [7, 7]


async def test_a_download_by_a_switch_describes_every_profile_of_the_file(far: Any) -> None:
    host, _ = far
    host.deliver.set()
    async with host.manager.events() as events:
        with pytest.raises(SupervisorError):  # there is no engine for it, which is another matter
            await host.manager.switch("m")
        with anyio.fail_after(20):
            async for event in events:
                if isinstance(event, Snapshot) and [profile.size for profile in event.host.profiles] == [7, 7]:
                    break


async def test_the_last_client_to_disconnect_cancels_the_download(far: Any) -> None:
    host, client = far
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.pull, "m")
        await host.asked.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(20):
        await host.ended.wait()
    assert not host.here


async def test_a_failed_download_has_its_reason(far: Any) -> None:
    host, client = far
    host.error = SourceError("could not fetch m.gguf: no such file over there")
    host.deliver.set()
    with pytest.raises(SupervisorError, match="no such file over there") as raised:
        await client.pull("m")
    assert raised.value.failure.kind == "source_unavailable"
    with pytest.raises(UnknownProfile):
        await client.pull("nobody")


async def test_a_supervisor_without_downloads_rejects_a_pull(serve_api: ServeAPI, fake_supervisor: Any) -> None:
    async with serve_api(fake_supervisor, token="t") as url, SupervisorClient(url, "t") as client:
        with pytest.raises(SupervisorUnreachable, match="only when a model is started"):
            await client.pull("alpha")
