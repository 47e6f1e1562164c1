"""Every route of every adapter in both directions: the client's request, the engine's, and the client's response.

The transcripts are `routes.json` in each adapter's folder. After an intended change, write them again with
`HOSTLER_WRITE_TRANSCRIPTS=1` and review the difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hostler.adapters.base import Adapter, Incoming, Operation
from hostler.adapters.canonical import (
    Chunk,
    LoadRequest,
    ModelInfoRequest,
    ModelOperation,
    ProgressStep,
    ResponseHead,
    StoredRequest,
    ToolCall,
    Usage,
)
from hostler.adapters.errors import GatewayError
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.registry import load_adapters
from hostler.profiles.schema import ModelFacts

FOLDER = Path(__file__).parent.parent / "transcripts"
WRITES = os.environ.get("HOSTLER_WRITE_TRANSCRIPTS") == "1"
ADAPTERS = {adapter.name: adapter for adapter in load_adapters()}

FACTS = ModelFacts(architecture="llama", parameters=134515008, quantization="Q4_1", metadata={"llama.block_count": 30})
SMOL = ModelCard(
    name="org/smol", aliases=("tiny",), state="loaded", context=4096, created=1_700_000_000, digest="ab" * 32,
    modified_at=1_700_000_000.25, size=98362745, facts=FACTS, capabilities=("completion", "tools"),
)  # fmt: skip
COLD = ModelCard(name="cold", context=32768, created=1_700_000_001, digest="cd" * 32, modified_at=1_700_000_001.0)
LISTING = ModelList(
    cards=(SMOL, COLD),
    index={"org/smol": SMOL, "tiny": SMOL, "cold": COLD},
    active="org/smol",
    version="1.0",
)

# The model's response to every inference request.
SAID = (
    Chunk(reasoning="Hm."),
    Chunk(text="It "),
    Chunk(text="is."),
    Chunk(tool_calls=(ToolCall(index=0, id="call_1", name="look", arguments='{"at":'),)),
    Chunk(tool_calls=(ToolCall(index=0, arguments='"x"}'),)),
    Chunk(finish="tool_calls", usage=Usage(prompt_tokens=7, completion_tokens=5)),
)
# The steps of every model operation.
STEPS = (
    ProgressStep(step="looking"),
    ProgressStep(step="fetching", digest="ab" * 32, completed=7, total=9),
    ProgressStep(step="verifying"),
    ProgressStep(step="reusing", digest="ab" * 32),
    ProgressStep(step="writing"),
    ProgressStep(step="done"),
)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
FORM = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF\r\n--b--\r\n'

#: The request body of each operation.
ASKED: dict[str, Any] = {
    "chat": HELLO, "completions": {"prompt": "Once"}, "completion": {"prompt": "Once"}, "generate": {"prompt": "Hello"},
    "messages": {"max_tokens": 9, **HELLO}, "count_tokens": HELLO, "count": HELLO, "responses": {"input": "Hello"},
    "chat_v1": {"input": "Hello", "system_prompt": "Be brief."}, "embeddings": {"input": "one", "prompt": "one"}, "embed": {"input": ["one", "two"]}, "embedding": {"content": "one"},
    "rerank": {"query": "q", "documents": ["d", "e"]}, "infill": {"input_prefix": "a", "input_suffix": "b"},
    "tokenize": {"content": "one two"}, "detokenize": {"tokens": [1, 2]}, "apply_template": HELLO,
    "speech": {"input": "Hello"}, "images": {"prompt": "a cat"}, "moderations": {"input": "Hello"},
    "copy": {"source": "tiny", "destination": "small"}, "create": {"model": "brief", "from": "tiny", "system": "Be brief."},
    "unload": {"instance_id": "tiny"}, "scale": [{"id": 0}],
}  # fmt: skip
FORMS = ("transcriptions", "translations", "image_edits", "image_variations")


def question(operation: Operation, method: str) -> dict[str, Any]:
    """A request for an operation, as in a transcript."""
    path = re.sub(r"{(\w+)(:path)?}", lambda found: VALUES[found[1]], operation.path)
    requested: dict[str, Any] = {"method": method, "path": path}
    if operation.query is not None:
        requested["query"] = f"{operation.query}=tiny"
    if operation.resumes:
        requested["query"] = "conv_id=x"
    if operation.header is not None:
        requested["headers"] = {operation.header: "2023-06-01"}
    if operation.name in FORMS:
        requested["headers"] = {"content-type": "multipart/form-data; boundary=b"}
        requested["body"] = FORM
    elif method == "POST" or operation.name == "delete":
        body = ASKED.get(operation.name, {})
        requested["body"] = {"model": "tiny", **body} if isinstance(body, dict) else body
    return requested


VALUES = {"id": "tiny", "digest": "sha256:" + "ab" * 32, "key": "x", "rest": "some/path", "path": "tiny/v1/other"}


def respond(adapter: Adapter, operation: Operation, requested: dict[str, Any]) -> dict[str, Any]:
    """The request to an engine, and the client's response, whole and streamed."""
    result: dict[str, Any] = {"ask": requested}
    try:
        request = decoded(adapter, operation, requested)
        if isinstance(request, ModelInfoRequest):
            response = adapter.model_info(request, LISTING)
            return {**result, "answer": readable(response.body), "status": response.status, "type": response.media_type}
        result["becomes"] = type(request).__name__
        if isinstance(request, (LoadRequest, StoredRequest)):
            return result
        if isinstance(request, ModelOperation):
            encoder = adapter.encoder(request, response_id="id-1", created=1_700_000_000, progress="off")
            encoder.start(ResponseHead())
            body = b"".join([*(encoder.encode(Chunk(step=step)) for step in STEPS), encoder.finish()])
            return {**result, "answer": readable(body), "type": encoder.media_type}
        upstream = LlamaCppUpstream()
        expanded = request if upstream.speaks(request.origin.wire) else adapter.expand(request)
        sent = upstream.build(expanded, model="org/smol", stream=True)
        result["sent"] = {"method": sent.method, "path": sent.path, "body": readable(sent.body)}
    except GatewayError as error:
        response = adapter.error_response(error, operation)
        return {**result, "answer": readable(response.body), "status": response.status, "type": response.media_type}
    if result["becomes"] in ("ChatRequest", "CompletionRequest"):
        for form, stream in (("answer", False), ("streamed", True)):
            again = decoded(adapter, operation, {**requested, "body": {**requested["body"], "stream": stream}})
            encoder = adapter.encoder(again, response_id="id-1", created=1_700_000_000, progress="off")
            encoder.start(ResponseHead(media_type="text/event-stream"))
            body = b"".join([*(encoder.encode(chunk) for chunk in SAID), encoder.finish()])
            result[form], result["type" if form == "answer" else "streamed type"] = readable(body), encoder.media_type
    return result


def decoded(adapter: Adapter, operation: Operation, requested: dict[str, Any]) -> Any:
    body = requested.get("body", "")
    return adapter.decode(
        operation,
        Incoming(
            method=requested["method"],
            path=requested["path"],
            query=requested.get("query", ""),
            headers=requested.get("headers", {}),
            body=body.encode() if isinstance(body, str) else json.dumps(body).encode(),
            path_params=VALUES,
        ),
    )


def readable(body: bytes) -> Any:
    """A body in readable form: decoded JSON, or lines."""
    try:
        return json.loads(body)
    except ValueError:
        text = body.decode()
        return text.splitlines() if "\n" in text else text


def each_operation() -> list[Any]:
    """Every operation on the first of its paths for each method."""
    found: dict[tuple[str, str, str], Operation] = {}
    for adapter in ADAPTERS.values():
        for operation in adapter.operations:
            for method in operation.methods:
                found.setdefault((adapter.name, operation.name, method), operation)
    return [pytest.param(*key, operation, id="-".join(key)) for key, operation in found.items()]


def load(adapter: str) -> dict[str, Any]:
    file = FOLDER / adapter / "routes.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


@pytest.mark.parametrize(("adapter", "name", "method", "operation"), each_operation())
def test_a_route_answers_as_recorded(adapter: str, name: str, method: str, operation: Operation) -> None:
    key = f"{method} {name}"
    recorded = load(adapter)
    if WRITES:
        recorded[key] = respond(ADAPTERS[adapter], operation, question(operation, method))
        file = FOLDER / adapter / "routes.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert respond(ADAPTERS[adapter], operation, recorded[key]["ask"]) == recorded[key]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_no_recording_is_left_of_removed_routes(adapter: str) -> None:
    there = {f"{method} {each.name}" for each in ADAPTERS[adapter].operations for method in each.methods}
    assert set(load(adapter)) == there
