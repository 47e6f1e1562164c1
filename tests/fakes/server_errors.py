"""Errors in the forms that servers send, with the words that a client must see.

They are written from the servers' documentation and from public reports. vLLM has had two forms (`ErrorResponse` at the top level until 0.10, under `error` since).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_BLURB = "Provider returned error"


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """An error of `server`: what it answers a request with that it cannot serve, and the `words` in it."""

    server: str
    status: int
    body: Any
    words: str
    media_type: str = "application/json"
    sizes: tuple[int, int] | None = None

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def name(self) -> str:
        return f"{self.server} {self.status} {self.words[:30]}"


def _openai(status: int, message: str, kind: str, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"code": status if code is None else code, "message": message, "type": kind, **more}}


def _flat(message: str, kind: str = "BadRequestError", code: int | str = 400) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def _gemini(message: str) -> list[dict[str, Any]]:
    return [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": message}}]


_IMAGE = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
_ROLES = "Conversation roles must alternate user/assistant/user/assistant/..."
_BATCH = "input (513 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
_TRACE = 'Traceback (most recent call last):\n  File "/srv/tabby/endpoints/OAI/utils/chat_completion.py", line 437'

#: Requests that an engine cannot serve, although it is well.
REQUEST_FAULTS = [
    ServerError(server="llama-server", status=500, body=_openai(500, _IMAGE, "server_error"), words=_IMAGE),
    ServerError(server="llama-server", status=500, body=_openai(500, _ROLES, "server_error"), words=_ROLES),
    ServerError(
        server="llama-server", status=500, words="Value is not callable: null at row 1, column 72",
        body=_openai(500, "Value is not callable: null at row 1, column 72:\n{{ x }}\n", "server_error"),
    ),
    ServerError(
        server="llama-server", status=400, words="tools param requires --jinja flag",
        body=_openai(400, "tools param requires --jinja flag", "invalid_request_error"),
    ),
    ServerError(
        server="llama-server", status=501, words="This server does not support embeddings",
        body=_openai(501, "This server does not support embeddings. Start it with `--embeddings`", "not_supported_error"),
    ),
    ServerError(
        server="llama-server", status=403, words="this feature is disabled",
        body={"error": {"message": "this feature is disabled", "type": "feature_disabled"}},
    ),
    ServerError(server="vLLM", status=400, body=_flat(_ROLES), words=_ROLES),
    ServerError(
        server="vLLM", status=400, words="is not a multimodal model",
        body={"error": _flat("there is not a multimodal model", "BadRequestError")},
    ),
    ServerError(server="vLLM", status=500, body=_flat("list index out of range", "InternalServerError", 500),
                  words="list index out of range"),
    ServerError(server="SGLang", status=400, body=_flat(_ROLES, "BadRequest"), words=_ROLES),
    ServerError(server="a list", status=500, body={"errors": ["bad image"]}, words="bad image"),
    ServerError(server="a list of errors", status=500, body={"errors": [{"message": "bad image"}]}, words="bad image"),
    ServerError(server="a list in error", status=500, body={"error": ["bad image"]}, words="bad image"),
    ServerError(server="msg", status=500, body={"error": {"msg": "bad image"}}, words="bad image"),
    ServerError(server="error in error", status=500, body={"error": {"error": "bad image"}}, words="bad image"),
    *(ServerError(server="any engine", status=status, body=_openai(status, "Request is too hard", "server_error"),
                  words="Request is too hard") for status in (408, 409, 425, 503, 529)),
    ServerError(
        server="SGLang", status=500, words="Internal server error: 'NoneType' object has no attribute 'images'",
        body=_flat("Internal server error: 'NoneType' object has no attribute 'images'", "InternalServerError", 500),
    ),
    ServerError(
        server="SGLang", status=422, words="body.messages: Field required",
        body={"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required", "input": {}}]},
    ),
    ServerError(
        server="Ollama", status=400, words="does not support tools",
        body={"error": "registry.ollama.ai/library/there:latest does not support tools"},
    ),
    ServerError(
        server="Ollama", status=500, words="Failed to create new sequence: failed to process inputs",
        body={"error": "Failed to create new sequence: failed to process inputs: image: unknown format"},
    ),
    ServerError(
        server="LM Studio", status=400, words="Invalid 'messages' in payload",
        body={"error": "Invalid 'messages' in payload: last message must be from the user"},
    ),
    ServerError(
        server="LM Studio", status=500, words="Error rendering prompt with jinja template",
        body=_openai(500, f'Error rendering prompt with jinja template: "{_ROLES}"', "internal_error", "unknown"),
    ),
    ServerError(
        server="TabbyAPI", status=500, words="Chat completion aborted",
        body={"error": {"message": "Chat completion aborted. Please check the server console.", "trace": _TRACE}},
    ),
    ServerError(
        server="TabbyAPI", status=400, words="A prompt template is required",
        body={"detail": "A prompt template is required for chat completions"},
    ),
    ServerError(
        server="Gemini", status=400, words="Please ensure that function call turn comes immediately after a user turn",
        body=_gemini("Please ensure that function call turn comes immediately after a user turn."),
    ),
    ServerError(
        server="Mistral", status=400, words="Expected last role User or Tool",
        body=_flat("Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
                   "invalid_request_message_order", "3230"),
    ),
    ServerError(
        server="Mistral", status=422, words="Input should be greater than or equal to 0",
        body={"object": "error", "type": "invalid_request_error", "param": None, "code": None, "message": {
            "detail": [{"type": "greater_than_equal", "loc": ["body", "max_tokens"],
                        "msg": "Input should be greater than or equal to 0", "input": -1}]}},
    ),
    ServerError(
        server="Groq", status=400, words="Failed to call a function",
        body=_openai(400, "Failed to call a function. Please adjust your prompt.", "invalid_request_error",
                     "tool_use_failed", failed_generation="<function=f>"),
    ),
    ServerError(
        server="OpenRouter", status=400, words="not a valid model ID",
        body={"error": {"message": "there is not a valid model ID", "code": 400}, "user_id": "user_1"},
    ),
]  # fmt: skip

#: Requests that are too long, in the words of each server.
OVERFLOWS = [
    ServerError(
        server="llama-server", status=400, words="exceeds the available context size", sizes=(5000, 4096),
        body=_openai(400, "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
                     "exceed_context_size_error", n_prompt_tokens=5000, n_ctx=4096),
    ),
    ServerError(server="llama-server", status=500, body=_openai(500, _BATCH, "server_error"), words=_BATCH,
                  sizes=(513, 512)),
    ServerError(
        server="vLLM", status=400, words="maximum context length is 4096 tokens", sizes=(5000, 4096),
        body=_flat("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the "
                   "messages, 1000 in the completion). Please reduce the length of the messages or completion."),
    ),
    ServerError(
        server="vLLM", status=400, words="longer than the maximum model length",
        body={"error": _flat("The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make "
                             "sure that `max_model_len` is no smaller than the number of text tokens.")},
    ),
    ServerError(
        server="SGLang", status=400, words="longer than the model's context length", sizes=(61709, 40960),
        body=_flat("The input (61709 tokens) is longer than the model's context length (40960 tokens)."),
    ),
    ServerError(
        server="Ollama", status=400, words="the input length exceeds the context length",
        body={"error": "the input length exceeds the context length"},
    ),
    ServerError(
        server="Ollama", status=500, words="prompt too long; exceeded max context length",
        body={"error": "prompt too long; exceeded max context length by 904 tokens"},
    ),
    ServerError(
        server="LM Studio", status=400, words="Trying to keep the first 5000 tokens", sizes=(5000, 4096),
        body={"error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded "
              "with context length of only 4096 tokens, which is not enough. Try to load the model with a larger "
              "context length, or provide a shorter input"},
    ),
    ServerError(server="LM Studio", status=400, body={"error": "Context size has been exceeded."},
                  words="Context size has been exceeded."),
    ServerError(
        server="TabbyAPI", status=500, words="is greater than max_seq_len", sizes=(71599, 65536),
        body={"error": {"message": "Request length 71599 + 2048 is greater than max_seq_len 65536", "trace": _TRACE}},
    ),
    ServerError(
        server="Gemini", status=400, words="exceeds the maximum number of tokens allowed", sizes=(134123, 131072),
        body=_gemini("The input token count (134123) exceeds the maximum number of tokens allowed (131072)."),
    ),
    ServerError(
        server="Mistral", status=400, words="too large for model with 32768 maximum context length",
        sizes=(40000, 32768),
        body=_flat("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context "
                   "length", "invalid_request_prompt", "3051"),
    ),
    ServerError(
        server="Groq", status=400, words="Please reduce the length of the messages or completion",
        body=_openai(400, "Please reduce the length of the messages or completion.", "invalid_request_error",
                     "context_length_exceeded", param="messages"),
    ),
    ServerError(
        server="OpenRouter", status=400, words="maximum context length is 8192 tokens", sizes=(9000, 8192),
        body={"error": {"code": 400, "message": "This endpoint's maximum context length is 8192 tokens. However, you "
                        "requested about 9000 tokens (9000 of text input). Please reduce the length of either one, or "
                        'use the "middle-out" transform to compress your prompt automatically.'}},
    ),
    ServerError(
        server="OpenRouter", status=400, words=_BLURB,
        body={"error": {"code": 400, "message": _BLURB, "metadata": {"provider_name": "X", "raw":
              '{"error":{"message":"prompt is too long: 209000 tokens > 200000 maximum"}}'}}},
        sizes=(209000, 200000),
    ),
]  # fmt: skip

#: What is no answer, although its status is 200.
NO_ANSWERS = {
    "empty": ("application/json", b""),
    "login page": ("text/html", b"<!DOCTYPE html><html><title>Sign in</title></html>"),
    "login page as JSON": ("application/json", b"<html>Sign in</html>"),
    "text": ("text/plain", b"upstream connect error or disconnect/reset before headers"),
    "cut JSON": ("application/json", b'{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"rol'),
    "no choices": ("application/json", b'{"id":"1","object":"chat.completion","choices":[],"usage":{}}'),
    "null": ("application/json", b"null"),
    "empty object": ("application/json", b"{}"),
    "empty choice": ("application/json", b'{"choices":[{"index":0,"finish_reason":"stop"}]}'),
    "empty stream": ("text/event-stream", b""),
    "only the end mark": ("text/event-stream", b"data: [DONE]\n\n"),
    "no choices in a stream": ("text/event-stream", b'data: {"choices":[]}\n\ndata: [DONE]\n\n'),
    "login page as a stream": ("text/event-stream", b"<html>Sign in</html>\n\n"),
    "a list": ("application/json", b"[]"),
    "a number": ("text/plain", b"42"),
    "a text in JSON": ("application/json", b'"hello"'),
    "XML": ("text/xml", b"<?xml version='1.0'?><Error/>"),
    "bytes": ("application/octet-stream", bytes(range(256))),
    "null in a stream": ("text/event-stream", b"data: null\n\ndata: [DONE]\n\n"),
    "only comments": ("text/event-stream", b": ping\n\n: ping\n\n"),
    "only a role": (
        "text/event-stream",
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\ndata: [DONE]\n\n',
    ),
    "only usage": ("text/event-stream", b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'),
    "only a byte order mark": ("application/json", b"\xef\xbb\xbf"),
    "zeros": ("application/json", bytes(100)),
    "another encoding": ("application/json", '{"choices":[]}'.encode("utf-16")),
    "compressed without a header": ("application/json", b"\x1f\x8b\x08\x00" + bytes(30)),
    "choices of a wrong type": ("application/json", b'{"choices":"x"}'),
    "choices of nothing": ("application/json", b'{"choices":[null]}'),
    "data of nothing": ("application/json", b'{"object":"list","data":[null]}'),
    "empty data": ("application/json", b'{"object":"list","data":[{}]}'),
    "a vector of words": ("application/json", b'{"object":"list","data":[{"index":0,"embedding":["a"]}]}'),
    "a vector of nothing": ("application/json", b'{"object":"list","data":[{"index":0,"embedding":[null,null]}]}'),
    "scores of nothing": ("application/json", b'{"results":[{}]}'),
    "a message of nothing": ("application/json", b'{"model":"x","message":null,"done":true}'),
    "content of nothing": ("application/json", b'{"id":"m","type":"message","content":null,"stop_reason":"end_turn"}'),
    "a status": ("application/json", b'{"status":"ok"}'),
    "a detail": ("application/json", b'{"detail":"bad image"}'),
    "a page in a stream": ("text/event-stream", b"data: <html>\n\ndata: [DONE]\n\n"),
    "an error event in words": ("text/event-stream", b"event: error\ndata: boom\n\n"),
}
