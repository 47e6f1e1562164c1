"""Models from registries, for operators: search, what fits, downloads and their progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Annotated, Final, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, ModelUnavailable, NotFound, TooManyRequests
from hostler.gateway.admin.http import decode_body, json_endpoint, json_response
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.events import printable
from hostler.gateway.model_offer import DownloadedModel, Registries
from hostler.gateway.model_pull import pull_in_thread
from hostler.gateway.routing import gateway_route
from hostler.profiles.downloads import Cancellation
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import FetchProgress, ReportProgress, SourceError

logger = logging.getLogger(__name__)

#: Downloads at a time, and finished ones that are remembered.
_MAX_RUNNING: Final = 4
_MAX_FINISHED: Final = 20
_MAX_WORDS: Final = 500

_T = TypeVar("_T")

DownloadState = Literal["downloading", "adding", "done", "failed", "cancelled"]

AddProfile = Callable[[str, ProfileEntry, Preset | None], Awaitable[None]]
"""Adds a profile, and waits until it is in effect. Raises `GatewayError`."""


class DownloadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Download what `model` names, as in `hostler get`, and add it as the profile `name`."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_WORDS)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class DownloadView(msgspec.Struct, frozen=True, kw_only=True):
    """A download. `file` is the one in progress, with `completed` of `total` bytes; `started_at` is in seconds since the
    epoch. `message`: why it failed, or how the model will run."""

    id: str
    model: str
    name: str
    state: DownloadState
    started_at: float
    phase: str = ""
    file: str = ""
    completed: int = 0
    total: int | None = None
    message: str = ""


class ModelDownloads:
    """Downloads in progress, and the last ones. Nothing is downloaded outside of `run`; cancelling it ends all.

    `add` adds the profile of a downloaded model, `check` raises `GatewayError` where none of that name can be added.
    """

    def __init__(
        self, registries: Registries, *, check: Callable[[str], None], add: AddProfile,
        wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._registries = registries
        self._check = check
        self._add = add
        self._wall = wall
        self._views: dict[str, DownloadView] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._queued: list[str] = []
        self._started = 0
        self._wanted = anyio.Event()

    def routes(self) -> list[RouteMatch]:
        """All for operators: each makes the gateway ask another server, with its token, or tells what it was asked."""
        one = "/admin/downloads/{id}"
        return [
            gateway_route("search_models", "/admin/registry/search", json_endpoint(self._search), scope="operate"),
            gateway_route("offer_model", "/admin/registry/model", json_endpoint(self._offer), scope="operate"),
            gateway_route("downloads", "/admin/downloads", json_endpoint(self._list), scope="operate"),
            gateway_route(
                "download", "/admin/downloads", json_endpoint(self._start), scope="operate", methods=("POST",),
                writes=True,
            ),
            gateway_route("download_state", one, json_endpoint(self._get), scope="operate"),
            gateway_route("cancel_download", one, json_endpoint(self._cancel), scope="operate", methods=("DELETE",)),
        ]  # fmt: skip

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                for download in self._queued:
                    tasks.start_soon(self._download, download)
                self._queued.clear()

    async def _search(self, request: Request) -> Response:
        """Repositories for some words, the most used first."""
        words = _query(request, "words")
        found = await _asked(partial(self._registries.search, words))
        return json_response({"repositories": found})

    async def _offer(self, request: Request) -> Response:
        """What a repository has, and what of it fits this machine."""
        name = _query(request, "name")
        offer = await _asked(partial(self._registries.offer, name))
        if offer is None:
            raise BadRequest(
                f"{printable(name, 100)} names no model; use for example hf.co/org/repo or qwen3:8b", param="name"
            )
        return json_response(offer)

    async def _list(self, request: Request) -> Response:
        """The downloads, the newest first, and why there can be none."""
        disabled: str | None = None
        try:
            self._check("")
        except Forbidden as error:
            disabled = error.message
        return json_response({"downloads": list(reversed(self._views.values())), "disabled": disabled})

    async def _get(self, request: Request) -> Response:
        return json_response(self._find(request))

    async def _start(self, request: Request) -> Response:
        """Start a download. One of the same model for the same name is joined."""
        body = await decode_body(request, DownloadBody)
        running = [each for each in self._views.values() if _is_running(each)]
        for each in running:
            if (each.model, each.name) == (body.model, body.name):
                return json_response(each, status=202)
        self._check(body.name)
        if any(each.name == body.name for each in running):
            raise Forbidden(f"{printable(body.name, 100)} is the name of a download in progress: choose another name")
        if len(running) >= _MAX_RUNNING:
            raise TooManyRequests(f"{_MAX_RUNNING} downloads are in progress; wait for one of them, or cancel one")
        self._started += 1
        download = f"d{self._started}"
        self._views[download] = DownloadView(
            id=download, model=body.model, name=body.name, state="downloading", started_at=round(self._wall(), 3)
        )
        self._scopes[download] = anyio.CancelScope()
        finished = [each for each in self._views.values() if not _is_running(each)]
        for each in finished:
            if each.name == body.name:
                del self._views[each.id]
        self._forget(each for each in finished if each.id in self._views)
        self._queued.append(download)
        self._wanted.set()
        return json_response(self._views[download], status=202)

    async def _cancel(self, request: Request) -> Response:
        """Cancel a download; what has arrived is kept for the next one. A finished one is forgotten."""
        view = self._find(request)
        if view.state == "downloading":
            self._scopes[view.id].cancel()
            self._update(view.id, state="cancelled", message="cancelled; the next download continues it")
        elif view.state == "adding":
            raise Forbidden(f"{view.name} is downloaded, and its profile is being added")
        else:
            del self._views[view.id]
        return json_response({"id": view.id, "cancelled": True})

    def _find(self, request: Request) -> DownloadView:
        wanted = request.path_params["id"]
        if wanted not in self._views:
            raise NotFound(f"there is no download {printable(wanted, 60)}; GET /admin/downloads lists them")
        return self._views[wanted]

    def _forget(self, finished: Iterable[DownloadView]) -> None:
        for view in list(finished)[:-_MAX_FINISHED]:
            del self._views[view.id]

    def _update(self, download: str, **changes: object) -> None:
        self._views[download] = msgspec.structs.replace(self._views[download], **changes)

    async def _download(self, download: str) -> None:
        view = self._views[download]

        def work(report: ReportProgress, cancellation: Cancellation) -> DownloadedModel:
            return self._registries.get(view.model, view.name, report, cancellation)

        def on_progress(progress: FetchProgress) -> None:
            known = self._views.get(download)  # one that was cancelled may be forgotten already
            if known is not None and known.state == "downloading":
                self._update(
                    download, phase=progress.phase, file=progress.file, completed=progress.completed,
                    total=progress.total,
                )  # fmt: skip

        try:
            with self._scopes[download] as scope:
                found = await pull_in_thread(work, on_progress)
            if scope.cancelled_caught:
                return
            self._update(download, state="adding", phase="")
            await self._add(view.name, found.entry, found.preset)
            self._update(download, state="done", message=found.why)
        except (SourceError, GatewayError) as error:
            message = error.message if isinstance(error, GatewayError) else str(error)
            logger.warning("%s: the download failed: %s", view.model, message)
            self._update(download, state="failed", phase="", message=message)
        except Exception:
            logger.exception("%s: the download failed", view.model)
            self._update(download, state="failed", phase="", message="internal error; see the gateway's log")
        finally:
            del self._scopes[download]


def _is_running(view: DownloadView) -> bool:
    return view.state in ("downloading", "adding")


def _query(request: Request, name: str) -> str:
    text = request.query_params.get(name, "").strip()
    if not text or len(text) > _MAX_WORDS:
        raise BadRequest(f"{name} must be a text of 1 to {_MAX_WORDS} characters", param=name)
    return text


async def _asked(ask: Callable[[Cancellation], _T]) -> _T:
    """What a registry answers. Raises `ModelUnavailable`."""
    try:
        return await pull_in_thread(lambda _, cancellation: ask(cancellation), lambda _: None)
    except SourceError as error:
        raise ModelUnavailable(str(error)) from error
