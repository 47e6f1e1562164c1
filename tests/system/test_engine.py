"""The real engine with the real model, and the official `openai` package as the client."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from system.hostler_process import HostlerProcess, run_hostler, write_shipped_model_config

# One thread: two that wait for each other at every step take seconds for a word when something else runs, too.
CONFIGURATION = """
gateway: {listen: ["127.0.0.1:0"], queue: {max_wait_s: 100}}
profiles:
  smollm2:
    model: "%s"
    sha256: %s
    threads: 1
    default: true
  smollm2-long:
    base: smollm2
    context: 8192
    default: false
"""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def configured(folder: Path) -> str:
    """A configuration file in `folder`: the shipped profiles, on a free port."""
    return write_shipped_model_config(folder, CONFIGURATION)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[HostlerProcess]:
    """`hostler up` with its default options."""
    folder = tmp_path_factory.mktemp("up")
    with run_hostler("up", "--config", configured(folder), errors=folder / "log") as up:
        yield up


@pytest.fixture
def client(running: HostlerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.address}/v1", api_key="unused", max_retries=0, timeout=120) as each:
        yield each


def question(text: str = "What is the capital of France?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ready_model(running: HostlerProcess) -> dict[str, object]:
    status = httpx.get(f"{running.address}/admin/status").json()
    return next(model for model in status["hosts"][0]["host"]["models"] if model["state"] == "ready")


def test_lists_the_models_with_the_context_that_runs(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["smollm2", "smollm2-long"]
    assert models["smollm2"].context_length == 4096  # type: ignore[attr-defined]
    assert client.models.retrieve("smollm2-long").context_length == 8192  # type: ignore[attr-defined]


def test_streams_from_one_model_then_the_other_then_the_first(client: openai.OpenAI, running: HostlerProcess) -> None:
    pids = []
    for model in ("smollm2", "smollm2-long", "smollm2"):
        stream = client.chat.completions.create(
            model=model,
            messages=question(),  # type: ignore[arg-type]
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert words.strip()
        assert chunks[-1].usage is not None
        assert 0 < chunks[-1].usage.completion_tokens <= 12
        answering = ready_model(running)
        assert answering["model"] == model
        pids.append(answering["pid"])
    assert len(set(pids)) == 3


def test_a_whole_answer_equals_the_streamed_one(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "messages": question(), "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    streamed = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    words = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert whole.choices[0].message.content == words
    assert whole.object == "chat.completion"
    assert whole.usage.completion_tokens == 16
    assert len(whole.choices[0].logprobs.content) == 16
    assert whole.timings["predicted_n"] == 16


def test_completes_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt="Once upon a", max_tokens=4, temperature=0)
    assert answer.choices[0].text
    assert answer.usage is not None


def test_errors_become_the_packages_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=question())  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    assert "smollm2-long" in unknown.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smollm2", messages=question("word " * 5000))  # type: ignore[arg-type]


def test_a_client_disconnect_frees_the_engine(client: openai.OpenAI, running: HostlerProcess) -> None:
    with client.chat.completions.create(
        model="smollm2",
        messages=question("Tell a very long story"),  # type: ignore[arg-type]
        max_tokens=3000,
        stream=True,
    ) as stream:
        next(iter(stream))
    # With one slot, the next answer can only come when the story has been given up.
    answer = client.chat.completions.create(model="smollm2", messages=question(), max_tokens=2)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "length"


def test_an_engine_killed_in_mid_stream_is_an_error_and_the_next_request_works(
    client: openai.OpenAI, running: HostlerProcess
) -> None:
    stream = client.chat.completions.create(
        model="smollm2",
        messages=question("Tell a very long story"),  # type: ignore[arg-type]
        max_tokens=3000,
        stream=True,
    )
    chunks = iter(stream)
    for _ in range(5):
        next(chunks)
    os.kill(int(str(ready_model(running)["pid"])), signal.SIGKILL)
    with pytest.raises(openai.APIError) as broken:
        for _ in chunks:
            pass
    assert broken.value.code == "backend_broken"
    answer = client.chat.completions.create(model="smollm2", messages=question(), max_tokens=2)  # type: ignore[arg-type]
    assert answer.choices[0].message.content


def test_no_engine_survives_a_killed_gateway(tmp_path: Path, real_model: Path) -> None:
    with run_hostler("up", "--config", configured(tmp_path), errors=tmp_path / "log") as up:
        httpx.post(
            f"{up.address}/v1/completions", json={"model": "smollm2", "prompt": "a", "max_tokens": 1}, timeout=60
        )
        family = psutil.Process(up.process.pid).children(recursive=True)
        assert family
        up.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []


def test_a_stopped_gateway_finishes_its_answer_and_stops_its_engine(tmp_path: Path, real_model: Path) -> None:
    with run_hostler("up", "--config", configured(tmp_path), errors=tmp_path / "log") as up:
        asked = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 40, "stream": True}
        with httpx.stream("POST", f"{up.address}/v1/completions", json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            family = psutil.Process(up.process.pid).children(recursive=True)
            up.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert up.process.wait(40) == 0
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
