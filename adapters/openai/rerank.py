"""Reranking as Jina's and Cohere's clients expect it: documents may be objects, and the response may repeat them."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.base import Encoder
from hostler.adapters.canonical import Chunk, ResponseHead
from hostler.adapters.json_body import NOT_JSON, members

_TRUE = b"true"


def plain_documents(body: bytes) -> bytes | None:
    """The documents as JSON strings, for servers that accept nothing else; `None` if there is nothing to convert."""
    raw = members(body).get("documents")
    if raw is None or b"{" not in bytes(raw):
        return None
    documents = msgspec.json.decode(raw)
    if not isinstance(documents, list):
        return None
    texts = [document_text(document) for document in documents]
    return msgspec.json.encode(texts) if all(isinstance(text, str) for text in texts) else None


def document_text(document: Any) -> Any:
    """The text of a document that is a string or an object with a `text`."""
    return document.get("text") if isinstance(document, dict) else document


def wants_documents(body: bytes) -> bool:
    """Whether the response is to contain the documents. The body must be valid."""
    return bytes(members(body).get("return_documents", msgspec.Raw(b""))) == _TRUE


class RerankEncoder(Encoder):
    """A whole response with the documents in it, for backends that send only their indexes."""

    def __init__(self, request_body: bytes) -> None:
        self._request_body = request_body
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        self.media_type = head.media_type
        self.length = None
        self._body = bytearray()

    def encode(self, chunk: Chunk) -> bytes:
        """Nothing yet: the documents are inserted at the end."""
        self._body += chunk.raw
        return b""

    def finish(self) -> bytes:
        body = self._with_documents(bytes(self._body))
        self.length = len(body)
        return body

    def _with_documents(self, body: bytes) -> bytes:
        try:
            lenient.check_containers(body)
            answer = msgspec.json.decode(body)
            documents = msgspec.json.decode(members(self._request_body)["documents"])
            for result in answer["results"]:
                text = document_text(documents[result["index"]])
                if "document" not in result and isinstance(text, str):
                    result["document"] = {"text": text}
        except (*NOT_JSON, KeyError, IndexError, TypeError):
            return body
        return msgspec.json.encode(answer)
