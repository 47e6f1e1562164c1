"""A model's names, in every protocol and wherever a protocol names it: in bodies, forms, queries and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from system.hostler_process import run_hostler
from system.running_gateway import RunningGateway, StartGateway

PROFILES: dict[str, Any] = {
    "org/b:q4": {"aliases": ["b", "vendor/b"]},
    "A-model": {"aliases": ["gpt-4"]},
    "zeta": {},
    "hidden": {"listed": False},
}
SPELLINGS = ("org/b:q4", "b", "b:latest", "vendor/b", "vendor/b:latest", "Vendor/B")
HELLO: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]

pytestmark = pytest.mark.anyio


async def asked_by_body(gateway: RunningGateway, path: str, name: str) -> httpx.Response:
    body = {"model": name, "messages": HELLO, "prompt": "x", "input": "x", "content": "x", "max_tokens": 3}
    return await gateway.http.post(path, json=body)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", "/chat/completions/", "/v1/completions", "/api/chat", "/api/generate"),
        *("/v1/messages", "/completion", "/tokenize", "/api/v0/chat/completions", "/some/unknown/path"),
    ],
)
async def test_a_body_may_name_a_model_by_any_of_its_names(start_gateway: StartGateway, path: str) -> None:
    async with start_gateway(PROFILES) as gateway:
        for name in SPELLINGS:
            answer = await asked_by_body(gateway, path, name)
            assert answer.headers["x-hostler-model"] == "org/b:q4", name
        assert gateway.starts() == ["org/b:q4"]
        engine_knows = [json.loads(note["body"])["model"] for note in gateway.requests()]
        assert set(engine_knows) == {"org/b:q4"}


async def test_a_form_may_name_a_model_and_keeps_every_other_byte(start_gateway: StartGateway) -> None:
    sound = b"RIFF\r\n--bound\x00\xff\r\nmodel"
    parts = [
        b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n',
        sound,
        b'\r\n--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--bound--\r\n',
    ]
    form = b"".join(parts)
    headers = {"content-type": "multipart/form-data; boundary=bound"}
    async with start_gateway(PROFILES) as gateway:
        for path in ("/v1/audio/transcriptions", "/some/unknown/path"):
            answer = await gateway.http.post(path, content=form.replace(b"%s", b"vendor/b"), headers=headers)
            assert answer.headers["x-hostler-model"] == "org/b:q4"
            note = gateway.requests()[-1]
            assert note["headers"]["content-type"] == headers["content-type"]
            sent = form.replace(b"%s", b"org/b:q4")
            assert note["headers"]["content-length"] == str(len(sent))
            assert note["body"] == sent.decode("utf-8", "replace")


async def test_a_body_keeps_every_other_byte(start_gateway: StartGateway) -> None:
    body = '{ "x" : 1.50e0, "model":"vendor/b"  ,"stream" :true, "messages":[ ], "é":"\\u00e9", "t":{"model":"b"} }'
    # Engines are asked how far they have read a prompt, unless clients get no progress.
    async with start_gateway(PROFILES, gateway={"switching": {"progress": "off"}}) as gateway:
        await gateway.http.post("/v1/chat/completions", content=body.encode())
        note = gateway.requests()[-1]
    sent = body.replace('"vendor/b"', '"org/b:q4"')
    assert note["body"] == sent
    assert note["headers"]["content-length"] == str(len(sent.encode()))


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models/{}", "/models/{}", "/api/v0/models/{}", "/props?model={}", "/slots?model={}"),
        *("/v1/models/org%2Fb%3Aq4", "/v1/models/vendor%2Fb"),
    ],
)
async def test_a_path_or_a_query_may_name_a_model_by_any_of_its_names(start_gateway: StartGateway, path: str) -> None:
    async with start_gateway(PROFILES) as gateway:
        for name in SPELLINGS:
            assert (await gateway.http.get(path.format(name))).status_code == 200, name
        assert (await gateway.http.get(path.replace("b", "x").format("x"))).status_code == 404
        assert gateway.starts() == []


async def test_model_lists_are_sorted_and_show_loaded_but_not_hidden_models(start_gateway: StartGateway) -> None:
    async def listed() -> list[dict[str, Any]]:
        return (await gateway.http.get("/v1/models")).json()["data"]  # type: ignore[no-any-return]

    async with start_gateway(PROFILES) as gateway:
        before = await listed()
        names = [entry["id"] for entry in before]
        assert names == sorted(["A-model", "gpt-4", "org/b:q4", "b", "vendor/b", "zeta"])
        assert {entry["status"]["value"] for entry in before} == {"unloaded"}
        await gateway.chat("zeta")
        after = await listed()
        assert [entry["id"] for entry in after] == ["zeta", *names[:-1]]
        assert {entry["id"] for entry in after if entry["status"]["value"] == "loaded"} == {"zeta"}
        created = {entry["id"]: entry["created"] for entry in before}
        assert {entry["id"]: entry["created"] for entry in after} == created
        for path in ("/api/tags", "/api/v1/models", "/api/v0/models"):
            assert "hidden" not in (await gateway.http.get(path)).text
        anthropic = await gateway.http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert "hidden" not in anthropic.text
        assert (await gateway.chat("hidden")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/api/chat", "/api/generate", "/api/embed"),
        *("/v1/messages", "/completion", "/tokenize", "/api/v1/models/load", "/some/unknown/path"),
    ],
)
async def test_invalid_json_and_unknown_models_are_rejected(start_gateway: StartGateway, path: str) -> None:
    async with start_gateway(PROFILES) as gateway:
        broken = await gateway.http.post(path, content=b'{"model":', headers={"content-type": "application/json"})
        assert broken.status_code == 400
        assert "error" in broken.json()
        unknown = await asked_by_body(gateway, path, "no-such-model")
        assert unknown.status_code == 404
        # Ollama's clients look for its own words, and nothing else.
        assert ("not found" if path.startswith("/api/") and "v1" not in path else "org/b:q4") in unknown.text
        assert gateway.starts() == []


async def test_an_upstreams_error_passes_unchanged(start_gateway: StartGateway) -> None:
    script = {"status": 418, "error": "I am a teapot"}
    async with start_gateway({"a": {"script": script}}) as gateway:
        for stream in (False, True):
            answer = await gateway.chat("a", stream=stream)
            error = {"code": 418, "message": "I am a teapot", "type": "server_error"}
            assert (answer.status_code, answer.json()) == (418, {"error": error})


@pytest.mark.parametrize("claim", ["one", "x", "X:latest"])
def test_two_profiles_with_one_name_are_rejected_naming_both(tmp_path: Path, claim: str) -> None:
    profiles = {"one": {"model": "/m.gguf", "aliases": ["x"]}, "two": {"model": "/m.gguf", "aliases": [claim]}}
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps({"gateway": {"listen": ["127.0.0.1:0"]}, "profiles": profiles}))
    with (
        pytest.raises(AssertionError, match=r"one.*two|two.*one"),
        run_hostler("up", "--config", str(path), errors=tmp_path / "log"),
    ):
        pass
