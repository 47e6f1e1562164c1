"""OpenAI's protocol as backends speak it: builds requests and parsers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hostler.adapters import json_body, multipart
from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Conversation,
    CountRequest,
    EmbedRequest,
    Media,
    Output,
    Part,
    Request,
    RerankRequest,
    Sampling,
    Text,
    Tool,
    output_of,
)
from hostler.adapters.degrade import unsupported
from hostler.adapters.embedding_inputs import wants_bytes
from hostler.adapters.openai import discovery
from hostler.adapters.openai.chat import with_text_arguments
from hostler.adapters.openai.operations import FORMS, UPSTREAM_PATHS
from hostler.adapters.openai.rerank import plain_documents
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.openai.schema import CUSTOM_CHAT, NULL, RESPONSES, WIRE
from hostler.adapters.openai.strict_schema import is_strict
from hostler.adapters.progress_removal import without_progress
from hostler.adapters.remote_models import Discovery, RemoteModel

_ANY_OBJECT = b'"json"'
_FORM = "multipart/"
#: The prefix of clients' paths.
_USUAL = "/v1"
#: Forwarded paths of llama.cpp's server that this protocol has below `/v1` only.
_WITHOUT_V1 = frozenset({"/embeddings"})

# OpenAI itself rejects unknown parameters. Other servers have some more; they get those that a client has set to a value
# with an effect. The rest is llama.cpp's alone.
_WITHOUT_EFFECT = {"min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_LLAMA_ONLY = frozenset({"typical_p", "repeat_last_n"})


def operation_of(request: Request) -> str:
    """The operation of this protocol for a canonical request. Raises `BadRequest` if there is none."""
    if isinstance(request, ChatRequest):
        return "chat"
    if isinstance(request, CompletionRequest):
        return "completions"
    if isinstance(request, EmbedRequest):
        return "embeddings"
    if isinstance(request, RerankRequest):
        return "rerank"
    if isinstance(request, CountRequest):
        return "count"
    raise unsupported(request, "the OpenAI protocol")


def request_body(request: Request, *, model: str, stream: bool, engine: bool = False, progress: bool = False) -> bytes:
    """The body for an expanded request. `engine` allows llama.cpp's own fields, which strict servers reject, `progress` asks
    for how far the prompt of a stream is read."""
    body: dict[str, Any] = {"model": model}
    if isinstance(request, ChatRequest) and request.conversation is not None:
        body["messages"] = messages(request.conversation)
        body |= _chat(request.conversation, engine=engine) | _output(request.output, stream=stream)
        if engine and request.output.details:
            body |= _details(request.conversation, stream=stream)
    elif isinstance(request, CountRequest) and request.conversation is not None:
        body["messages"] = messages(request.conversation)
        body |= _chat(request.conversation, engine=engine)
    elif isinstance(request, CompletionRequest) and request.prompt is not None:
        body["prompt"] = request.prompt
        if request.suffix is not None:
            body["suffix"] = request.suffix
        body |= _sampling(request.sampling or Sampling(), engine=engine) | _completion_output(
            request.output, stream=stream
        )
    elif isinstance(request, EmbedRequest) and request.inputs is not None:
        body |= {"input": request.inputs, "encoding_format": "float"}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        if request.normalize is False and engine:
            body["embd_normalize"] = -1
    elif isinstance(request, RerankRequest) and request.query is not None:
        body |= {"query": request.query, "documents": request.documents or ()}
        if request.top_n is not None:
            body["top_n"] = request.top_n
    else:
        operation_of(request)
        raise ValueError("the request must be expanded before it is encoded in another protocol")
    if progress and output_of(request).stream:
        body["return_progress"] = True
    return msgspec.json.encode(body)


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages. Tool calls without an id get one, and the results that follow refer to it."""
    encoded: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str | None]] = []
    count = 0
    for message in _with_text_results(conversation.messages):
        body: dict[str, Any] = {"role": message.role, "content": _content(message)}
        if message.name is not None and message.role != "tool":
            body["name"] = message.name
        if message.reasoning:
            body["reasoning_content"] = message.reasoning
        if message.tool_calls:
            open_calls = []
            calls = []
            for call in message.tool_calls:
                count += 1
                call_id = call.id or f"call_{count}"
                open_calls.append((call_id, call.name))
                function = {"name": call.name, "arguments": call.arguments or "{}"}
                calls.append({"id": call_id, "type": "function", "function": function})
            body["tool_calls"] = calls
        if message.role == "tool":
            body["tool_call_id"] = message.tool_call_id or _call_id_for(open_calls, message.name)
        encoded.append(body)
    return encoded


def _with_text_results(given: Iterable[ChatMessage]) -> Iterable[ChatMessage]:
    """The messages, with what tools have shown in the user's message after the results: those are texts here."""
    shown: list[Part] = []
    for message in given:
        if message.role != "tool":
            if shown and message.role != "user":
                yield ChatMessage(role="user", parts=tuple(shown))
            elif shown:
                message = msgspec.structs.replace(message, parts=(*shown, *message.parts))
            shown = []
        elif media := [part for part in message.parts if isinstance(part, Media)]:
            texts = tuple(part for part in message.parts if isinstance(part, Text))
            shown += [Text(text=f"What the tool call {message.tool_call_id or message.name or ''} has shown:"), *media]
            message = msgspec.structs.replace(message, parts=texts or (Text(text="(see the next message)"),))
        yield message
    if shown:
        yield ChatMessage(role="user", parts=tuple(shown))


def _call_id_for(open_calls: list[tuple[str, str | None]], name: str | None) -> str:
    # A result without an id belongs to the first open call of its name, else to the first open one.
    for index, (call_id, called) in enumerate(open_calls):
        if name is None or called == name:
            del open_calls[index]
            return call_id
    return open_calls.pop(0)[0] if open_calls else "call_0"


def _content(message: ChatMessage) -> str | list[dict[str, Any]] | None:
    if all(isinstance(part, Text) for part in message.parts):
        text = "".join(part.text for part in message.parts if isinstance(part, Text))
        return None if message.tool_calls and not text else text
    return [{"type": "text", "text": part.text} if isinstance(part, Text) else _media(part) for part in message.parts]


def _media(part: Media) -> dict[str, Any]:
    if part.kind == "audio":
        audio_format = (part.mime or "audio/wav").removeprefix("audio/")
        return {"type": "input_audio", "input_audio": {"data": part.data or "", "format": audio_format}}
    url = part.url if part.url is not None else f"data:{part.mime or 'image/png'};base64,{part.data or ''}"
    return {"type": "image_url", "image_url": {"url": url}}


def _chat(conversation: Conversation, *, engine: bool) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if conversation.tools:
        body["tools"] = [_tool(tool) for tool in conversation.tools]
    choice = conversation.tool_choice
    if choice is not None:
        is_mode = choice in ("auto", "none", "required")
        body["tool_choice"] = choice if is_mode else {"type": "function", "function": {"name": choice}}
    if conversation.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = conversation.parallel_tool_calls
    thinking = conversation.thinking
    if isinstance(thinking, str):
        body["reasoning_effort"] = thinking
    if thinking is not None and engine:
        # The name of the switch in llama.cpp's templates; OpenAI itself rejects it.
        body["chat_template_kwargs"] = {"enable_thinking": thinking is not False}
    return body | _sampling(conversation.sampling, engine=engine)


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _sampling(sampling: Sampling, *, engine: bool) -> dict[str, Any]:
    # The field names are llama.cpp's own, which are OpenAI's where OpenAI has them.
    if engine:
        return sampling.values(assumed=True)
    given = sampling.values(assumed=False).items()
    body = {name: value for name, value in given if name not in _LLAMA_ONLY and value != _WITHOUT_EFFECT.get(name)}
    if "repeat_penalty" in body:
        body["repetition_penalty"] = body.pop("repeat_penalty")
    return body


def _stream(output: Output, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if output.choices > 1:
        body["n"] = output.choices
    return body


def _output(output: Output, *, stream: bool) -> dict[str, Any]:
    body = _stream(output, stream=stream)
    if output.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": output.logprobs}
    if output.schema is not None:
        if bytes(output.schema) == _ANY_OBJECT:
            body["response_format"] = {"type": "json_object"}
        else:
            wanted = {"name": "answer", "strict": is_strict(output.schema), "schema": output.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return body


def _details(conversation: Conversation, *, stream: bool) -> dict[str, Any]:
    # The stop sequence that was hit is only part of the debugging output, which repeats the whole prompt: it is asked
    # for only if there are stop sequences.
    details = {"return_progress": True} if stream else {}
    return details | ({"verbose": True} if conversation.sampling.stop else {})


def _completion_output(output: Output, *, stream: bool) -> dict[str, Any]:
    body = _stream(output, stream=stream)
    if output.logprobs is not None:
        body["logprobs"] = output.logprobs
    if output.schema is not None:
        any_object = bytes(output.schema) == _ANY_OBJECT
        body["json_schema"] = {"type": "object"} if any_object else output.schema
    return body


# Operations whose stream can be folded into the whole response.
_FOLDABLE = frozenset({"chat", "completions", "responses"})

# Operations whose streams can begin with the progress of reading the prompt.
_WITH_PROGRESS = frozenset({"chat", "completions"})

# These ask for more than a stream contains. So does `"logprobs": 0`, but for one token it is the same.
_NOT_IN_STREAMS = ("verbose", "logprobs", "n_probs")


class OpenAIUpstream(Upstream):
    """A request in this protocol is forwarded: `model` is replaced, `stream` added where a whole response is to be
    folded from a stream, the gateway's progress lines are removed from the history, and every other byte stays.

    `prefix` is the path in front of the routes; where it is only supposed, a discovery tries `other_prefixes` as well.
    `engine`: the backend is llama.cpp's server, which has more parameters. `progress`: it is asked how far it has read the
    prompts of streams; the parser keeps that from clients that did not ask.
    """

    def __init__(
        self,
        wire: str = WIRE,
        *,
        prefix: str = "/v1",
        other_prefixes: tuple[str, ...] = (),
        engine: bool = False,
        progress: bool = False,
    ) -> None:
        self.wire = wire
        self._prefix = prefix
        self._other_prefixes = other_prefixes
        self._engine = engine
        self._progress = progress

    def forward_path(self, path: str) -> str:
        """A client's `/v1` is the prefix here, also where the client has left it out; other paths are beside it, as vLLM's
        `/pooling` is."""
        if path.startswith(_USUAL + "/"):
            return self._prefix + path.removeprefix(_USUAL)
        return self._prefix + path if path in _WITHOUT_V1 else path

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        return discovery.discover((self._prefix, *self._other_prefixes))

    def speaks(self, wire: str) -> bool:
        """Engines get chats instead of responses: the events of llama-server's lack the sequence numbers. Nor does it know
        custom tools."""
        return wire == self.wire or (wire in (RESPONSES, CUSTOM_CHAT) and not self._engine)

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        origin = request.origin
        if not self.speaks(origin.wire):
            body = request_body(request, model=model, stream=stream, engine=self._engine, progress=self._progress)
            return WireRequest(path=self._prefix + UPSTREAM_PATHS[operation_of(request)], body=body)
        path = self._prefix + UPSTREAM_PATHS[origin.operation]
        if origin.operation in FORMS and origin.content_type.lower().startswith(_FORM):
            form = multipart.patch(origin.body, origin.content_type, "model", model)
            return WireRequest(path=path, body=form, content_type=origin.content_type)
        body = origin.body
        if origin.operation == "chat":
            body = with_text_arguments(without_progress(body))
        elif origin.operation == "responses":
            body = without_progress(body, "input")
        members = json_body.members(body, origin.json_body)
        changes: dict[str, bytes | None] = {}
        name = msgspec.json.encode(model)
        if bytes(members.get("model", b"")) != name:
            changes["model"] = name
        if self._progress and origin.operation in _WITH_PROGRESS and output_of(request).stream:
            changes["return_progress"] = b"true"
        if origin.operation == "rerank" and (texts := plain_documents(body)) is not None:
            changes["documents"] = texts
        if stream and origin.operation in _FOLDABLE and not output_of(request).stream and _foldable(members):
            changes["stream"] = b"true"
            if origin.operation != "responses":
                changes["stream_options"] = _with_usage(members.get("stream_options"))
        return WireRequest(path=path, body=json_body.patch(body, changes, members) if changes else body)

    def parser(self, request: Request, *, fields: bool) -> OpenAIParser:
        operation = request.origin.operation if self.speaks(request.origin.wire) else operation_of(request)
        sent = request.origin.body if operation in ("embeddings", "rerank") else b""
        if operation == "embeddings" and not fields and wants_bytes(sent):
            operation = "plain_embeddings"
        return OpenAIParser(
            operation,
            fields=fields,
            wire=CUSTOM_CHAT if request.origin.wire == CUSTOM_CHAT and not fields else None,
            choices=output_of(request).choices,
            sent=sent,
            strips_progress=self._progress and not asks_progress(request.origin.body),
        )


def asks_progress(body: bytes) -> bool:
    """Whether the client itself wants to know how far its prompt is read."""
    # One search in the bytes answers that nearly always.
    return b'"return_progress"' in body and bytes(json_body.members(body).get("return_progress", NULL)) == b"true"


def _foldable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a stream contains all of the whole response. llama-server's leaves out the debugging output, and the
    probabilities of tokens that are held back until a call or a stop sequence is complete."""
    return all(bytes(members.get(name, msgspec.Raw(b"null"))) in (b"null", b"false", b"0") for name in _NOT_IN_STREAMS)


def _with_usage(options: msgspec.Raw | None) -> bytes:
    # The response that is folded from the stream must contain the usage.
    members: dict[str, msgspec.Raw] = {}
    if options is not None and bytes(options) != b"null":
        members = msgspec.json.decode(options, type=dict[str, msgspec.Raw])
    members["include_usage"] = msgspec.Raw(b"true")
    return msgspec.json.encode(members)
