"""docs/compatibility.md is true: every route has its row, every row a route, and what it says is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Adapter, Incoming, Operation, Upstream
from hostler.adapters.canonical import ModelInfoRequest, Passthrough, Request
from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.llamacpp.operations import OTHER
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.passthrough import forwarded
from hostler.adapters.registry import load_adapters

PAGE = (Path(__file__).parent.parent.parent / "docs" / "compatibility.md").read_text(encoding="utf-8")
ADAPTERS = {adapter.name: adapter for adapter in load_adapters()}
BUILT_IN = ("openai", "anthropic", "ollama", "llamacpp", "lmstudio")
BACKENDS: dict[str, Upstream] = {
    "engine": LlamaCppUpstream(),
    "openai": OpenAIUpstream(),
    "ollama": OllamaUpstream(),
    "anthropic": AnthropicUpstream(),
}

CARD = ModelCard(name="m", state="loaded", context=4096, digest="ab" * 32)
LISTING = ModelList(cards=(CARD,), index={"m": CARD}, active="m", version="1")

# A value for every field that some operation needs.
BODY = {
    "model": "m", "name": "m", "source": "m", "destination": "n", "instance_id": "m", "max_tokens": 9, "input": "x",
    "messages": [{"role": "user", "content": "x"}], "prompt": "x", "content": "x", "query": "x", "documents": ["x"],
    "tokens": [1], "input_prefix": "x", "input_suffix": "x", "raw": True,
}  # fmt: skip


def tables(heading: str) -> list[list[str]]:
    """The rows of a section's tables, without headers."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    ends = [place for place, row in enumerate(rows) if set("".join(row)) <= {"-"}]
    return [row for place, row in enumerate(rows) if place not in ends and place + 1 not in ends]


def verdicts(adapter: str) -> dict[tuple[str, str], str]:
    """The page's entry for each method and path of an adapter."""
    found: dict[tuple[str, str], str] = {}
    for methods, paths, verdict, *_ in tables(adapter):
        for method in methods.split(", "):
            for path in re.findall(r"`(/[^`]*)`", paths):
                assert (method, path) not in found, f"{method} {path} has two rows"
                found[method, path] = verdict
    return found


def routes(adapter: Adapter) -> dict[tuple[str, str], Operation]:
    """The operations by method and path. A path with a trailing slash goes with the one without."""
    found = {(method, each.path): each for each in adapter.operations for method in each.methods}
    return {
        key: each for key, each in found.items() if (key[0], key[1].removesuffix("/")) not in found or key[1][-1] != "/"
    }


ROWS = [(name, *key) for name in BUILT_IN for key in verdicts(name)]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_route_has_a_row_and_every_row_a_route(name: str) -> None:
    assert sorted(verdicts(name)) == sorted(routes(ADAPTERS[name]))


def test_every_built_in_adapter_has_its_section() -> None:
    assert set(BUILT_IN) == set(ADAPTERS)


@pytest.mark.parametrize(("name", "method", "path"), ROWS)
def test_a_route_is_unsupported_exactly_where_the_page_says_so(name: str, method: str, path: str) -> None:
    verdict = verdicts(name)[method, path]
    assert verdict in ("full", "partial", "refused")
    operation = routes(ADAPTERS[name])[method, path]
    assert refused(ADAPTERS[name], operation, method) == (verdict == "refused")


@pytest.mark.parametrize(("name", "method", "path"), [row for row in ROWS if verdicts(row[0])[row[1:]] != "refused"])
def test_every_route_is_recorded_in_both_directions(name: str, method: str, path: str) -> None:
    file = Path(__file__).parent.parent / "transcripts" / name / "routes.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    result = recorded[f"{method} {routes(ADAPTERS[name])[method, path].name}"]
    assert {"method", "path"} <= set(result["ask"])
    # Model info has a response, chats and prompts both forms, everything else the request that is sent.
    if result.get("becomes") in ("ChatRequest", "CompletionRequest"):
        assert {"sent", "answer", "streamed"} <= set(result)
    else:
        assert set(result) & {"answer", "sent", "becomes"}


def refused(adapter: Adapter, operation: Operation, method: str) -> bool:
    """Whether the adapter refuses it, whatever the backend."""
    try:
        request = requested(adapter, operation, method)
        if not isinstance(request, ModelInfoRequest):
            return False
        response = adapter.model_info(request, LISTING)
    except GatewayError:
        return True
    # A stream of lines may contain the error.
    return response.status >= 400 or b'"error"' in response.body


def requested(adapter: Adapter, operation: Operation, method: str) -> Request:
    values = {"id": "m", "digest": "sha256:" + "ab" * 32, "key": "x", "rest": "somewhere", "path": "m/somewhere"}
    path = re.sub(r"{(\w+)(:path)?}", lambda match: values[match[1]], operation.path)
    body = b"" if method in ("GET", "HEAD") else json.dumps(BODY).encode()
    if operation.name in ("transcriptions", "translations", "image_edits", "image_variations"):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    else:
        headers = {"content-type": "application/json"}
    if operation.header is not None:
        headers[operation.header] = "x"
    query = "conv_id=x" if operation.resumes else "" if operation.query is None else f"{operation.query}=m"
    incoming = Incoming(method=method, path=path, body=body, query=query, path_params=values, headers=headers)
    request = adapter.decode(operation, incoming)
    orders = operation.name in ("load", "unload")
    return request if isinstance(request, ModelInfoRequest) or orders else adapter.validate(request, CARD)


CROSSINGS = [
    (path.rstrip("…"), backend, cell)
    for what, *cells in tables("From any protocol to any backend")
    for path in re.findall(r"`(/[^`]*)`", what)
    for backend, cell in zip(BACKENDS, cells, strict=True)
    if "the gateway's own" not in cell
]


@pytest.mark.parametrize(("path", "backend", "cell"), CROSSINGS, ids=[f"{path}-{to}" for path, to, _ in CROSSINGS])
def test_each_kind_of_request_works_with_each_backend_as_the_page_says(path: str, backend: str, cell: str) -> None:
    known = (
        (adapter, each) for adapter in ADAPTERS.values() for each in adapter.operations if each.path.startswith(path)
    )
    adapter, operation = next(known, (ADAPTERS["llamacpp"], Operation(name=OTHER, path=path)))
    request = requested(adapter, operation, operation.methods[0])
    upstream = BACKENDS[backend]
    if isinstance(request, Passthrough) and not upstream.speaks(request.origin.wire):
        sent = forwarded(request.origin, model="there", path=upstream.forward_path(request.origin.path))
        assert b'"there"' in sent.body or b"\r\nthere\r\n" in sent.body
        assert cell == "partial [7]" or (cell, backend) == ("full", "openai")
        return
    try:
        expanded = request if upstream.speaks(request.origin.wire) else adapter.expand(request)
        upstream.build(expanded, model="there", stream=False)
    except BadRequest as error:
        assert cell == "refused", error.message
    else:
        assert cell != "refused"
    assert re.fullmatch(r"full|partial \[\d\]|refused", cell)


def test_every_exception_is_explained_and_used() -> None:
    section = PAGE.partition("\n## From any protocol to any backend\n")[2].partition("\n## ")[0]
    used = {int(number) for number in re.findall(r"partial \[(\d)\]", section)}
    explained = {int(number) for number in re.findall(r"^(\d)\. ", section, re.MULTILINE)}
    assert used == explained


@pytest.mark.parametrize(
    "marker", ["openai", "ollama", "anthropic", "langchain-openai", "litellm", "llm-ollama", "hermes-agent"]
)
def test_every_supported_client_has_its_row(marker: str) -> None:
    rows: list[list[str]] = tables("Tested clients")
    assert any(f"`{marker}`" in row[0] for row in rows)
