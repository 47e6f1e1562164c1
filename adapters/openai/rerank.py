"""Orders of documents as Jina's and Cohere's clients ask for them: documents as objects, and told again in the answer."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import Encoder
from hostler.adapters.json_body import NOT_JSON, members
from hostler.adapters.types import Chunk, ResponseHead

_TRUE = b"true"


def plain_documents(body: bytes) -> bytes | None:
    """The documents as strings, for servers that take nothing else; `None` if they are, or are nothing of the kind."""
    given = members(body).get("documents")
    if given is None or b"{" not in bytes(given):
        return None
    documents = msgspec.json.decode(given)
    if not isinstance(documents, list):
        return None
    texts = [text_of(document) for document in documents]
    return msgspec.json.encode(texts) if all(isinstance(text, str) for text in texts) else None


def text_of(document: Any) -> Any:
    """A document's text, whether it stands alone or in an object."""
    return document.get("text") if isinstance(document, dict) else document


def wants_documents(body: bytes) -> bool:
    """Whether the answer is to hold the documents. The body has been checked before."""
    return bytes(members(body).get("return_documents", msgspec.Raw(b""))) == _TRUE


class RerankEncoder(Encoder):
    """An answer with the documents in it, for backends that tell their numbers only."""

    def __init__(self, asked: bytes) -> None:
        self._asked = asked
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        """A backend answers."""
        self.media_type = head.media_type
        self._body = bytearray()
        self.length = None

    def encode(self, chunk: Chunk) -> bytes:
        """Nothing yet: the documents are put in at the end."""
        self._body += chunk.raw
        return b""

    def finish(self) -> bytes:
        """The answer."""
        body = self._told()
        self.length = len(body)
        return body

    def _told(self) -> bytes:
        body = bytes(self._body)
        try:
            answer = msgspec.json.decode(body)
            documents = msgspec.json.decode(members(self._asked)["documents"])
            for result in answer["results"]:
                text = text_of(documents[result["index"]])
                if "document" not in result and isinstance(text, str):
                    result["document"] = {"text": text}
        except (*NOT_JSON, KeyError, IndexError, TypeError):
            return body
        return msgspec.json.encode(answer)
