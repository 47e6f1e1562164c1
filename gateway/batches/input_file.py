"""The requests of an input file: one JSON object on each line, checked before any is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.records import BatchItem, LineError

#: The paths that lines of OpenAI's batches may name.
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

#: Mistakes that are reported, at most.
_REPORTED: Final = 100


class InvalidFile(Exception):
    """The file has mistakes."""

    def __init__(self, errors: tuple[LineError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Params(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool | None = None


class _AnthropicRequest(msgspec.Struct, frozen=True, kw_only=True):
    custom_id: str
    params: msgspec.Raw


class _AnthropicBody(msgspec.Struct, frozen=True, kw_only=True):
    requests: tuple[_AnthropicRequest, ...]


def read_lines(content: bytes, *, batch: str, endpoint: str, max_requests: int) -> list[BatchItem]:
    """The requests of an input file. Raises `InvalidFile` with its mistakes."""
    items: list[BatchItem] = []
    errors: list[LineError] = []
    seen: set[str] = set()
    for number, line in _lines(content):
        if len(items) >= max_requests:
            raise InvalidFile(
                (LineError(code="too_many_requests", message=f"a batch has {max_requests} requests at most"),)
            )
        try:
            items.append(_item(line, batch, number, endpoint, seen))
        except _Mistake as mistake:
            errors.append(LineError(code=mistake.code, message=str(mistake), line=number, param=mistake.param))
            if len(errors) >= _REPORTED:
                break
    if not items and not errors:
        errors.append(LineError(code="empty_file", message="the input file has no requests"))
    if errors:
        raise InvalidFile(tuple(errors))
    return items


def read_requests(content: bytes, *, batch: str, max_requests: int) -> list[BatchItem]:
    """The requests of the body of Anthropic's `POST /v1/messages/batches`. Raises `BadRequest`."""
    try:
        requests = msgspec.json.decode(content, type=_AnthropicBody).requests
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"requests: {error}", param="requests") from error
    if not requests:
        raise BadRequest("requests: a batch needs at least one request", param="requests")
    if len(requests) > max_requests:
        raise BadRequest(f"requests: a batch has {max_requests} requests at most", param="requests")
    items: list[BatchItem] = []
    seen: set[str] = set()
    for number, request in enumerate(requests, start=1):
        try:
            _check_id(request.custom_id, seen)
            model = _model(bytes(request.params))
        except _Mistake as mistake:
            raise BadRequest(f"requests.{number - 1}: {mistake}", param=mistake.param) from None
        items.append(
            BatchItem(batch=batch, number=number, custom_id=request.custom_id, model=model, body=bytes(request.params))
        )
    return items


class _Mistake(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _item(line: bytes, batch: str, number: int, endpoint: str, seen: set[str]) -> BatchItem:
    try:
        parsed = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Mistake(
            "invalid_json_line", f"expected an object with custom_id, method, url and body: {error}"
        ) from None
    _check_id(parsed.custom_id, seen)
    if parsed.method.upper() != "POST":
        raise _Mistake("invalid_method", f"the method must be POST, not {parsed.method[:20]}", "method")
    if parsed.url != endpoint:
        raise _Mistake("mismatched_endpoint", f"the url must be the batch's endpoint, {endpoint}", "url")
    body = bytes(parsed.body)
    return BatchItem(batch=batch, number=number, custom_id=parsed.custom_id, model=_model(body), body=body)


def _check_id(custom_id: str, seen: set[str]) -> None:
    if not 1 <= len(custom_id) <= 512:
        raise _Mistake("invalid_custom_id", "a custom_id has 1 to 512 characters", "custom_id")
    if custom_id in seen:
        raise _Mistake("duplicate_custom_id", f"the custom_id {custom_id[:64]!r} is used more than once", "custom_id")
    seen.add(custom_id)


def _model(body: bytes) -> str:
    try:
        params: Any = msgspec.json.decode(body, type=_Params)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Mistake("invalid_request", f"the request: {error}", "body") from None
    if params.stream:
        raise _Mistake("invalid_request", "requests of a batch cannot be streamed; leave `stream` out", "stream")
    return str(params.model)
