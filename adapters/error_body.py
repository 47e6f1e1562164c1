"""Reads the errors of servers, whatever form their bodies have, and recognises a request that is too long.

Forms, with the servers that send them:

- `{"error": {"message", "type", "code", ...}}`: OpenAI, llama-server, newer vLLM, LM Studio, TabbyAPI, Groq, OpenRouter,
  Anthropic
- `{"error": "text"}`: Ollama, LM Studio, text-generation-inference
- `{"object": "error", "message", "type", "code"}`: older vLLM, SGLang, Mistral
- `{"detail": "text"}`, `{"detail": [{"loc", "msg"}]}`: what FastAPI sends (TabbyAPI, SGLang, Mistral)
- `[{"error": {"code", "message", "status"}}]`: Gemini
- `{"message": "text", ...}`: Mistral's and Cohere's gateways, SiliconFlow
- `{"title": "text", "status", "type"}`: problem details (RFC 9457)
- `{"errors": [...]}`, `{"error": ["text"]}`, `{"error": {"msg" | "error": "text"}}`: Cloudflare, and small servers
- plain text
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.errors import (
    BackendBroken,
    BackendRejected,
    GatewayError,
    client_status,
    is_account_error,
    reported_error,
)
from hostler.adapters.json_body import NOT_JSON

#: Characters of a message that are searched; longer ones contain the request.
_SEARCHED = 4000
#: The size up to which an error in a response is kept as it came, in bytes.
_MAX_KEPT = 64 * 1024
_NO_WORDS = b'{"error":{"message":""}}'
#: Levels at which an error may be wrapped in others.
_MAX_DEPTH = 4

_STATUSES = {
    # Gemini's names of statuses
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    # the types of OpenAI, Anthropic and llama-server, which name the status that their error would have had
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "BadRequestError": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "insufficient_quota": 429,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "not_supported_error": 501,
    "unavailable_error": 503,
    "overloaded_error": 529,
}

_LENGTH = r"(?:context(?:[ _-]?(?:length|window|size|limit))?|max_(?:seq|model|total|input|position)|model length)"
# No repetition in these: a search goes over each place of the text.
_TOO = (
    r"(?:exceed(?:s|ed|ing)?|too (?:long|large|many|big|small)|(?:longer|larger|greater|bigger|more) than"
    r"|overflow(?:s|ed|ing)?)"
)
_PROMPT = r"(?:prompts?|inputs?|requests?|messages|sequences?|tokens?|conversation)"
_OVERFLOW = re.compile(
    "|".join(
        (
            # "This model's maximum context length is 4096 tokens", "maximum supported sequence length"
            r"max(?:imum)?(?: \w+)? (?:context|prompt|input|sequence|model)[ _-]?(?:length|window|size|tokens?)",
            # "the request exceeds the available context size", "is longer than the model's context length"
            rf"{_TOO}.{{0,80}}?{_LENGTH}",
            # "Context size has been exceeded", "context length is only 4096 tokens", "when context the overflows"
            rf"\bcontext\b.{{0,40}}?(?:{_TOO}|is only|not enough)",
            # "prompt is too long", "Input length (9) exceeds the maximum allowed length", "too many tokens"
            rf"\b{_PROMPT}(?: (?:is|are|length|count|size))* ?(?:\([^)]{{0,60}}\) ?)?(?:is |are )?{_TOO}"
            r"(?!.{0,20}(?:per|minute|bytes|\bmb\b))",
            r"too many (?:input )?tokens(?! per)",
            # "input (513 tokens) is too large to process. increase the physical batch size"
            r"increase the physical batch size",
            # "must be less than max_seq_len", "`inputs` must have less than 4096 tokens"
            rf"must (?:be|have) (?:<=?|less than|at most|fewer than).{{0,20}}?(?:\d+\b.{{0,12}}?tokens|{_LENGTH})",
            r"`inputs` tokens \+ `max_new_tokens` must be",
            r"reduce the length of (?:the |your )?(?:messages|prompt|input|either)",
        )
    ),
    re.IGNORECASE | re.DOTALL,
)
#: A limit on the answer, or on tokens in a time: no larger context helps.
_NOT_OVERFLOW = re.compile(
    r"\btpm\b|per (?:minute|day|hour)|completion tokens(?! ?\))|could not allocate|failed to (?:load|allocate)",
    re.IGNORECASE,
)
_OVERFLOW_NAMES = frozenset({"exceed_context_size_error", "context_length_exceeded", "string_above_max_length"})

_NUMBER = r"(\d{1,12})"
#: How servers write the two numbers; the groups are the tokens and the limit, or (`limit_first`) the other way round.
_TOKENS_THEN_LIMIT = re.compile(
    "|".join(
        (
            # llama-server: "request (9 tokens) exceeds the available context size (8 tokens)", SGLang, Gemini, Anthropic
            rf"\({_NUMBER}(?: tokens)?\).{{0,80}}?{_TOO}.{{0,80}}?\({_NUMBER}(?: tokens)?\)",
            # llama-server: "input (513 tokens) is too large to process. increase the physical batch size (current batch
            # size: 512)"
            rf"\({_NUMBER} tokens\).{{0,120}}?batch size: {_NUMBER}",
            rf"{_NUMBER} tokens > {_NUMBER}",  # Anthropic
            # LM Studio: "keep the first 4297 tokens when context the overflows. However, ... context length of only 4096"
            rf"first {_NUMBER} tokens .{{0,120}}?only {_NUMBER}",
            # vLLM: "You passed 5001 input tokens ... the model's context length is only 4096 tokens"
            rf"passed {_NUMBER} input tokens.{{0,120}}?only {_NUMBER}",
            # Mistral: "Prompt contains 40000 tokens ..., too large for model with 32768 maximum context length"
            rf"contains {_NUMBER} tokens.{{0,80}}?with {_NUMBER} maximum",
            rf"length {_NUMBER}(?: \+ \d+)? (?:is|exceeds).{{0,80}}?max\w{{0,20}} {_NUMBER}",  # TabbyAPI
        )
    ),
    re.IGNORECASE | re.DOTALL,
)
_LIMIT_THEN_TOKENS = re.compile(
    # OpenAI, vLLM, OpenRouter: "maximum context length is 4096 tokens. However, you requested [about] 5000 tokens"
    rf"maximum (?:context|prompt) length (?:is|of) {_NUMBER}.{{0,120}}?"
    rf"(?:requested|resulted in|contains|total of|request has|passed)(?: a total of| about)? {_NUMBER}",
    re.IGNORECASE | re.DOTALL,
)

#: Plain text that names a status only.
_PHRASES = frozenset(
    {
        *("error", "bad request", "unauthorized", "forbidden", "not found", "404 page not found", "method not allowed"),
        *("request timeout", "conflict", "unprocessable entity", "unprocessable content", "too many requests"),
        *("internal server error", "not implemented", "bad gateway", "service unavailable", "gateway timeout"),
    }
)

#: The default of `error` in responses.
NO_ERROR = msgspec.Raw(b"null")
_EMPTY_ERRORS = frozenset({b"null", b"{}", b"[]", b'""', b"false", b""})

_decode = lenient.decode_any


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A server's error: its own words, its names for the kind of error, and the HTTP status that it names."""

    message: str
    type: str = ""
    code: str = ""
    status: int | None = None
    prompt_tokens: int | None = None
    context: int | None = None
    metadata: Mapping[str, Any] = {}
    retryable: bool | None = None
    is_text: bool = False

    @property
    def is_overflow(self) -> bool:
        """Whether the request is longer than the context of the model."""
        if self.type in _OVERFLOW_NAMES or self.code in _OVERFLOW_NAMES:
            return True
        if self.type == "unavailable_error":
            return False
        words = self._words
        return _OVERFLOW.search(words) is not None and _NOT_OVERFLOW.search(words) is None

    @property
    def sizes(self) -> tuple[int, int] | None:
        """The number of tokens and the limit, if the request is too long and the error names both."""
        if self.prompt_tokens is not None and self.context is not None:
            return self.prompt_tokens, self.context
        words = self._words
        if (match := _LIMIT_THEN_TOKENS.search(words)) is not None:
            limit, tokens = int(match[1]), int(match[2])
        elif (match := _TOKENS_THEN_LIMIT.search(words)) is not None:
            tokens, limit = (int(group) for group in match.groups() if group is not None)
        else:
            return None
        # vLLM names the prompt alone where it is the answer that would be too long.
        return (tokens, limit) if tokens > limit else None

    @property
    def likely_status(self) -> int | None:
        """The status that the error names; 400 if the request is too long."""
        return 400 if self.status is None and self.is_overflow else self.status

    @property
    def _words(self) -> str:
        # OpenRouter puts the provider's own error here, as text.
        raw = self.metadata.get("raw")
        return f"{self.message[:_SEARCHED]}\n{raw[:_SEARCHED]}" if isinstance(raw, str) else self.message[:_SEARCHED]


def is_error(raw: msgspec.Raw) -> bool:
    """Whether the value of `error` in a response is one: some servers send an empty one with every answer."""
    return raw is not NO_ERROR and bytes(raw) not in _EMPTY_ERRORS


def error_in_response(data: bytes) -> BackendBroken:
    """The error for a part of a response that reports one; with the status that it names, or that its words mean."""
    try:
        details = error_in(_decode(data)) or _flat(_decode(data))
    except NOT_JSON:
        details = None
    if details is None:
        return reported_error("", body=data if len(data) <= _MAX_KEPT else _NO_WORDS)
    if len(data) > _MAX_KEPT:
        fields = {"message": details.message[:_SEARCHED], "type": details.type, "code": details.code}
        data = msgspec.json.encode({"error": fields})
    return reported_error(details.message, backend_status=details.likely_status, body=data)


def flat_error(data: bytes) -> BackendBroken | None:
    """The error for an event that is one as a whole, as vLLM, SGLang and Gemini send it; `None` for any other event."""
    try:
        details = error_in(_decode(data))
    except NOT_JSON:
        return None
    return None if details is None else error_in_response(data)


def read_error(body: bytes) -> ErrorDetails | None:
    """The error in the body of an answer with an error status; `None` if that is not an error in any known form."""
    try:
        value = _decode(body)
    except NOT_JSON:
        return _plain_text(body)
    return error_in(value) or _flat(value) or _problem(value)


def _problem(value: Any) -> ErrorDetails | None:
    """Problem details (RFC 9457) with nothing but a title."""
    if not isinstance(value, dict) or not isinstance(value.get("title"), str) or not value["title"].strip():
        return None
    return _details({**value, "message": value["title"]}) if "status" in value or "type" in value else None


def _plain_text(body: bytes) -> ErrorDetails | None:
    """An error in plain words; `None` for markup, for what is cut off or too long, and for the bare name of a status."""
    if not body or len(body) > _SEARCHED or body.lstrip()[:1] in (b"<", b"{", b"[", b""):
        return None
    try:
        text = body.decode().strip()
    except UnicodeError:
        return None
    is_bare = text.lower().rstrip(".") in _PHRASES or not text.replace("\n", "").isprintable()
    return None if is_bare else ErrorDetails(message=text, is_text=True)


def is_overflow(error: GatewayError) -> bool:
    """Whether a backend rejected the request because it is too long."""
    details = read_error(error.body) if isinstance(error, BackendRejected) else None
    return details is not None and details.is_overflow


def is_passed_on(error: BackendRejected) -> bool:
    """Whether a client of the backend's protocol gets its error byte for byte.

    Not if it is about the gateway's own account, contains a stack trace (TabbyAPI's), or gets another status.
    """
    status = error.backend_status
    return not is_account_error(error) and client_status(error) == status and b"Traceback (most" not in error.body


def error_in(value: Any) -> ErrorDetails | None:
    """The error in decoded JSON that says itself that it is one; `None` for anything else."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict) and error:
        return _details(error)
    listed = error if isinstance(error, list) else value.get("errors")
    if isinstance(listed, list) and listed:
        first = listed[0]
        details = _details(first) if isinstance(first, dict) else _details({**value, "message": listed})
        return details if details.message else None
    if isinstance(error, str) and error.strip():
        return _details({**value, "message": error, "type": value.get("error_type") or value.get("type")})
    if value.get("object") == "error" or value.get("type") == "error":
        return _flat(value) or ErrorDetails(message="")
    return None


def _flat(value: Any) -> ErrorDetails | None:
    """An error whose fields are at the top level, or under `detail`."""
    if not isinstance(value, dict):
        return None
    for name in ("message", "detail", "msg", "error_message"):
        if value.get(name):
            details = _details({**value, "message": value[name]})
            return details if details.message else None
    return None


def _details(fields: Mapping[str, Any], depth: int = 0) -> ErrorDetails:
    message = fields.get("message")
    if message is None:
        message = next((fields[name] for name in ("detail", "msg", "error") if fields.get(name) is not None), None)
    kind, code = fields.get("type"), fields.get("code")
    inner = _inner(message)
    if inner is not None and depth < _MAX_DEPTH:
        wrapped = _details(inner, depth + 1)
        if wrapped.message:
            return wrapped
    names = [name for name in (fields.get("status"), code, kind) if isinstance(name, str)]
    numbers = (fields.get("status_code"), code, fields.get("status"), *names)
    metadata = fields.get("metadata")
    places = (metadata if isinstance(metadata, dict) else {}, fields)
    retryable = next((place["retryable"] for place in places if isinstance(place.get("retryable"), bool)), None)
    return ErrorDetails(
        message=_text(message),
        type=kind if isinstance(kind, str) else "",
        code=str(code) if isinstance(code, str | int) else "",
        status=next((status for number in numbers if (status := _status(number)) is not None), None),
        prompt_tokens=_count(fields.get("n_prompt_tokens")),
        context=_count(fields.get("n_ctx")),
        metadata=metadata if isinstance(metadata, dict) else {},
        retryable=retryable,
    )


def _inner(message: Any) -> Mapping[str, Any] | None:
    """An error within the message: an object, or JSON as text (Gemini's and LiteLLM's wrapped errors)."""
    if isinstance(message, str) and message.lstrip()[:1] in ("{", "["):
        try:
            message = _decode(message)
        except NOT_JSON:
            return None
        if isinstance(message, list):
            message = message[0] if message else None
    if not isinstance(message, dict):
        return None
    nested = message.get("error")
    if isinstance(nested, dict):
        return nested
    if isinstance(nested, str):
        return {**message, "message": nested}
    return message if "message" in message or "detail" in message else None


def _text(message: Any) -> str:
    if isinstance(message, str):
        return message.strip()
    if isinstance(message, list):
        return "; ".join(text for entry in message[:10] if (text := _validation(entry)))
    return ""


def _validation(entry: Any) -> str:
    """One entry of FastAPI's list of validation errors."""
    if isinstance(entry, str):
        return entry.strip()
    if not isinstance(entry, dict) or not isinstance(entry.get("msg"), str):
        return ""
    place = entry.get("loc")
    path = ".".join(str(part) for part in place) if isinstance(place, list) else ""
    return f"{path}: {entry['msg']}" if path else str(entry["msg"])


def _status(value: Any) -> int | None:
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) == 3 else _STATUSES.get(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None
