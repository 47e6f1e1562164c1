"""Requests for downloads in the background: those of this gateway's own models; others are a server's."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Protocol

from hostler.adapters.canonical import Download, FindDownloads, Passthrough, StartDownload
from hostler.adapters.errors import BadRequest, NotFound
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


class Downloads(Protocol):
    """Downloads by id; see `BackgroundDownloads`."""

    async def start(self, model: str) -> Download: ...

    def find(self, job_id: str) -> Download | None: ...

    def all(self) -> tuple[Download, ...]: ...


class DownloadableModels(Protocol):
    """Which models are downloaded here."""

    def downloads(self, model: str) -> bool: ...

    def gets_new(self) -> bool: ...

    def is_present(self, model: str) -> bool: ...


class DownloadsMiddleware(RequestMiddleware):
    """Starts downloads and reports them, and passes on everything else.

    `kinds` are those of the backends. Servers of some kind may know what this gateway does not; LM Studio's downloads
    new models itself.
    """

    def __init__(
        self, app: ASGIApp, *, downloads: Downloads, models: DownloadableModels, kinds: Collection[str]
    ) -> None:
        super().__init__(app)
        self._downloads = downloads
        self._models = models
        self._has_servers = any(kind != "supervisor" for kind in kinds)
        self._has_lmstudio = "lmstudio" in kinds

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        request = context.request
        if isinstance(request, StartDownload):
            name = self._own_name(request)
            if name is not None:
                return self._start(context, request, name)
        elif isinstance(request, FindDownloads):
            found = self._find(request)
            if found is not None:
                return context.writer.respond(context.adapter.downloads_info(request, found))
        else:
            return call_next()
        if not self._has_servers:
            raise _not_found(request)
        context.request = Passthrough(origin=request.origin, any_server=True)
        return call_next()

    async def _start(self, context: RequestContext, request: StartDownload, name: str) -> None:
        context.model = name
        if request.quantization is not None and request.reference is None:
            raise BadRequest(
                f"`quantization` is for links to the Hugging Face Hub; {name} is one file.", param="quantization"
            )
        found = Download() if self._models.is_present(name) else await self._downloads.start(name)
        await context.writer.respond(context.adapter.downloads_info(request, (found,)))

    def _own_name(self, request: StartDownload) -> str | None:
        """The name of a model that is downloaded here; `None` for one that is left to a server."""
        if self._models.downloads(request.model):
            return request.model
        reference = request.reference
        if reference is None:
            return None
        is_own = self._models.downloads(reference) or (not self._has_lmstudio and self._models.gets_new())
        return reference if is_own else None

    def _find(self, request: FindDownloads) -> tuple[Download, ...] | None:
        """The downloads here that are asked for; `None` if a server may have others."""
        if request.id is None:
            found = self._downloads.all()
            return None if not found and self._has_lmstudio else found
        download = self._downloads.find(request.id)
        return None if download is None else (download,)


def _not_found(request: StartDownload | FindDownloads) -> NotFound:
    if isinstance(request, FindDownloads):
        return NotFound(f"no download here has the id {request.id!r}")
    return NotFound(
        f"{request.model} is no model of the configuration, and others are downloaded here only by a link to their "
        "repository on huggingface.co; use `hostler get NAME` on the server's machine"
    )
