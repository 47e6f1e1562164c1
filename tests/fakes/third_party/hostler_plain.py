"""An example of a third-party adapter: `POST /plain/MODEL` with a question as text, answered with text."""

from __future__ import annotations

from collections.abc import Sequence

from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    Chunk,
    Conversation,
    ModelInfoRequest,
    Output,
    Request,
    Text,
)
from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.model_list import ModelList

_TEXT = "text/plain; charset=utf-8"


class PlainAdapter(Adapter):
    """Questions and answers in plain text."""

    name = "plain"
    operations: Sequence[Operation] = (
        Operation(name="ask", path="/plain/{model:path}"),
        Operation(name="models", path="/plain", methods=("GET",), scope="read", model_info=True),
    )

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The question, understood in full: no backend speaks this protocol, so nothing is left for later."""
        origin = self.origin(operation, incoming)
        if operation.name == "models":
            return ModelInfoRequest(origin=origin, kind="models")
        try:
            question = incoming.body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("the question is not UTF-8") from error
        return ChatRequest(
            origin=origin,
            model=incoming.path_params["model"],
            output=Output(stream=True),
            conversation=Conversation(messages=(ChatMessage(role="user", parts=(Text(text=question),)),)),
        )

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The names of the models, one a line."""
        return WireResponse(media_type=_TEXT, body="".join(f"{name}\n" for name in listing.names()).encode())

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> PlainEncoder:
        """The model's words as they come."""
        return PlainEncoder()

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error's own words."""
        return WireResponse(status=error.status, media_type=_TEXT, body=f"{error.message}\n".encode())


class PlainEncoder(Encoder):
    """Writes the model's text, and nothing else."""

    streaming = True
    media_type = _TEXT

    def encode(self, chunk: Chunk) -> bytes:
        """The text of a chunk."""
        return chunk.text.encode()

    def finish(self) -> bytes:
        """The end of the last line."""
        return b"\n"

    def error(self, error: GatewayError) -> bytes:
        """The error as a line of its own."""
        return f"\nerror: {error.message}\n".encode()
