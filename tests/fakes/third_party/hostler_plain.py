"""An example of an adapter of somebody else's: `POST /plain/MODEL` with a question as text, answered with text."""

from __future__ import annotations

from collections.abc import Sequence

from hostler.adapters.base import Incoming, Operation, WireResponse
from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.model_list import ModelList
from hostler.adapters.types import (
    ChatMessage,
    ChatRequest,
    Chunk,
    Conversation,
    ModelInfoRequest,
    Origin,
    Output,
    Progress,
    Request,
    ResponseHead,
    Text,
)

_TEXT = "text/plain; charset=utf-8"


class PlainAdapter:
    """Questions and answers in plain text."""

    name = "plain"
    operations: Sequence[Operation] = (
        Operation(name="ask", path="/plain/{model:path}"),
        Operation(name="models", path="/plain", methods=("GET",), scope="read", probe=True),
    )

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The question, understood in full: no backend speaks this protocol, so nothing is left for later."""
        origin = Origin(wire=self.name, operation=operation.name, body=incoming.body, path=incoming.path)
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

    def expand(self, request: Request) -> Request:
        """The same: everything was decoded."""
        return request

    def answer(self, request: Request, listing: ModelList) -> WireResponse:
        """The names of the models, one a line."""
        return WireResponse(media_type=_TEXT, body="".join(f"{name}\n" for name in listing.names()).encode())

    def encoder(self, request: Request, *, id: str, created: int, progress: str) -> PlainEncoder:  # noqa: A002
        """The model's words as they come."""
        return PlainEncoder()

    def refuse(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error's own words."""
        return WireResponse(status=error.status, media_type=_TEXT, body=f"{error.message}\n".encode())


class PlainEncoder:
    """Writes what the model says, and nothing else."""

    streaming = True
    media_type = _TEXT
    length = None

    def begin(self, head: ResponseHead) -> None:
        """Nothing is kept between chunks."""

    def chunk(self, chunk: Chunk) -> bytes:
        """The words of a chunk."""
        return chunk.text.encode()

    def end(self) -> bytes:
        """The last line's end."""
        return b"\n"

    def heartbeat(self, progress: Progress) -> bytes:
        """Nothing: plain text has no place for it."""
        return b""

    def error(self, error: GatewayError) -> bytes:
        """The error as a line of its own."""
        return f"\nerror: {error.message}\n".encode()
