"""The operator's changes of requests: by backend and variant, for certain clients, in every client's protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fakes import model_lists
from fakes.scripted_server import start_scripted_server
from system.fallback_chain import start_chain

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/api/chat", {"messages": HELLO, "stream": False}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
    ],
)
async def test_a_clients_protocol_makes_no_difference(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    request = {"force": {"temperature": 0.5}, "limits": {"max_tokens": 5}, "system": "Be brief."}
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": server.url, "models": {"m": "there"}, "request": request}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            assert (await chain.http.post(path, json={"model": "m", **body})).status_code == 200
    ((_, sent),) = server.requests
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 5)
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_a_variant_is_listed_and_changes_requests(tmp_path: Path) -> None:
    variants = {"qwen3:high": {"model": "qwen3:8b", "request": {"force": {"think": True}}}}
    async with start_scripted_server() as server:
        server.documents = model_lists.OLLAMA
        async with start_chain(tmp_path, {"box": {"kind": "ollama", "url": server.url}}, variants=variants) as chain:
            names = [entry["id"] for entry in (await chain.http.get("/v1/models")).json()["data"]]
            tags = [entry["name"] for entry in (await chain.http.get("/api/tags")).json()["models"]]
            running = [entry["name"] for entry in (await chain.http.get("/api/ps")).json()["models"]]
            answer = await chain.chat(model="qwen3:high")
            await chain.chat(model="qwen3:8b")
    assert answer.json()["model"] in ("qwen3:high", "qwen3:8b", "there")
    assert "qwen3:high" in names
    assert "qwen3:high" in tags
    assert "qwen3:high" not in running
    assert [(body["model"], body.get("think")) for _, body in server.requests] == [
        ("qwen3:8b", True),
        ("qwen3:8b", None),
    ]


async def test_changes_for_certain_clients_leave_others_alone(tmp_path: Path) -> None:
    when = {
        "here": {"clients": ["127.0.0.0/8"], "force": {"temperature": 0}},
        "elsewhere": {"clients": ["10.0.0.0/8"], "force": {"top_p": 0}},
    }
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": server.url, "models": {"m": "there"}, "request": {"when": when}}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            await chain.chat()
    ((_, sent),) = server.requests
    assert sent["temperature"] == 0
    assert "top_p" not in sent


async def test_a_dry_run_shows_the_changes_for_each_backend_as_a_diff(tmp_path: Path) -> None:
    rules = {"drop": ["logit_bias"], "when": {"guests": {"keys": ["guest-*"], "limits": {"max_tokens": 7}}}}
    async with start_scripted_server() as server:
        backends = {
            "changed": {"kind": "openai", "url": server.url, "models": {"m": "there"}, "request": rules},
            "plain": {"kind": "anthropic", "url": server.url, "models": {"m": "there"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            query = {"model": "m"}
            all_clients = (await chain.http.get("/admin/route", params=query)).json()["hops"]
            guest = (await chain.http.get("/admin/route", params={**query, "client": "guest-1"})).json()["hops"]
    assert [len(hop["changes"]) for hop in all_clients] == [1, 0]
    assert "logit_bias" in all_clients[0]["changes"][0]
    assert any('"max_tokens": 7' in line for line in guest[0]["changes"])
    assert server.requests == []


async def test_requests_of_every_kind_are_changed_and_shown(tmp_path: Path) -> None:
    rules = {"drop": ["user"], "force": {"dimensions": 2, "temperature": 0}}
    async with start_scripted_server() as server:
        backend = {
            "kind": "openai", "url": server.url, "models": {"m": "there"}, "request": rules,
            "describe": {"m": {"capabilities": ["embedding"]}},
        }  # fmt: skip
        async with start_chain(tmp_path, {"box": backend}) as chain:
            (hop,) = (await chain.http.get("/admin/route", params={"model": "m"})).json()["hops"]
            server.prepared = [(200, "application/json", b'{"data": [{"url": "https://example/cat.png"}]}')] * 3
            for path in ("/v1/moderations", "/v1/images/generations", "/v1/score"):
                await chain.http.post(path, json={"model": "m", "user": "u", "odd": 1})
    assert any('"dimensions": 2' in line for line in hop["changes"])
    assert not any("temperature" in line for line in hop["changes"])
    assert [body for _, body in server.requests] == [{"model": "there", "odd": 1, "dimensions": 2}] * 3


@pytest.mark.parametrize("kind", ["openai", "llamacpp", "ollama", "lmstudio"])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits", "/v1/videos"])
async def test_the_fields_of_forms_are_changed(tmp_path: Path, kind: str, path: str) -> None:
    rules = {
        "drop": ["user"], "default": {"language": "de"}, "force": {"size": "512x512", "temperature": 0},
        "rename": {"quality": "detail"}, "limits": {"seconds": 8}, "system": "Be nice.",
    }  # fmt: skip
    given = {"model": "m", "user": "u", "quality": "high", "seconds": "20", "size": "9x9"}
    content = bytes(range(256)) * 300
    async with start_scripted_server() as server:
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}, "request": rules}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            server.prepared = [(200, "application/json", b'{"data": [{"url": "https://example/cat.png"}]}')] * 2
            response = await chain.http.post(path, data=given, files={"file": ("a.png", content, "image/png")})
            assert response.status_code == 200
    body = server.bodies[0]
    fields = dict(re.findall(rb'name="(\w+)"\r\n\r\n([^\r]*)\r\n', body))
    assert fields == {
        b"model": b"there", b"language": b"de", b"size": b"512x512", b"detail": b"high", b"seconds": b"8"
    }  # fmt: skip
    assert content in body


async def test_without_rules_the_bytes_of_a_request_arrive_as_they_were_sent(tmp_path: Path) -> None:
    body = b'{ "messages" : [{"role":"user","content":"Hi"}],  "model":"there", "temperature": 1.50 }'
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": server.url, "models": {"there": "there"}}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            await chain.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert server.bodies == [body]
