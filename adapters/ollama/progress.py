"""The progress of model operations in Ollama's protocol: lines of a stream, one final status, or nothing at all."""

from __future__ import annotations

from typing import Any

from hostler.adapters.base import Encoder
from hostler.adapters.canonical import Chunk, CreateModel, ModelOperation, ProgressStep, PullModel, ResponseHead
from hostler.adapters.errors import GatewayError
from hostler.adapters.ollama.errors import error_line
from hostler.adapters.ollama.go_compat import encode_json, encode_line
from hostler.adapters.ollama.schema import JSON, LINES

_STATUS = {
    "looking": "pulling manifest",
    "verifying": "verifying sha256 digest",
    "parsing": "parsing GGUF",
    "writing": "writing manifest",
    "done": "success",
}


class ProgressEncoder(Encoder):
    """The steps of one model operation. Those without progress (copy, delete, find a file) have an empty response."""

    def __init__(self, request: ModelOperation) -> None:
        self._operation = request.origin.operation
        self._has_progress = isinstance(request, PullModel | CreateModel)
        self.streaming = isinstance(request, PullModel | CreateModel) and request.stream
        self.media_type = LINES if self.streaming else JSON
        self._last: dict[str, Any] = {}

    def start(self, head: ResponseHead) -> None:
        self._last = {}

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.step is None:
            return b""
        self._last = _status(chunk.step)
        return encode_line(self._last) if self.streaming else b""

    def finish(self) -> bytes:
        return encode_json(self._last) if self._has_progress and not self.streaming else b""

    def error(self, error: GatewayError) -> bytes:
        return error_line(error, self._operation) if self.streaming else b""


def _status(step: ProgressStep) -> dict[str, Any]:
    if step.step == "fetching":
        # Clients cut pieces out of the digest: it is always complete.
        status: dict[str, Any] = {"status": f"pulling {step.digest[:12]}", "digest": f"sha256:{step.digest}"}
        sizes = {"total": step.total, "completed": step.completed}
        return status | {name: size for name, size in sizes.items() if size}
    if step.step in ("reusing", "adding"):
        prefix = "using existing layer" if step.step == "reusing" else "creating new layer"
        return {"status": f"{prefix} sha256:{step.digest}"}
    return {"status": _STATUS[step.step]}
