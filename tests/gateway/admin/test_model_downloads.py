"""Downloads that operators start: their states, limits and ends."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette

from hostler.adapters.errors import Forbidden, GatewayError
from hostler.gateway.admin.model_downloads import ModelDownloads
from hostler.gateway.model_offer import DownloadedModel, FoundRepository, ModelOffer, OfferedModel
from hostler.gateway.routing import Router
from hostler.profiles.downloads import Cancellation
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import FetchProgress, ReportProgress, SourceError

pytestmark = pytest.mark.anyio


class ScriptedRegistries:
    """Answers at once; a download of `org/slow` lasts until `proceed` is set or it is cancelled."""

    def __init__(self) -> None:
        self.proceed = threading.Event()
        self.cancelled = threading.Event()
        self.got: list[str] = []

    def search(self, words: str, cancellation: Cancellation) -> list[FoundRepository]:
        if words == "broken":
            raise SourceError("the hub is away")
        return [FoundRepository(name=f"org/{words}", downloads=3)]

    def offer(self, reference: str, cancellation: Cancellation) -> ModelOffer | None:
        if "/" not in reference:
            return None
        model = OfferedModel(reference=reference, name="m", quantization="Q8_0", size=10)
        return ModelOffer(repository=reference, models=(model,))

    def get(self, reference: str, name: str, report: ReportProgress, cancellation: Cancellation) -> DownloadedModel:
        if reference == "org/broken":
            raise SourceError("no space left")
        if reference == "org/bug":
            raise ZeroDivisionError
        report(FetchProgress(file="m.gguf", phase="downloading", completed=4, total=10))
        while reference.startswith("org/slow") and not self.proceed.is_set():
            if cancellation.wait(0.01):
                self.cancelled.set()
            cancellation.check()
        self.got.append(name)
        return DownloadedModel(entry=ProfileEntry(model=reference), why="all layers on the GPU")


class Subject:
    def __init__(self) -> None:
        self.registries = ScriptedRegistries()
        self.added: list[str] = []
        self.disabled = ""
        self.downloads = ModelDownloads(self.registries, check=self.check, add=self.add, wall=lambda: 5.0)
        app = Starlette(routes=[Router(self.downloads.routes())])
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def check(self, name: str) -> None:
        if self.disabled or name == "taken":
            raise Forbidden(self.disabled or "there is a model taken already")

    async def add(self, name: str, entry: ProfileEntry, preset: Preset | None) -> None:
        if name == "late":
            raise GatewayError("the library could not be updated")
        self.added.append(name)

    async def start(self, model: str, name: str) -> httpx.Response:
        return await self.http.post("/admin/downloads", json={"model": model, "name": name})

    async def states(self) -> dict[str, str]:
        listed = (await self.http.get("/admin/downloads")).json()["downloads"]
        return {each["name"]: each["state"] for each in listed}

    async def until(self, name: str, *states: str) -> dict[str, Any]:
        with anyio.fail_after(20):
            while (await self.states()).get(name) not in states:  # noqa: ASYNC110 - asked as the page does
                await anyio.sleep(0.005)
        listed = (await self.http.get("/admin/downloads")).json()["downloads"]
        return next(each for each in listed if each["name"] == name)


@asynccontextmanager
async def running() -> AsyncIterator[Subject]:
    subject = Subject()
    async with subject.http, anyio.create_task_group() as tasks:
        tasks.start_soon(subject.downloads.run)
        yield subject
        tasks.cancel_scope.cancel()


async def test_a_download_adds_its_profile() -> None:
    async with running() as subject:
        started = await subject.start("org/m", "mine")
        assert (started.status_code, started.json()["state"]) == (202, "downloading")
        view = await subject.until("mine", "done")
        assert subject.added == ["mine"]
        assert (view["message"], view["file"], view["started_at"]) == ("all layers on the GPU", "m.gguf", 5.0)
        assert (await subject.http.get(f"/admin/downloads/{view['id']}")).json() == view


async def test_a_running_download_shows_its_progress_is_joined_and_cancelled() -> None:
    async with running() as subject:
        first = (await subject.start("org/slow", "slow")).json()
        again = (await subject.start("org/slow", "slow")).json()
        assert again["id"] == first["id"]
        with anyio.fail_after(20):
            while (view := (await subject.http.get(f"/admin/downloads/{first['id']}")).json())["completed"] != 4:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert (view["phase"], view["total"]) == ("downloading", 10)
        other = await subject.start("org/other", "slow")
        assert other.status_code == 403 and "name of a download in progress" in other.json()["error"]["message"]
        assert (await subject.http.delete(f"/admin/downloads/{first['id']}")).status_code == 200
        assert await subject.states() == {"slow": "cancelled"}
        assert await anyio.to_thread.run_sync(subject.registries.cancelled.wait, 20)
        assert (await subject.start("org/slow", "slow")).json()["id"] != first["id"]
        subject.registries.proceed.set()
        replaced = await subject.http.get(f"/admin/downloads/{first['id']}")
        assert replaced.status_code == 404, "the next download for the same name takes its place"
        await subject.until("slow", "done")
        assert subject.registries.got == ["slow"]


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("org/broken", "x", "no space left"),
        ("org/bug", "x", "internal error; see the gateway's log"),
        ("org/m", "late", "the library could not be updated"),
    ],
)
async def test_what_went_wrong_is_said(model: str, name: str, message: str) -> None:
    async with running() as subject:
        await subject.start(model, name)
        assert (await subject.until(name, "failed"))["message"] == message
        assert (await subject.start("org/m", "fine")).status_code == 202
        await subject.until("fine", "done")


async def test_only_some_downloads_run_at_a_time_and_finished_ones_are_forgotten() -> None:
    async with running() as subject:
        for number in range(30):
            await subject.start("org/m", f"m{number}")
            await subject.until(f"m{number}", "done")
        assert len(await subject.states()) == 21
        for number in range(4):
            assert (await subject.start(f"org/slow{number}", f"s{number}")).status_code == 202
        refused = await subject.start("org/m", "fifth")
        assert refused.status_code == 429 and "4 downloads are in progress" in refused.json()["error"]["message"]


async def test_names_are_checked_before_anything_is_downloaded() -> None:
    async with running() as subject:
        assert (await subject.start("org/m", "taken")).status_code == 403
        assert (await subject.start("org/m", "")).status_code == 400
        assert (await subject.http.get("/admin/downloads/d9")).status_code == 404
        subject.disabled = "this gateway runs no engines"
        assert (await subject.http.get("/admin/downloads")).json() == {
            "downloads": [], "disabled": "this gateway runs no engines"
        }  # fmt: skip
        assert subject.registries.got == []


async def test_registries_are_asked() -> None:
    async with running() as subject:
        found = await subject.http.get("/admin/registry/search", params={"words": "tiny"})
        assert found.json()["repositories"] == [{"name": "org/tiny", "downloads": 3, "likes": 0, "note": ""}]
        offer = await subject.http.get("/admin/registry/model", params={"name": "org/m"})
        assert offer.json()["models"][0]["quantization"] == "Q8_0"
        for path, params, status, words in (
            ("search", {"words": "broken"}, 503, "the hub is away"),
            ("search", {}, 400, "words must be a text"),
            ("model", {"name": "x" * 501}, 400, "name must be a text"),
            ("model", {"name": "words only"}, 400, "names no model"),
        ):
            answer = await subject.http.get(f"/admin/registry/{path}", params=params)
            assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True)


async def test_the_end_of_the_gateway_ends_downloads() -> None:
    async with running() as subject:
        await subject.start("org/slow", "slow")
        await subject.until("slow", "downloading")
    assert subject.registries.got == []
