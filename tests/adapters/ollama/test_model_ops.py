"""Model operations in Ollama's protocol are decoded, rejected with its messages, and reported step by step."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from fakes.ollama_harness import SMOL, OllamaHarness

from hostler.adapters.canonical import (
    Chunk,
    CompletionRequest,
    CopyModel,
    CreateModel,
    DeleteModel,
    FindBlob,
    PullModel,
    Usage,
)
from hostler.adapters.errors import BackendRejected
from hostler.adapters.model_list import ModelList
from hostler.profiles.presets import Preset, PresetMessage

BLOB = "sha256:" + "a" * 64


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def test_a_pull_takes_model_or_name(harness: OllamaHarness) -> None:
    first, second = harness.decode("pull", {"model": "smol"}), harness.decode("pull", {"name": "smol", "stream": False})
    assert isinstance(first, PullModel) and (first.model, first.stream) == ("smol", True)
    assert isinstance(second, PullModel) and (second.model, second.stream) == ("smol", False)


def test_a_create_is_decoded(harness: OllamaHarness) -> None:
    order = harness.decode(
        "create",
        {
            "model": "library/Mario:latest",
            "from": "smol",
            "system": "You are Mario.",
            "license": ["MIT", ""],
            "parameters": {"temperature": 0.5, "stop": ["a", "b"], "num_ctx": 512, "top_k": None},
            "messages": [{"role": "User", "content": "hi"}, {"role": "assistant", "content": "Mamma mia"}],
            "stream": False,
        },
    )
    assert isinstance(order, CreateModel)
    assert (order.model, order.context, order.stream, order.files) == ("Mario", 512, False, {})
    assert order.preset == Preset(
        model="smol",
        system="You are Mario.",
        parameters={"temperature": 0.5, "stop": ("a", "b")},
        messages=(PresetMessage(role="user", content="hi"), PresetMessage(role="assistant", content="Mamma mia")),
        license=("MIT",),
    )


def test_a_create_refers_to_files_by_checksum(harness: OllamaHarness) -> None:
    order = harness.decode("create", {"model": "m", "files": {"m.gguf": "sha256-" + "A" * 64}, "license": "MIT"})
    assert isinstance(order, CreateModel)
    assert order.files == {"m.gguf": BLOB} and order.preset.license == ("MIT",)


def test_copy_delete_and_blob_are_decoded(harness: OllamaHarness) -> None:
    copy = harness.decode("copy", {"source": "smol", "destination": "registry.ollama.ai/library/x:latest"})
    delete = harness.decode("delete", {"name": "smol"})
    find = harness.decode("blob", path_params={"digest": BLOB})
    assert isinstance(copy, CopyModel) and (copy.model, copy.destination) == ("smol", "x")
    assert isinstance(delete, DeleteModel) and delete.model == "smol"
    assert isinstance(find, FindBlob) and find.digest == BLOB


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"from": "a b"}, 400, "invalid model name"),
        ({"files": {}}, 400, "unknown type"),
        ({"files": {"../m.gguf": BLOB}}, 400, "file path must be relative"),
        ({"files": {"/etc/passwd": BLOB}}, 400, "file path must be relative"),
        ({"files": {"m.gguf": "sha256:xyz"}}, 400, "invalid digest format"),
        ({"files": ["m.gguf"]}, 400, "json: cannot unmarshal array into Go struct field CreateRequest.files of type map[string]string"),
        ({"from": "smol", "quantize": "q4_0"}, 403, "quantize is not supported: upload a file that is quantized already"),
        ({"from": "smol", "adapters": {"a.gguf": BLOB}}, 403, "adapters are not supported: add --lora to the args of a profile in the configuration"),
        ({"from": "smol", "remote_host": "x"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ({"from": "smol", "parameters": {"temperature": "hot"}}, 400, 'option "temperature" must be of type float32'),
        ({"from": "smol", "parameters": {"num_ctx": 0}}, 400, 'option "num_ctx" must be of type integer'),
        ({"from": "smol", "parameters": {"x": {"y": 1}}}, 400, "parameters must be numbers, booleans, strings or lists of strings"),
        ({"from": "smol", "messages": [{"role": "tool"}]}, 400, 'messages cannot have the role "tool"'),
        ({"from": "smol", "license": 7}, 400, "unknown license type: number"),
        ({"from": "smol", "system": "x" * 300_000}, 400, "system, messages, parameters and license are limited to 131072 bytes in total"),
        ({"from": "smol", "license": ["x"] * 300_000}, 400, "system, messages, parameters and license are limited to 131072 bytes in total"),
        ({"from": "smol", "messages": [{"role": "user"}] * 201}, 400, "more than 200 messages"),
        ({"from": "smol", "parameters": {"top_k": 10**400}}, 400, 'option "top_k" must be of type integer'),
    ],
)  # fmt: skip
def test_an_invalid_create_is_rejected_with_a_reason(
    harness: OllamaHarness, body: dict[str, Any], status: int, message: str
) -> None:
    response = harness.respond("create", {"model": "m", **body})
    assert (response.status, json.loads(response.body)) == (status, {"error": message})


def test_show_has_the_settings_of_a_derived_model(harness: OllamaHarness) -> None:
    preset = Preset(
        model="smol",
        system="You are Mario.",
        parameters={"temperature": 0.5, "stop": ("<a>", "b"), "num_predict": 8, "penalize_newline": True},
        messages=(PresetMessage(role="user", content="hi"),),
        license=("MIT", "BSD"),
        parent="smol",
    )
    mario = msgspec.structs.replace(SMOL, name="mario", aliases=(), preset=preset)
    derived = OllamaHarness(ModelList(cards=(SMOL, mario), index={"smol": SMOL, "mario": mario}))
    result = derived.respond_json("show", {"model": "mario"})
    assert result["parameters"].splitlines() == [
        "num_ctx                        4096",
        "temperature                    0.5",
        'stop                           "<a>"',
        'stop                           "b"',
        "num_predict                    8",
        "penalize_newline               true",
    ]
    assert (result["license"], result["system"]) == ("MIT\nBSD", "You are Mario.")
    assert result["messages"] == [{"role": "user", "content": "hi"}]
    assert result["details"]["parent_model"] == "smol:latest"
    lines = result["modelfile"].splitlines()
    assert lines[1] == "FROM smol:latest" and 'SYSTEM """You are Mario."""' in lines
    assert {'PARAMETER stop "b"', 'LICENSE """MIT"""', 'MESSAGE user """hi"""'} <= set(lines)
    # It runs under the name of its base.
    assert [model["name"] for model in derived.respond_json("ps")["models"]] == ["smol:latest"]
    assert [model["name"] for model in derived.respond_json("tags")["models"]] == [
        "smol:latest",
        "tiny:latest",
        "mario:latest",
    ]


def rejected(tokens: int, limit: int) -> BackendRejected:
    message = f"request ({tokens} tokens) exceeds the available context size ({limit} tokens), try increasing it"
    return BackendRejected(
        message, backend="b", wire="openai", backend_status=400, headers={}, body=json.dumps({"error": {"message": message}}).encode()
    )  # fmt: skip


def test_a_too_long_raw_prompt_keeps_its_beginning_and_end(harness: OllamaHarness) -> None:
    prompt = "FIRST" + "x" * 10_000 + "LAST"
    request = harness.decode("generate", {"model": "smol", "prompt": prompt, "raw": True})
    shorter = harness.adapter.amend(request, rejected(4000, 2000))
    assert isinstance(shorter, CompletionRequest) and shorter.prompt is not None
    assert shorter.prompt.startswith("FIRST") and shorter.prompt.endswith("LAST")
    assert len(prompt) * 0.4 < len(shorter.prompt) < len(prompt) * 0.5
    kept = harness.decode("generate", {"model": "smol", "prompt": prompt, "raw": True, "truncate": False})
    assert harness.adapter.amend(kept, rejected(4000, 2000)) is None
    none = harness.decode("generate", {"model": "smol", "prompt": prompt, "raw": True, "options": {"num_keep": 0}})
    cut = harness.adapter.amend(none, rejected(4000, 2000))
    assert isinstance(cut, CompletionRequest) and cut.prompt is not None and not cut.prompt.startswith("FIRST")


def test_a_limit_of_zero_tokens_gives_no_text(harness: OllamaHarness) -> None:
    content = Chunk(text="Hello", finish="length", usage=Usage(prompt_tokens=7, completion_tokens=1))
    chat = harness.chat(stream=False, options={"num_predict": 0})
    assert json.loads(harness.encode(chat, content))["message"]["content"] == ""
    raw = harness.decode("generate", {"model": "smol", "prompt": "x", "raw": True, "options": {"num_predict": 0}})
    assert [line["response"] for line in harness.lines(raw, content)] == [""]
    assert json.loads(harness.encode(harness.chat(stream=False), content))["message"]["content"] == "Hello"
