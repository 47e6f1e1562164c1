"""What becomes of an order about models, as Ollama tells it: lines of progress, one last word, or nothing at all."""

from __future__ import annotations

from typing import Any

from hostler.adapters.base import Encoder
from hostler.adapters.errors import GatewayError
from hostler.adapters.ollama import go_compat
from hostler.adapters.ollama.errors import error_line
from hostler.adapters.ollama.schema import JSON, LINES
from hostler.adapters.types import Chunk, CreateModel, ModelOperation, ProgressStep, PullModel, ResponseHead

_WORDS = {
    "looking": "pulling manifest",
    "verifying": "verifying sha256 digest",
    "parsing": "parsing GGUF",
    "writing": "writing manifest",
    "done": "success",
}


class StageEncoder(Encoder):
    """The steps of one order. Orders without progress (copy, delete, a look for a file) have an empty answer."""

    def __init__(self, order: ModelOperation) -> None:
        self._operation = order.origin.operation
        self._tells = isinstance(order, PullModel | CreateModel)
        self.streaming = isinstance(order, PullModel | CreateModel) and order.stream
        self.media_type = LINES if self.streaming else JSON
        self._last: dict[str, Any] = {}

    def start(self, head: ResponseHead) -> None:
        """It is being carried out."""
        self._last = {}

    def encode(self, chunk: Chunk) -> bytes:
        """The step's line; empty for who waits for the end only."""
        if chunk.step is None:
            return b""
        self._last = _said(chunk.step)
        return go_compat.line(self._last) if self.streaming else b""

    def finish(self) -> bytes:
        """The last step, for who waited for it."""
        return go_compat.write(self._last) if self._tells and not self.streaming else b""

    def error(self, error: GatewayError) -> bytes:
        """The error as the last line."""
        return error_line(error, self._operation) if self.streaming else b""


def _said(stage: ProgressStep) -> dict[str, Any]:
    if stage.step == "fetching":
        # Clients cut pieces out of the digest: it is always whole.
        told: dict[str, Any] = {"status": f"pulling {stage.digest[:12]}", "digest": f"sha256:{stage.digest}"}
        sizes = {"total": stage.total, "completed": stage.completed}
        return told | {name: size for name, size in sizes.items() if size}
    if stage.step in ("reusing", "adding"):
        what = "using existing layer" if stage.step == "reusing" else "creating new layer"
        return {"status": f"{what} sha256:{stage.digest}"}
    return {"status": _WORDS[stage.step]}
