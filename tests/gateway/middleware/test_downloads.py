"""Downloads: the gateway's own models are downloaded here, others by a server, if there is one."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from fakes.requests import FakeWriter, make_context

from hostler.adapters.canonical import Download, FindDownloads, Origin, Passthrough, Request, StartDownload
from hostler.adapters.errors import BadRequest, NotFound
from hostler.adapters.lmstudio.adapter import LMStudioAdapter
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.downloads import DownloadsMiddleware

pytestmark = pytest.mark.anyio

ORIGIN = Origin(wire="lmstudio", operation="download", body=b"{}")
LINK = "https://huggingface.co/org/repo"
JOB = Download(id="job_1", status="downloading", total=9)


class FakeDownloads:
    """Notes the models that are to be downloaded; it has one download."""

    def __init__(self, *jobs: Download) -> None:
        self.started: list[str] = []
        self.jobs = jobs

    async def start(self, model: str) -> Download:
        self.started.append(model)
        return JOB

    def find(self, job_id: str) -> Download | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def all(self) -> tuple[Download, ...]:
        return self.jobs


class FakeModels:
    def __init__(self, *, new: bool = True) -> None:
        self.new = new

    def downloads(self, model: str) -> bool:
        return model in ("far", "here")

    def gets_new(self) -> bool:
        return self.new

    def is_present(self, model: str) -> bool:
        return model == "here"


async def answered(
    request: Request, *kinds: str, new: bool = True, jobs: tuple[Download, ...] = (JOB,)
) -> tuple[Any, list[str], RequestContext | None]:
    """The answer's body, the models whose download was started, and the context if it was passed on."""
    downloads, passed = FakeDownloads(*jobs), list[RequestContext]()
    middleware = DownloadsMiddleware(cast(Any, None), downloads=downloads, models=FakeModels(new=new), kinds=kinds)
    writer = FakeWriter()
    context = make_context(request, writer=writer)
    context.adapter = LMStudioAdapter()

    async def call_next() -> None:
        passed.append(context)

    await middleware.dispatch(context, call_next)
    body = json.loads(writer.response.body) if writer.response is not None else None
    return body, downloads.started, passed[0] if passed else None


def start(model: str, **more: Any) -> StartDownload:
    return StartDownload(origin=ORIGIN, model=model, **more)


async def test_an_own_model_is_downloaded_unless_it_is_there() -> None:
    body, started, passed = await answered(start("far"), "supervisor", "lmstudio")
    assert (body["job_id"], started, passed) == ("job_1", ["far"], None)
    body, started, passed = await answered(start("here"), "supervisor", "lmstudio")
    assert (body, started, passed) == ({"status": "already_downloaded"}, [], None)


async def test_a_quantization_cannot_be_chosen_for_an_own_model() -> None:
    with pytest.raises(BadRequest, match="quantization"):
        await answered(start("far", quantization="Q8_0"), "supervisor")


@pytest.mark.parametrize(
    ("kinds", "new", "own"),
    [
        (("supervisor",), True, True),
        (("ollama",), True, True),
        (("lmstudio",), True, False),
        (("ollama",), False, False),
    ],
)
async def test_a_link_is_left_to_lm_studio_where_there_is_one(kinds: tuple[str, ...], new: bool, own: bool) -> None:
    _, started, passed = await answered(start(LINK, reference="hf.co/org/repo"), *kinds, new=new)
    assert started == (["hf.co/org/repo"] if own else [])
    if passed is not None:
        assert isinstance(passed.request, Passthrough) and passed.request.any_server
    assert (passed is None) == own


@pytest.mark.parametrize(
    "request_", [start("other"), start(LINK, reference="hf.co/org/repo"), FindDownloads(origin=ORIGIN, id="x")]
)
async def test_where_no_server_may_know_it_nothing_is_found(request_: StartDownload | FindDownloads) -> None:
    with pytest.raises(NotFound) as error:
        await answered(request_, "supervisor", new=False)
    named = request_.id if isinstance(request_, FindDownloads) else request_.model
    assert str(named) in str(error.value)


async def test_a_download_is_found_here_or_asked_of_a_server() -> None:
    body, _, passed = await answered(FindDownloads(origin=ORIGIN, id="job_1"), "lmstudio")
    assert (body["job_id"], passed) == ("job_1", None)
    body, _, passed = await answered(FindDownloads(origin=ORIGIN, id="job_2"), "lmstudio")
    assert body is None and passed is not None and isinstance(passed.request, Passthrough)


async def test_all_downloads_are_those_here_unless_only_lm_studio_has_some() -> None:
    find = FindDownloads(origin=ORIGIN)
    body, _, _ = await answered(find, "lmstudio")
    assert [job["job_id"] for job in body["downloading"]] == ["job_1"]
    _, _, passed = await answered(find, "lmstudio", jobs=())
    assert passed is not None
    body, _, _ = await answered(find, "supervisor", jobs=())
    assert body == {"downloading": [], "paused": [], "completed": [], "failed": []}


async def test_everything_else_is_passed_on() -> None:
    body, _, passed = await answered(Passthrough(origin=ORIGIN), "supervisor")
    assert body is None and passed is not None
