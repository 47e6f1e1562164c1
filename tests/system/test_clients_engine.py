"""The real engine with the real model, and the official packages of Ollama and Anthropic as clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import ollama
import pytest
from system.hostler_process import HostlerProcess, run_hostler, write_shipped_model_config

CONFIGURATION = """
gateway: {listen: ["127.0.0.1:0"], queue: {max_wait_s: 100}}
profiles:
  smollm2:
    model: "%s"
    sha256: %s
    threads: 1
    default: true
    embeddings: true
    args: ["--pooling", "mean"]
"""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[HostlerProcess]:
    """`hostler up` with its default options."""
    folder = tmp_path_factory.mktemp("up")
    path = write_shipped_model_config(folder, CONFIGURATION)
    with run_hostler("up", "--config", path, errors=folder / "log") as up:
        yield up


@pytest.fixture
def theirs(running: HostlerProcess) -> Iterator[ollama.Client]:
    """Ollama's client. It has no way to be closed but this."""
    client = ollama.Client(host=running.address, timeout=120)
    yield client
    client._client.close()


@pytest.fixture
def claude(running: HostlerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.address, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def test_ollamas_package_lists_and_shows_the_model(theirs: ollama.Client) -> None:
    (listed,) = theirs.list().models
    assert (listed.model, listed.details and listed.details.quantization_level) == ("smollm2:latest", "Q4_1")
    shown = theirs.show("smollm2")
    assert shown.capabilities == ["embedding"]
    assert (shown.modelinfo or {})["llama.context_length"] == 4096


def test_ollamas_package_chats(theirs: ollama.Client) -> None:
    options = {"temperature": 0, "seed": 1, "num_predict": 12}
    pieces = list(theirs.chat(model="smollm2", messages=QUESTION, stream=True, options=options))
    words = "".join(piece.message.content or "" for piece in pieces)
    whole = theirs.chat(model="smollm2:latest", messages=QUESTION, options=options)
    assert words.strip()
    assert whole.message.content == words
    last = pieces[-1]
    assert (last.done, last.done_reason, last.eval_count) == (True, "length", 12)
    assert (last.total_duration or 0) >= (last.eval_duration or 0) > 0
    assert [each.model for each in theirs.ps().models] == ["smollm2:latest"]


def test_ollamas_package_generates_and_keeps_to_a_schema(theirs: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    options = {"num_predict": 30, "temperature": 0}
    answer = theirs.generate(model="smollm2", prompt="Seven as JSON", format=schema, options=options)
    assert answer.response.replace(" ", "").replace("\n", "") == '{"n":7}'


def test_ollamas_package_embeds(theirs: ollama.Client) -> None:
    answer = theirs.embed(model="smollm2", input=["one", "two"])
    assert [len(vector) for vector in answer.embeddings] == [576, 576]


def test_ollamas_package_raises_ollamas_own_error(theirs: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        theirs.chat(model="no-such-model", messages=QUESTION)
    assert (unknown.value.status_code, unknown.value.error) == (404, "model 'no-such-model' not found")


def test_anthropics_package_chats(claude: anthropic.Anthropic) -> None:
    asked = {"model": "smollm2", "messages": QUESTION, "max_tokens": 4, "extra_body": {"temperature": 0}}
    with claude.messages.stream(system="Be brief.", **asked) as stream:  # type: ignore[arg-type]
        words = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert words.strip()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 4)
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) > 10
    whole = claude.messages.create(system="Be brief.", **asked)  # type: ignore[call-overload]
    assert [block.text for block in whole.content] == [words]


def test_anthropics_package_counts_and_lists(claude: anthropic.Anthropic) -> None:
    count = claude.messages.count_tokens(model="smollm2", messages=QUESTION)  # type: ignore[arg-type]
    assert 5 < count.input_tokens < 60
    assert [model.id for model in claude.models.list()] == []  # a list of chat models


def test_anthropics_package_raises_anthropics_own_error(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="no-such-model", messages=QUESTION, max_tokens=5)  # type: ignore[arg-type]
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
