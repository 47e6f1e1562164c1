"""The surface as a whole: slashes, HEAD, and rubbish on every route of every protocol."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from system.running_gateway import RunningGateway, StartGateway

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.registry import load_adapters

pytestmark = pytest.mark.anyio

ADAPTERS = {adapter.name: adapter for adapter in load_adapters() if adapter.name != "plain"}
VALUES = {"id": "a", "rest": "un/known", "digest": "sha256:" + "ab" * 32, "key": "x", "path": "a/version"}
HELLO = b'"messages":[{"role":"user","content":"x"}],"max_tokens":3,"prompt":"x","input":"x","content":"x"'

#: What no protocol takes: nothing, no JSON, no object, a model that is no name, twice the same, too deep, no text.
NONSENSE = {
    "nothing": b"",
    "blank": b" \r\n",
    "half": b'{"model":"a",' + HELLO,
    "list": b"[{}]",
    "word": b'"a"',
    "number": b"17",
    "model": b'{"model":17,' + HELLO + b"}",
    "object": b'{"model":{},' + HELLO + b"}",
    "deep": b'{"model":"a","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "nan": b'{"model":"a","max_tokens":NaN,' + HELLO + b"}",
    "stream": b'{"model":"a","stream":{},' + HELLO + b"}",
}
#: What some protocols accept and others reject: none may fail on it.
ODD = {
    "nulls": b'{"model":null,"messages":null,"prompt":null,"input":null,"content":null,"max_tokens":null}',
    "null content": b'{"model":"a","messages":[{"role":"user","content":null}],"max_tokens":3}',
    "empty": b'{"model":"a","messages":[],"prompt":[],"input":[],"documents":[],"tokens":[]}',
    "role": b'{"model":"a","messages":[{"role":"wizard","content":"x"}],"max_tokens":3}',
    "huge": b'{"model":"a","max_tokens":' + b"9" * 400 + b',"temperature":1e400,' + HELLO.replace(b'"max_tokens":3,', b"") + b"}",
    "shapes": b'{"model":"a","messages":[[],1,"x",{"role":[]}],"prompt":{},"input":{"a":1},"tools":"x","options":[]}',
    "not UTF-8": b'{"model":"a","messages":[{"role":"user","content":"\xff\xfe"}],"prompt":"\xff","input":"\xff"}',
    "surrogate": b'{"model":"a","messages":[{"role":"user","content":"\\ud800"}],"prompt":"\\ud800","input":"\\ud800"}',
}  # fmt: skip


def path_of(operation: Operation) -> str:
    path = re.sub(r"{(\w+)(:path)?}", lambda match: VALUES[match[1]], operation.path)
    return path if operation.query is None else f"{path}?{operation.query}=a"


def is_error(adapter: str, status: int, body: Any) -> bool:
    """Whether this is how the protocol says that something is wrong."""
    if adapter == "ollama":
        return isinstance(body, dict) and isinstance(body.get("error"), str)
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        return False
    error = body["error"]
    if not isinstance(error.get("message"), str) or not isinstance(error.get("type"), str):
        return False
    if adapter == "anthropic":
        return body["type"] == "error" and set(error) == {"type", "message"}
    if adapter == "llamacpp":
        return bool(error.get("code") == status)
    return {"param", "code"} <= set(error)


def posts(adapter: Adapter) -> list[Operation]:
    """What is asked with a JSON body, once for each name."""
    found = {
        each.name: each for each in adapter.operations if each.methods == ("POST",) and not each.path.endswith("/")
    }
    return [each for name, each in found.items() if name not in ("upload", "other")]


async def send(gateway: RunningGateway, operation: Operation, body: bytes) -> tuple[int, Any]:
    headers = {"content-type": "application/json"}
    answer = await gateway.http.post(path_of(operation), content=body, headers=headers)
    try:
        return answer.status_code, json.loads(answer.content)
    except ValueError:
        return answer.status_code, answer.text


#: These accept lists or an empty body; forms are recognised before their body is read.
LENIENT = {
    "search",
    "scale",
    "signout",
    "me",
    "lookup",
    "fetch",
    "download",
    "set_props",
    "slot",
    "tools",
    "proxy",
    "pull",
}
FORMS = {"transcriptions", "translations", "image_edits", "image_variations"}


@pytest.mark.parametrize("name", ADAPTERS)
async def test_invalid_bodies_are_rejected_in_the_clients_protocol(start_gateway: StartGateway, name: str) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for operation in posts(ADAPTERS[name]):
            if operation.name in LENIENT:
                continue
            for kind, body in NONSENSE.items():
                status, answer = await send(gateway, operation, body)
                # Only generating operations read `stream`, and Ollama finds its names in any order.
                if kind == "stream" and status != 400:
                    continue
                assert (status, is_error(name, status, answer)) == (400, True), (
                    operation.path,
                    kind,
                    status,
                    answer,
                )


@pytest.mark.parametrize("name", ADAPTERS)
async def test_unusual_bodies_cause_no_internal_error(start_gateway: StartGateway, name: str) -> None:
    async with start_gateway({"a": {"default": True, "embeddings": True}}) as gateway:
        for operation in posts(ADAPTERS[name]):
            for kind, body in ODD.items():
                status, answer = await send(gateway, operation, body)
                where = (operation.path, kind, status, answer)
                assert status < 500 or status == 501 or (name, status) == ("ollama", 500), where
                if status >= 400 and "File Not Found" not in json.dumps(answer):
                    assert is_error(name, status, answer) or is_error("llamacpp", status, answer), where
                assert "internal error" not in json.dumps(answer), where


@pytest.mark.parametrize("name", ["openai", "anthropic", "llamacpp", "lmstudio"])
def test_every_path_accepts_a_trailing_slash(name: str) -> None:
    adapter = ADAPTERS[name]
    paths = {(each.name, each.path) for each in adapter.operations}
    alone = {"watch", "download", "set_props", "slot", "follow", "stop", "lookup", "tools", "proxy", "metrics"}
    alone |= {"adapters", "scale", "download_status"}
    for operation in adapter.operations:
        if not operation.path.endswith("/") and ":path}" not in operation.path and operation.name not in alone:
            assert (operation.name, operation.path + "/") in paths


#: As Go's two routers do it: one of them knows of slashes at the end, the other of those in a row.
REDIRECTS = [
    ("GET", "/api/tags/?a=b", 301, "/api/tags?a=b"),
    ("GET", "//api/tags", 307, "/api/tags"),
    ("POST", "/api//chat", 307, "/api/chat"),
    ("POST", "/api/chat/", 307, "/api/chat"),
    ("HEAD", "/api/version/", 307, "/api/version"),
    ("POST", "/api/tags/", 404, None),
    ("GET", "//api/nothing", 404, None),
    ("GET", "/api//evil.example/", 404, None),
    ("GET", "//api/v1/models", 200, None),
]


@pytest.mark.parametrize(("method", "path", "status", "location"), REDIRECTS)
async def test_ollamas_paths_with_extra_slashes_are_redirected(
    start_gateway: StartGateway, method: str, path: str, status: int, location: str | None
) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        answer = await gateway.http.request(method, gateway.http.base_url.copy_with(raw_path=path.encode()))
        assert (answer.status_code, answer.headers.get("location")) == (status, location)


async def test_get_routes_answer_head(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for name, adapter in ADAPTERS.items():
            for operation in adapter.operations:
                if (
                    name == "ollama"
                    or "GET" not in operation.methods
                    or operation.name in ("watch", "other_get", "metrics", "upstream")
                ):
                    continue
                headers = {operation.header: "x"} if operation.header else {}
                answers = [
                    await gateway.http.request(how, path_of(operation), headers=headers) for how in ("GET", "HEAD")
                ]
                got, looked = answers
                assert looked.content == b""
                assert (looked.status_code, looked.headers.get("content-type"), looked.headers.get("content-length")) == (
                    got.status_code, got.headers.get("content-type"), got.headers.get("content-length"),
                ), operation.path  # fmt: skip
