"""What a model certainly cannot do is refused before it is loaded, in every protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from fakes.scripted_server import start_scripted_server
from system.running_gateway import StartGateway

from hostler.adapters.error_body import read_error

pytestmark = pytest.mark.anyio

PNG = "iVBORw0KGgo="
URL = f"data:image/png;base64,{PNG}"
LONG = "many words, " * 4000
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": said([{"type": "image_url", "image_url": {"url": URL}}])}),
    "responses": ("/v1/responses", {"input": said([{"type": "input_image", "image_url": URL}])}),
    "anthropic": ("/v1/messages", {"max_tokens": 9, "messages": said(
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}])}),
    "ollama": ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [PNG]}]}),
    "lmstudio": ("/api/v1/chat", {"input": [{"type": "image", "data_url": URL}]}),
}  # fmt: skip
TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": said("x"), "tools": [TOOL]}),
    "responses": ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {}}]}),
    "anthropic": ("/v1/messages", {"max_tokens": 9, "messages": said("x"), "tools": [{"name": "f", "input_schema": {}}]}),
    "ollama": ("/api/chat", {"messages": said("x"), "tools": [TOOL]}),
    "lmstudio": ("/api/v0/chat/completions", {"messages": said("x"), "tools": [TOOL]}),
}  # fmt: skip
TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": said(LONG)}),
    "responses": ("/v1/responses", {"input": LONG}),
    "anthropic": ("/v1/messages", {"max_tokens": 9, "messages": said(LONG)}),
    "ollama": ("/api/chat", {"messages": said(LONG), "truncate": False}),
    "lmstudio": ("/api/v1/chat", {"input": LONG}),
    "llamacpp": ("/completion", {"prompt": LONG}),
    "embedding": ("/v1/embeddings", {"input": ["a", LONG]}),
}
ALL = [*((IMAGES, client, "image", "vision") for client in IMAGES), *((TOOLS, client, "tools", "tools") for client in TOOLS),
       *((TOO_LONG, client, "context", "too long") for client in TOO_LONG)]  # fmt: skip


def text_model(folder: Path) -> str:
    """A model file whose template knows no tools, and that sees nothing."""
    keys = [
        (name, kind, "{{ messages }}" if name == "tokenizer.chat_template" else value) for name, kind, value in LLAMA
    ]
    file = folder / "text.gguf"
    file.write_bytes(GgufWriter().bytes(keys, TENSORS))
    return str(file)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("requests", "client", "word", "other_word"), ALL)
async def test_it_is_refused_before_anything_is_loaded(
    start_gateway: StartGateway, tmp_path: Path,
    requests: dict[str, tuple[str, dict[str, Any]]], client: str, word: str, other_word: str, stream: bool,
) -> None:  # fmt: skip
    path, body = requests[client]
    profiles = {"busy": {}, "text": {"model": text_model(tmp_path), "context": 512}}
    async with start_gateway(profiles) as gateway:
        assert (await gateway.chat("busy")).status_code == 200
        response = await gateway.http.post(path, json={"model": "text", "stream": stream, **body})
        assert response.status_code == 400, response.text
        details = read_error(response.content)
        assert details is not None
        assert word in details.message or other_word in details.message
        assert gateway.starts() == ["busy"]


@pytest.mark.parametrize("arguments", [["--mmproj", "projector.gguf"]])
async def test_what_arguments_may_add_is_left_to_the_engine(
    start_gateway: StartGateway, tmp_path: Path, arguments: list[str]
) -> None:
    profiles = {"text": {"model": text_model(tmp_path), "context": 512, "args": arguments}}
    path, body = IMAGES["openai"]
    async with start_gateway(profiles) as gateway:
        response = await gateway.http.post(path, json={"model": "text", **body})
        assert "does not support images" not in response.text
        assert gateway.starts() == ["text"]


async def test_another_hop_may_be_able(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        backends = {"other": {"kind": "openai", "url": server.url, "models": {"text": "there"}}}
        profiles = {"text": {"model": text_model(tmp_path), "context": 512}}
        async with start_gateway(profiles, backends=backends) as gateway:
            for requests in (IMAGES, TOOLS, TOO_LONG):
                path, body = requests["openai"]
                response = await gateway.http.post(path, json={"model": "text", **body})
                assert response.status_code == 200, response.text
                assert response.headers["x-hostler-backend"] == "other"
            assert gateway.starts() == []
