"""Programs other than llama-server as engines: started, asked in their protocol, and stopped, through the gateway.

No package registry has most of these programs: stubs stand for them, with the same options, routes and keys.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.stub_programs import StubPrograms
from system.running_gateway import RunningGateway, StartGateway, is_complete

from hostler.supervisor.scheduling.hanging_engines import MAX_TIMEOUTS

pytestmark = pytest.mark.anyio


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubPrograms:
    """Stubs of the programs, first on the PATH."""
    programs = StubPrograms(tmp_path)
    monkeypatch.setenv("PATH", f"{programs.folder}{os.pathsep}{os.environ['PATH']}")
    return programs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is a folder, as on the Hugging Face Hub."""
    model = tmp_path / "Qwen3-8B"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 40960}')
    return model


STUB = ["stub", "--host", "${host}", "--port", "${port}", "--name", "${name}", "--key", "${key}"]


async def ask(gateway: RunningGateway, path: str, **body: Any) -> httpx.Response:
    return await gateway.http.post(path, json=body)


@pytest.mark.parametrize(
    "engine",
    [
        "vllm", "sglang", "tabbyapi", "koboldcpp", "mlx-lm", "llama-cpp-python", "vllm-docker", "vllm-podman",
        "sglang-docker", "tabbyapi-podman", "koboldcpp-docker", "koboldcpp-podman", "llama-cpp-python-docker",
    ],
)  # fmt: skip
async def test_a_profile_names_a_preset_and_no_more(
    start_gateway: StartGateway, stubs: StubPrograms, folder: Path, tmp_path: Path, engine: str
) -> None:
    profile = {"model": str(folder), "engine": engine, "env": stubs.env()}
    engines = {"tabbyapi": {"cwd": str(tmp_path)}} if engine == "tabbyapi" else {}
    async with start_gateway({"qwen": profile}, engines=engines) as gateway:
        whole = await gateway.chat("qwen")
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"] == "Hello"
        async with gateway.stream("qwen") as streamed:
            assert is_complete((await streamed.aread()).decode())
        messages = await ask(
            gateway, "/v1/messages", model="qwen", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]
        )
        assert messages.json()["content"][0]["text"] == "Hello"
    assert [event["event"] for event in stubs.events() if event["event"] in ("start", "stop")] == ["start", "stop"]
    assert not stubs.containers(), "a container was left behind"


async def test_an_engine_of_ones_own_is_started_asked_and_stopped_as_its_file_says(
    start_gateway: StartGateway, stubs: StubPrograms, tmp_path: Path
) -> None:
    engine = {
        "command": " ".join(STUB) + " -m ${model} ${more}",
        "macros": {"more": ["--flag"]},
        "ready": {"path": "/ok", "status": 204, "log": "model loaded"},
        "env": {"STUB_VALUE": "${container}", "STUB_PREFIX": "/api"},
        "cwd": str(tmp_path),
        "prefix": "/api",
        "key": "x-api-key",
        "stop": {"signal": "INT"},
        "model_name": "local/${name}",
    }
    env = stubs.env(ready_status=204, says="model loaded")
    profile = {"engine": "mine", "env": env, "args": ["--context", "${context}"], "context": 1234}
    async with start_gateway({"a": profile}, engines={"mine": engine}) as gateway:
        assert (await gateway.chat("a")).json()["model"] == "local/a"
    [start] = stubs.events("start")
    assert start["argv"][-4:] == [str(tmp_path / "model.gguf"), "--flag", "--context", "1234"]
    assert (start["cwd"], start["stub"]) == (str(tmp_path), "hostler-a")
    [request] = stubs.events("request")
    assert (request["path"], request["key"]) == ("/api/v1/chat/completions", None)
    assert request["api_key"] in start["argv"]
    assert [event["signal"] for event in stubs.events("stop")] == ["INT"]


async def test_forms_and_binary_answers_pass_through(start_gateway: StartGateway, stubs: StubPrograms) -> None:
    profiles = {
        "whisper": {"engine": "whisper-server", "env": stubs.env()},
        "painter": {"engine": "sd-server", "env": stubs.env()},
        "voice": {"engine": "mine", "env": stubs.env()},
    }
    engines = {"mine": {"command": STUB, "ready": "/ok", "serves": ["speech"]}}
    async with start_gateway(profiles, engines=engines) as gateway:
        form = {"model": "whisper", "response_format": "json"}
        file = {"file": ("a.wav", b"RIFF" + bytes(70_000), "audio/wav")}
        heard = await gateway.http.post("/v1/audio/transcriptions", data=form, files=file)
        assert heard.status_code == 200, heard.text
        assert int(heard.json()["text"].split()[0]) > 70_000
        image = await ask(gateway, "/v1/images/generations", model="painter", prompt="a lighthouse")
        assert image.json()["data"][0]["b64_json"] == "aW1hZ2U="
        speech = await ask(gateway, "/v1/audio/speech", model="voice", input="Hello", voice="a")
        assert (speech.headers["content-type"], speech.content) == ("audio/mpeg", bytes(range(256)) * 40)
        other = await ask(gateway, "/sdapi/v1/txt2img", model="painter", prompt="x")
        assert other.json()["path"] == "/sdapi/v1/txt2img"


@pytest.mark.parametrize("runtime", ["docker", "podman"])
async def test_sound_and_images_come_from_containers(
    start_gateway: StartGateway, stubs: StubPrograms, runtime: str
) -> None:
    profiles = {
        "whisper": {"engine": f"whisper-server-{runtime}", "env": stubs.env()},
        "painter": {"engine": f"sd-server-{runtime}", "env": stubs.env()},
    }
    async with start_gateway(profiles) as gateway:
        file = {"file": ("a.wav", b"RIFF", "audio/wav")}
        heard = await gateway.http.post("/v1/audio/transcriptions", data={"model": "whisper"}, files=file)
        assert heard.status_code == 200, heard.text
        image = await ask(gateway, "/v1/images/generations", model="painter", prompt="a lighthouse")
        assert image.status_code == 200, image.text
    assert [event["program"] for event in stubs.events("start")] == ["whisper-server", "sd-server"]


async def test_a_container_of_koboldcpp_gets_every_option_of_its_profile(
    start_gateway: StartGateway, stubs: StubPrograms, tmp_path: Path
) -> None:
    model, projector = tmp_path / "the model's.gguf", tmp_path / "$(touch x).gguf"
    model.write_bytes(b"GGUF")
    projector.write_bytes(b"GGUF")
    profile = {
        "engine": "kobold", "model": str(model), "mmproj": str(projector), "gpu_layers": "all", "threads": 3,
        "context": 8192, "env": stubs.env(),
    }  # fmt: skip
    engines = {"kobold": {"base": "koboldcpp-docker", "macros": {"options": ["--usecuda"]}}}
    async with start_gateway({"a": profile}, engines=engines) as gateway:
        assert (await gateway.chat("a")).status_code == 200
    [start] = stubs.events("start")
    words = start["argv"]
    pairs = dict(pairwise(words))
    given = {name: pairs[name] for name in ("--model", "--mmproj", "--gpulayers", "--threads", "--contextsize")}
    assert given == {
        "--model": str(model), "--mmproj": str(projector), "--gpulayers": "999", "--threads": "3", "--contextsize": "8192",
    }  # fmt: skip
    assert "--usecuda" in words
    assert "--draftmodel" not in words


@pytest.mark.parametrize(
    ("layers", "given"), [("all", ["--n_gpu_layers", "999"]), ("auto", []), (7, ["--n_gpu_layers", "7"])]
)
async def test_engines_that_take_numbers_get_numbers_of_layers(
    start_gateway: StartGateway, stubs: StubPrograms, layers: Any, given: list[str]
) -> None:
    profile = {"engine": "llama-cpp-python", "gpu_layers": layers, "env": stubs.env()}
    async with start_gateway({"a": profile}) as gateway:
        assert (await gateway.chat("a")).status_code == 200
    [start] = stubs.events("start")
    words = start["argv"]
    at = words.index("--n_gpu_layers") if "--n_gpu_layers" in words else len(words)
    assert words[at : at + 2] == given


async def test_a_chat_for_an_engine_without_chat_is_refused_before_it_is_started(
    start_gateway: StartGateway, stubs: StubPrograms
) -> None:
    async with start_gateway({"whisper": {"engine": "whisper-server", "env": stubs.env()}}) as gateway:
        answer = await gateway.chat("whisper")
        assert answer.status_code == 400
        assert not stubs.events("start")


async def test_an_engine_without_a_model(start_gateway: StartGateway, stubs: StubPrograms) -> None:
    engines = {"mine": {"command": STUB, "ready": {"port": True}}}
    profile = {"engine": "mine", "env": stubs.env(), "model": None}
    async with start_gateway({"tool": profile}, engines=engines) as gateway:
        assert (await gateway.chat("tool")).status_code == 200


async def test_a_name_on_the_hub_is_left_to_the_engine(start_gateway: StartGateway, stubs: StubPrograms) -> None:
    profile = {"engine": "vllm", "model": "Qwen/Qwen3-8B", "env": stubs.env()}
    async with start_gateway({"qwen": profile}) as gateway:
        assert (await gateway.chat("qwen")).status_code == 200
    [start] = stubs.events("start")
    assert start["argv"][:2] == ["serve", "Qwen/Qwen3-8B"]


async def test_what_an_earlier_supervisor_left_behind_is_removed(
    start_gateway: StartGateway, stubs: StubPrograms, folder: Path, tmp_path: Path
) -> None:
    profile = {"model": str(folder), "engine": "vllm-docker", "env": stubs.env()}
    # A container of that name whose supervisor was killed.
    (tmp_path / "hostler-qwen.pid").write_text("999999999")
    os.environ["STUB_LOG"] = str(stubs.log)
    try:
        async with start_gateway({"qwen": profile}) as gateway:
            assert (await gateway.chat("qwen")).status_code == 200
    finally:
        del os.environ["STUB_LOG"]
    assert stubs.events("docker")[0]["argv"] == ["rm", "--force", "hostler-qwen"]


async def test_a_missing_program_is_named_to_the_client(start_gateway: StartGateway) -> None:
    engines = {"mine": {"command": ["/nowhere/server", "--port", "${port}"]}}
    async with start_gateway({"a": {"engine": "mine"}}, engines=engines) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 503
        assert "engine" in answer.json()["error"]["message"]


async def test_any_path_of_an_engine_is_reached_by_the_name_of_its_model(
    start_gateway: StartGateway, stubs: StubPrograms
) -> None:
    async with start_gateway({"org/tool": {"engine": "sd-server", "env": stubs.env()}}) as gateway:
        version = await gateway.http.get("/upstream/org%2Ftool/version")
        assert version.json() == {"version": "stub"}
        form = await gateway.http.post("/upstream/org%2Ftool/api/upload?x=1", files={"file": ("a.png", b"PNG")})
        assert form.json()["path"] == "/api/upload?x=1"
        for path in ("/upstream/org%2Ftool/api/sound", "/api-of-it/sound?model=org/tool"):
            sound = await gateway.http.post(path, content=b"RIFF\x00\xff")  # without a type
            assert sound.json()["bytes"] == 6, sound.text
            assert stubs.events("request")[-1]["content_type"] == "application/octet-stream"
        broken = await gateway.http.post("/upstream/org%2Ftool/api/sound", content=b'{"a": 1')
        assert broken.status_code == 400
        state = await gateway.http.get("/upstream/org%2Ftool/slots")
        assert state.status_code == 404
        unknown = await gateway.http.get("/upstream/unknown/version")
        assert unknown.status_code == 404
        for path in ("/upstream/org%2Ftool", "/upstream//version", "/upstream/org%2Ftool/../admin"):
            assert (await gateway.http.get(path)).status_code == 404


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=a", "/anything"])
async def test_a_websocket_is_refused_with_the_status_that_makes_clients_use_http(
    start_gateway: StartGateway, path: str
) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with start_gateway({"a": {}}) as gateway:
        refused = await gateway.http.get(path, headers=handshake)
        assert (refused.status_code, refused.headers["upgrade"]) == (426, "HTTP/1.1")
        assert (await gateway.chat("a")).status_code == 200


@pytest.mark.parametrize("events", [0, 1], ids=["before-the-first-token", "after-it"])
async def test_an_engine_that_sends_only_keep_alives_is_restarted(
    start_gateway: StartGateway, stubs: StubPrograms, events: int
) -> None:
    engines = {"mine": {"command": STUB, "ready": "/ok"}}
    profile = {"engine": "mine", "env": stubs.env(hangs_after=events), "first_byte_s": 0.1, "between_bytes_s": 0.1}
    async with start_gateway({"a": profile}, engines=engines) as gateway:
        for _ in range(MAX_TIMEOUTS):
            async with gateway.stream("a") as answer:
                await answer.aread()
        await gateway.until(lambda: stubs.events("stop"))
        assert len(stubs.events("start")) == 1
        assert (await gateway.chat("a")).status_code == 200, "it is started again on demand"
        assert len(stubs.events("start")) == 2
