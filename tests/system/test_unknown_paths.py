"""Paths that the gateway does not know go to backends that may know them, and their own 404 is the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.scripted_server import ScriptedServer, start_scripted_server
from system.fallback_chain import RunningChain, start_chain
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

KINDS = ("openai", "llamacpp", "ollama", "lmstudio", "anthropic")
ROUTES = ("/v1/decisions", "/v1/systemone", "/v1/score", "/pooling", "/v1/classify", "/v1/videos", "/v1/moderations")
#: Routes that the gateway knows and these kinds of backends may not.
FOREIGN_KINDS = ("openai", "ollama", "lmstudio", "anthropic")
FOREIGN: dict[str, dict[str, Any]] = {
    "/tokenize": {"content": "Hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/audio/speech": {"input": "Hi"},
}
JSON = "application/json"

each_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def backend_of_kind(tmp_path: Path, kind: str, **more: Any) -> AsyncIterator[tuple[ScriptedServer, RunningChain]]:
    async with start_scripted_server() as server:
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}, **more}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            yield server, chain


@each_kind
@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_reaches_every_kind_of_backend_with_the_models_name_there(
    tmp_path: Path, kind: str, path: str
) -> None:
    answer = b'{ "decision" :  [0.25] }'
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(200, JSON, answer)]
        response = await chain.http.post(path, json={"model": "m", "odd": [1]})
    assert (response.status_code, response.content) == (200, answer)
    assert server.requests == [(path, {"model": "there", "odd": [1]})]


@each_kind
@pytest.mark.parametrize(("status", "answer"), [(201, b'{"id":"v1"}'), (202, b'{"id":"v1"}'), (204, b"")])
async def test_a_backend_has_its_own_word_for_success(tmp_path: Path, kind: str, status: int, answer: bytes) -> None:
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(status, JSON, answer)]
        response = await chain.http.post("/v1/videos", json={"model": "m"})
        assert (response.status_code, response.content) == (status, answer)
        server.prepared = [(200, JSON, b'{"id":"v2"}')]
        again = await chain.http.post("/v1/videos", json={"model": "m"})
        assert (again.status_code, again.content) == (200, b'{"id":"v2"}')


@each_kind
async def test_a_backends_own_404_is_the_answer(tmp_path: Path, kind: str) -> None:
    body = b'{"detail" : "Not Found"}'
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(404, JSON, body)]
        response = await chain.http.post("/v1/score", json={"model": "m"})
    assert (response.status_code, response.content) == (404, body)


@each_kind
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_remote_backends_404_is_the_answer_as_well(tmp_path: Path, kind: str, method: str) -> None:
    body = b'{"detail" : "no video_1"}'
    async with backend_of_kind(tmp_path, kind, local=False) as (server, chain):
        server.raw = {"/v1/other": (JSON, b"{}")}
        server.documents = {"/other": {}}
        server.prepared = [(404, JSON, body)]
        content = {"json": {"model": "m"}} if method == "POST" else {}
        response = await chain.http.request(method, "/v1/videos/video_1/remix", **content)
    assert response.status_code == 404
    assert response.content == (body if method == "POST" else b"{}"), "as the server has sent it"


@pytest.mark.parametrize("kind", FOREIGN_KINDS)
@pytest.mark.parametrize("path", FOREIGN)
async def test_a_route_of_other_servers_is_forwarded_and_a_404_comes_back_as_it_is(
    tmp_path: Path, kind: str, path: str
) -> None:
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        for status, media_type, body in (
            (404, "application/json; charset=utf-8", b'{"detail" : "Not Found"}'),
            (404, "text/plain", b"404 page not found"),
            (200, JSON, b'{ "odd" :  [0.25] }'),
        ):
            server.requests.clear()
            server.prepared = [(status, media_type, body)]
            response = await chain.http.post(path, json={"model": "m", **FOREIGN[path]})
            assert (response.status_code, response.content) == (status, body)
            assert response.headers["content-type"] == media_type
            assert server.requests == [(path, {"model": "there", **FOREIGN[path]})]


async def test_a_backend_that_does_not_know_the_path_is_followed_by_one_that_may(tmp_path: Path) -> None:
    async with start_scripted_server() as first, start_scripted_server() as second:
        first.prepared, second.prepared = [(404, JSON, b"{}")], [(200, JSON, b'{"score": 1}')]
        backends = {
            "first": {"kind": "ollama", "url": first.url, "models": {"m": "a"}},
            "second": {"kind": "openai", "url": second.url, "models": {"m": "b"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            response = await chain.http.post("/v1/score", json={"model": "m"})
    assert response.json() == {"score": 1}
    assert second.requests == [("/v1/score", {"model": "b"})]


async def test_a_path_without_a_model_goes_to_the_servers_in_order(tmp_path: Path) -> None:
    async with backend_of_kind(tmp_path, "openai") as (server, chain):
        server.documents = {"/v1/vector_stores": {"data": ["mine"]}}
        assert (await chain.http.get("/v1/vector_stores")).json() == {"data": ["mine"]}
        assert (await chain.http.get("/v1/vector_stores/unknown")).status_code == 404


@each_kind
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "POST"])
@pytest.mark.parametrize("path", ["/v1/skills/s", "/v1/vector_stores/vs_1/files/f", "/v1/containers/c"])
async def test_any_method_of_an_unknown_path_is_forwarded_as_it_is(
    tmp_path: Path, kind: str, method: str, path: str
) -> None:
    deleted = b'{ "id" : "file-1",  "deleted" : true }'
    content = {} if method == "DELETE" else {"content": b'{"odd" :  [1]}', "headers": {"content-type": JSON}}
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(200, JSON, deleted), (404, JSON, b'{"error" : "unknown file"}')]
        response = await chain.http.request(method, path, **content)
        unknown = await chain.http.request(method, path, **content)
    assert (response.status_code, response.content) == (200, deleted)
    assert (unknown.status_code, unknown.content) == (404, b'{"error" : "unknown file"}')
    assert [(sent[0], sent[1]) for sent in server.heads if sent[0] == method] == [(method, path)] * 2
    assert server.bodies == [content.get("content", b"")] * 2


async def test_a_known_path_keeps_its_methods(tmp_path: Path) -> None:
    async with backend_of_kind(tmp_path, "openai") as (server, chain):
        for method, path in (("DELETE", "/v1/chat/completions"), ("PUT", "/v1/models"), ("DELETE", "/v1/models/m")):
            assert (await chain.http.request(method, path)).status_code == 405, path
        for path in ("/admin/unknown", "/docs/x", "/props/x", "/v1/..%2fmodels"):
            assert (await chain.http.delete(path)).status_code in (400, 404, 405), path
    assert [method for method, _, _ in server.heads if method != "GET"] == []


@each_kind
async def test_a_form_is_forwarded_with_the_models_name_there(tmp_path: Path, kind: str) -> None:
    video = b'{"id": "video_1", "status": "queued"}'
    sound = bytes(range(256))
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(200, JSON, video), (200, JSON, b'{"id": "file-1"}')]
        form = {"model": (None, "m"), "prompt": (None, "a cat"), "input_reference": ("a.png", sound, "image/png")}
        created = await chain.http.post("/v1/videos", files=form)
        upload = {"purpose": (None, "batch"), "file": ("a.jsonl", b'{"model": "m"}', "application/jsonl")}
        uploaded = await chain.http.post("/v1/containers/c/files", files=upload)
    assert (created.content, uploaded.json()) == (video, {"id": "file-1"})
    first, second = server.bodies
    assert b"\r\n\r\nthere\r\n" in first
    assert sound in first
    assert b'{"model": "m"}' in second, "the contents of a file are left alone"
    for _, path, headers in server.heads[-2:]:
        assert path in ("/v1/videos", "/v1/containers/c/files")
        assert headers["content-type"].startswith("multipart/form-data; boundary=")


async def test_bytes_of_any_kind_come_back_as_they_are(tmp_path: Path) -> None:
    film = bytes(range(256)) * 64
    async with start_scripted_server() as server:
        server.raw = {"/v1/videos/video_1/content": ("video/mp4", film)}
        backend = {"kind": "openai", "url": server.url, "models": {"m": "there"}}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            response = await chain.http.get("/v1/videos/video_1/content?variant=video")
    assert (response.headers["content-type"], response.content) == ("video/mp4", film)
    assert server.heads[-1][1] == "/v1/videos/video_1/content?variant=video"


async def test_files_are_forwarded_where_the_gateway_has_no_batches(tmp_path: Path) -> None:
    listed = {"object": "list", "data": [{"id": "file-1"}]}
    async with start_scripted_server() as server:
        server.documents = {"/v1/files": listed}
        backend = {"kind": "openai", "url": server.url, "models": {"m": "there"}}
        async with start_chain(tmp_path, {"box": backend}, gateway={"batches": {"enabled": False}}) as chain:
            assert (await chain.http.get("/v1/files")).json() == listed
            server.prepared = [(200, JSON, b'{"deleted": true}')]
            assert (await chain.http.delete("/v1/files/file-1")).json() == {"deleted": True}


async def test_a_download_loads_no_model_where_no_server_may_know_it(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        asked = await gateway.http.post("/api/v1/models/download", json={"model": "ibm/granite-4-micro"})
        assert (asked.status_code, "hostler get" in asked.text) == (404, True)
        status = await gateway.http.get("/api/v1/models/download/status/job_1")
        assert (status.status_code, "job_1" in status.text) == (404, True)
        assert gateway.starts() == []


async def test_a_download_is_lm_studios_own_with_its_status(tmp_path: Path) -> None:
    job = b'{"job_id": "job_1", "status": "downloading",  "total_size_bytes": 9}'
    async with start_scripted_server() as other, start_scripted_server() as studio:
        other.prepared = [(404, "text/plain", b"404 page not found")]
        other.documents = {"/api/tags": {"models": []}}
        studio.prepared = [(200, JSON, job)]
        studio.documents = {"/api/v1/models/download/status/job_1": {"job_id": "job_1", "status": "completed"}}
        backends = {
            "other": {"kind": "ollama", "url": other.url, "models": {"m": "a"}},
            "studio": {"kind": "lmstudio", "url": studio.url, "models": {"m": "b"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            body = {"model": "ibm/granite-4-micro", "quantization": "Q4_K_M"}
            started = await chain.http.post("/api/v1/models/download", json=body)
            done = await chain.http.get("/api/v1/models/download/status/job_1")
            unknown = await chain.http.get("/api/v1/models/download/status/job_2")
            nameless = await chain.http.post("/api/v1/models/download", json={})
    assert (started.status_code, started.content) == (200, job)
    assert studio.requests == [("/api/v1/models/download", body)]
    assert (done.status_code, done.json()["status"]) == (200, "completed")
    assert unknown.status_code == 404
    assert nameless.status_code == 400


async def test_the_path_of_the_base_url_takes_the_place_of_v1(tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": f"{server.url}/api/paas/v4?a=1", "models": {"m": "there"}}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            server.prepared = [(200, JSON, b"{}")]
            await chain.http.post("/v1/score?b=2", json={"model": "m"})
    assert server.heads[-1][1] == "/api/paas/v4/score?b=2&a=1"


async def test_a_download_goes_to_lm_studio_beside_engines_that_are_not_loaded(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    job = b'{"job_id": "job_1", "status": "downloading"}'
    async with start_scripted_server() as studio:
        studio.prepared = [(200, JSON, job)]
        studio.documents = {
            "/api/v1/models": {"models": []},
            "/api/v1/models/download/status/job_1": {"job_id": "job_1", "status": "completed"},
        }
        backends = {"studio": {"kind": "lmstudio", "url": studio.url}}
        async with start_gateway({"a": {"default": True}}, backends=backends) as gateway:
            link = {"model": "https://huggingface.co/org/repo-GGUF", "quantization": "Q4_K_M"}
            started = await gateway.http.post("/api/v1/models/download", json=link)
            ended = await gateway.http.get("/api/v1/models/download/status/job_1")
            own = await gateway.http.post("/api/v1/models/download", json={"model": "a"})
            assert gateway.starts() == []
    assert (started.content, ended.json()["status"]) == (job, "completed")
    assert own.json() == {"status": "already_downloaded"}
    assert studio.requests == [("/api/v1/models/download", link)]
