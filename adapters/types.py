"""The canonical request and its answer's chunks: what every protocol is turned into and out of.

Values only. `None` always means "the client did not say".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec

from hostler.adapters.json_body import JsonBody
from hostler.profiles.presets import Preset


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What the client really sent, so that a backend of the same protocol gets the same bytes.

    `wire` names the protocol (`openai`, `ollama`, ...), `operation` the adapter's operation, `path` is the
    path on the wire as it came (percent-encoding kept), `query` is without the question mark.
    `headers` are those that belong to the protocol itself and go on to a backend of the same one; never credentials.
    `json_body` is the parsed body, if the adapter has parsed it.
    """

    wire: str
    operation: str
    body: bytes = b""
    method: str = "POST"
    path: str = ""
    query: str = ""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    json_body: JsonBody | None = None


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A run of text in a message."""

    text: str


class Media(msgspec.Struct, frozen=True, kw_only=True, tag="media"):
    """An image or a sound in a message: base64 `data` with its `mime`, or a `url` that only the engine resolves."""

    kind: Literal["image", "audio"]
    data: str | None = None
    mime: str | None = None
    url: str | None = None


Part = Text | Media


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool. In a stream, `arguments` is the next fragment of the JSON text and `name` comes once."""

    index: int = 0
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: str
    parts: tuple[Part, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is its JSON Schema, as the client's own bytes."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Penalties and temperatures as llama.cpp names them."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of the answer that the client asked for.

    `schema` is a JSON Schema as bytes, or the JSON text `"json"` for any JSON object; `None` is free text.
    `details` asks an engine for what most protocols do not tell: how long the prompt is, before the first word, and
    which stop sequence was met.
    """

    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    schema: msgspec.Raw | None = None
    logprobs: int | None = None
    details: bool = False


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, understood in full. Decoded only when a backend speaks another protocol than the client."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    sampling: Sampling = Sampling()
    thinking: bool | str | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """A conversation to be continued. `conversation` stays `None` while bytes can be forwarded as they are."""

    origin: Origin
    model: str | None = None
    output: Output = Output()
    conversation: Conversation | None = None
    keep_alive_s: float | None = None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True, tag="completion"):
    """A prompt to be continued as it stands, without a chat template.

    `prompt` and `sampling` stay `None` while bytes can be forwarded as they are.
    """

    origin: Origin
    model: str | None = None
    output: Output = Output()
    prompt: str | None = None
    suffix: str | None = None
    sampling: Sampling | None = None
    keep_alive_s: float | None = None


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """Texts to be turned into vectors. `normalize` of `False` asks for them as the model gives them."""

    origin: Origin
    model: str | None = None
    inputs: tuple[str, ...] | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    keep_alive_s: float | None = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True, tag="rerank"):
    """Documents to be ordered by how well they answer a query."""

    origin: Origin
    model: str | None = None
    query: str | None = None
    documents: tuple[str, ...] | None = None
    top_n: int | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True, tag="count"):
    """How many tokens would this conversation take? Nothing is generated.

    The answer is one chunk whose `usage.prompt_tokens` is the number.
    """

    origin: Origin
    model: str | None = None
    conversation: Conversation | None = None


class Passthrough(msgspec.Struct, frozen=True, kw_only=True, tag="passthrough"):
    """A request that only the engine itself understands: forwarded as it is, answered as it comes."""

    origin: Origin
    model: str | None = None
    output: Output = Output()


class ModelInfoRequest(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """A question about the gateway itself. Answered from the catalogue: it never queues, switches or touches an engine.

    `kind` is the adapter's own word for what is asked (`models`, `model`, `props`, ...).
    """

    origin: Origin
    kind: str
    model: str | None = None


class Control(msgspec.Struct, frozen=True, kw_only=True, tag="control"):
    """An order about a model rather than a question to it: load or unload it now, without generating."""

    origin: Origin
    kind: Literal["load", "unload"]
    model: str
    keep_alive_s: float | None = None


class PullModel(msgspec.Struct, frozen=True, kw_only=True, tag="pull"):
    """Have a model's file here before somebody needs it. Only what the configuration names can be had."""

    origin: Origin
    model: str
    stream: bool = False


class CopyModel(msgspec.Struct, frozen=True, kw_only=True, tag="copy"):
    """Give a model a second name."""

    origin: Origin
    model: str
    destination: str


class CreateModel(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """Make a model of another one (`preset.model`), or of an uploaded file, under a new name.

    `files` maps names of files to their checksums. `context` is the number of tokens it is to run with, `template` how it
    is to write conversations.
    """

    origin: Origin
    model: str
    preset: Preset
    files: Mapping[str, str] = {}
    context: int | None = None
    template: str = ""
    stream: bool = False


class DeleteModel(msgspec.Struct, frozen=True, kw_only=True, tag="delete"):
    """Forget a model that a client made."""

    origin: Origin
    model: str


class FindBlob(msgspec.Struct, frozen=True, kw_only=True, tag="find"):
    """Is the file of this checksum here?"""

    origin: Origin
    digest: str
    model: str | None = None


#: What is asked about which models there are, rather than of one.
ModelOperation = PullModel | CopyModel | CreateModel | DeleteModel | FindBlob
MODEL_OPERATIONS = (PullModel, CopyModel, CreateModel, DeleteModel, FindBlob)

Request = (
    ChatRequest
    | CompletionRequest
    | EmbedRequest
    | RerankRequest
    | CountRequest
    | Passthrough
    | ModelInfoRequest
    | Control
    | PullModel
    | CopyModel
    | CreateModel
    | DeleteModel
    | FindBlob
)
Inference = ChatRequest | CompletionRequest | EmbedRequest | RerankRequest | CountRequest | Passthrough

#: The requests whose answers can be asked for as streams.
_STREAMED = (ChatRequest, CompletionRequest, Passthrough)
_PLAIN = Output()


def output_of(request: Request) -> Output:
    """The shape of the answer that was asked for; a plain whole one where a protocol knows no other."""
    return request.output if isinstance(request, _STREAMED) else _PLAIN


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took: tokens, and the engine's own timings in milliseconds where it tells them.

    `prompt_tokens` includes `cached_tokens`. `cost` is in US dollars where the backend tells it.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_ms: float | None = None
    completion_ms: float | None = None
    cost: float | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token's log probability, with the alternatives that were asked for."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TokenLogprob, ...] = ()


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ProgressStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an arrangement. Of a file on its way `digest` names it, 64 hexadecimal digits, and sizes are in bytes."""

    step: Literal["looking", "fetching", "verifying", "parsing", "reusing", "adding", "writing", "done"]
    digest: str = ""
    completed: int | None = None
    total: int | None = None


#: Receives the steps of a model operation as they happen.
ReportStep = Callable[[ProgressStep], Awaitable[None]]


class Chunk(msgspec.Struct, kw_only=True, gc=False):
    """A piece of an answer.

    `raw` holds the bytes as they came on the protocol `wire`: one or more whole events of a stream, or, when
    `whole` is set, a segment of a body that is not a stream. The other fields are filled when somebody asked
    for them; `finish` and `usage` are always noticed. `stop` is the stop sequence that was met, where the backend tells. `vectors` are an embedding's, in the order of its inputs. Not frozen for speed alone: nobody changes a chunk.
    """

    wire: str = ""
    raw: bytes = b""
    whole: bool = False
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    stop: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()
    index: int = 0
    stage: ProgressStep | None = None


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend's answer begins: status, media type and, where it was given, the length of the body in bytes."""

    status: int = 200
    media_type: str = "application/json"
    length: int | None = None


ProgressPhase = Literal[
    "queued",
    "draining",
    "fetching",
    "saving",
    "stopping",
    "starting",
    "loading",
    "restoring",
    "ready",
    "failed",
    "waking",
    "fallback",
]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a waiting request waits for. Times in seconds, `percent` from 0 to 100, `position` counts from 1."""

    phase: ProgressPhase
    model: str
    from_model: str | None = None
    position: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    waited_s: float = 0.0
