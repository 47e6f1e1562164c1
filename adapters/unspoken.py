"""What a backend's protocol has no words for, told so that one knows why, and that the request itself is in order."""

from __future__ import annotations

from hostler.adapters.canonical import CompletionRequest, CountRequest, EmbedRequest, Request, RerankRequest
from hostler.adapters.errors import BadRequest

_WISH: dict[type[object], str] = {
    CompletionRequest: "continue a plain text",
    CountRequest: "count tokens",
    EmbedRequest: "embed texts",
    RerankRequest: "order documents",
}


def unspoken(request: Request, protocol: str) -> BadRequest:
    """The error for a request that `protocol`, a name in the genitive, cannot pass on."""
    wish = _WISH.get(type(request))
    why = "" if wish is None else f": {protocol} protocol cannot {wish}. Use a model of another backend for that"
    return BadRequest(f"The backend of this model does not understand this kind of request{why}.")
