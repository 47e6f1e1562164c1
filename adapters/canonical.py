"""The canonical requests and response chunks that every protocol is decoded to and encoded from.

Values only. `None` always means that the client did not set it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec

from hostler.adapters.json_body import JsonBody
from hostler.profiles.presets import Preset


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The request as the client sent it, so that a backend of the same protocol gets the same bytes.

    `wire` names the protocol (`openai`, `ollama`, ...), `operation` the adapter's operation; `path` is percent-encoded as
    sent, `query` without the question mark. `headers` are the protocol's own, forwarded to a backend of the same protocol;
    never credentials. `json_body` is the parsed body, if the adapter has parsed it.
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
    text: str


class Media(msgspec.Struct, frozen=True, kw_only=True, tag="media"):
    """An image or audio in a message: base64 `data` with its `mime`, or a `url` that only the engine fetches."""

    kind: Literal["image", "audio"]
    data: str | None = None
    mime: str | None = None
    url: str | None = None


Part = Text | Media


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call. In a stream, `arguments` is the next fragment of the JSON text, and `name` comes once."""

    index: int = 0
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    parts: tuple[Part, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is its JSON Schema, in the client's own bytes.

    `strict`: its calls have to follow the schema exactly.
    """

    name: str
    description: str | None = None
    parameters: msgspec.Raw | None = None
    strict: bool | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters, under llama.cpp's names.

    `assumed` names those that the client did not set, but that its own server would use, as Ollama does.
    """

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
    assumed: frozenset[str] = frozenset()

    def values(self, *, assumed: bool) -> dict[str, Any]:
        """The parameters that are set, by name: all, or without the assumed ones."""
        values = msgspec.structs.asdict(self)
        left_out = () if assumed else values.pop("assumed")
        values.pop("assumed", None)
        return {name: value for name, value in values.items() if value is not None and name not in left_out}


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the response.

    `schema` is a JSON Schema as bytes, or the JSON text `"json"` for any JSON object; `None` is free text.
    `details` asks an engine for what most protocols leave out: the prompt's length before the first token, and the
    stop sequence that was hit.
    """

    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    schema: msgspec.Raw | None = None
    logprobs: int | None = None
    details: bool = False


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, fully decoded. Needed only where the backend does not speak the client's protocol.

    `adaptive_thinking`: the model takes no budget for reasoning; Anthropic's from Claude Opus 4.7 on.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    sampling: Sampling = Sampling()
    thinking: bool | str | None = None
    adaptive_thinking: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """Continue a conversation. `conversation` stays `None` while the bytes can be forwarded as they are."""

    origin: Origin
    model: str | None = None
    output: Output = Output()
    conversation: Conversation | None = None
    keep_alive_s: float | None = None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True, tag="completion"):
    """Continue a prompt verbatim, without a chat template.

    `prompt` and `sampling` stay `None` while the bytes can be forwarded as they are.
    """

    origin: Origin
    model: str | None = None
    output: Output = Output()
    prompt: str | None = None
    suffix: str | None = None
    sampling: Sampling | None = None
    keep_alive_s: float | None = None


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """Embed texts. `normalize=False` asks for the vectors as the model computes them."""

    origin: Origin
    model: str | None = None
    inputs: tuple[str, ...] | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    keep_alive_s: float | None = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True, tag="rerank"):
    """Rank documents by how well they match a query."""

    origin: Origin
    model: str | None = None
    query: str | None = None
    documents: tuple[str, ...] | None = None
    top_n: int | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True, tag="count"):
    """Count the tokens of a conversation; nothing is generated.

    The response is one chunk with the count in `usage.prompt_tokens`.
    """

    origin: Origin
    model: str | None = None
    conversation: Conversation | None = None


class Passthrough(msgspec.Struct, frozen=True, kw_only=True, tag="passthrough"):
    """A request that only the engine understands: forwarded as it is, its response returned as it comes.

    `any_backend`: its path is unknown, so that without a model any backend may be the one that understands it;
    `any_server` leaves out hosts, whose engines certainly do not. `has_json`: its route is known to answer in JSON, so
    that anything else is no response; with `member` if that is not empty.
    """

    origin: Origin
    model: str | None = None
    output: Output = Output()
    any_backend: bool = False
    any_server: bool = False
    has_json: bool = False
    member: str = ""


class WebSocketRequest(Passthrough, frozen=True, kw_only=True, tag="websocket"):
    """A handshake: its connection is passed on to the model's engine."""


class ModelInfoRequest(msgspec.Struct, frozen=True, kw_only=True, tag="model_info"):
    """A request for information about models or the server, answered from the catalogue: it never queues or switches.

    `kind` is the adapter's own name for it (`models`, `model`, `props`, ...).
    """

    origin: Origin
    kind: str
    model: str | None = None


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True, tag="stored"):
    """A request about a response or a stream that the gateway keeps: it reaches no backend.

    `kind` is the adapter's own name for it; of streams it is `follow` (from the byte `start` on), `stop` or `lookup` (of
    those in `ids`).
    """

    origin: Origin
    kind: str
    id: str = ""
    ids: tuple[str, ...] = ()
    start: int = 0
    model: str | None = None


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Load or unload a model now, without generating anything."""

    origin: Origin
    kind: Literal["load", "unload"]
    model: str
    keep_alive_s: float | None = None


class PullModel(msgspec.Struct, frozen=True, kw_only=True, tag="pull"):
    """Download the file of a model that is in the configuration."""

    origin: Origin
    model: str
    stream: bool = False


class StartDownload(msgspec.Struct, frozen=True, kw_only=True, tag="start_download"):
    """Download a model in the background. `reference` is its name in a registry, if the client names one of a registry;
    for other models there is no choice of a `quantization`."""

    origin: Origin
    model: str
    reference: str | None = None
    quantization: str | None = None


class FindDownloads(msgspec.Struct, frozen=True, kw_only=True, tag="find_downloads"):
    """Ask how far the download with this id is; without one, how far all are."""

    origin: Origin
    id: str | None = None
    model: str | None = None


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A download in the background as it is now. Sizes are in bytes, `total` is 0 while it is unknown, moments are in
    seconds since the epoch. One without an `id` had nothing to fetch."""

    id: str | None = None
    status: Literal["downloading", "completed", "failed"] = "completed"
    completed: int = 0
    total: int = 0
    bytes_per_second: float = 0.0
    started_at: float = 0.0
    estimated_end: float | None = None
    ended_at: float | None = None
    error: str = ""


class CopyModel(msgspec.Struct, frozen=True, kw_only=True, tag="copy"):
    """Give a model a second name."""

    origin: Origin
    model: str
    destination: str


class CreateModel(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """Derive a model from another one (`preset.model`) or from an uploaded file, under a new name.

    `files` maps file names to checksums. `context` is the context length in tokens, `template` the chat template.
    """

    origin: Origin
    model: str
    preset: Preset
    files: Mapping[str, str] = {}
    context: int | None = None
    template: str = ""
    stream: bool = False


class DeleteModel(msgspec.Struct, frozen=True, kw_only=True, tag="delete"):
    """Delete a model that a client created."""

    origin: Origin
    model: str


class FindBlob(msgspec.Struct, frozen=True, kw_only=True, tag="find"):
    """Ask whether the file with this checksum was uploaded."""

    origin: Origin
    digest: str
    model: str | None = None


#: Requests that manage models.
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
    | StoredRequest
    | LoadRequest
    | PullModel
    | CopyModel
    | CreateModel
    | DeleteModel
    | FindBlob
    | StartDownload
    | FindDownloads
)

# The requests that can be answered with a stream.
_STREAMED = (ChatRequest, CompletionRequest, Passthrough)
_PLAIN = Output()


def output_of(request: Request) -> Output:
    """The form of the response; the default for requests that have no choice of one."""
    return request.output if isinstance(request, _STREAMED) else _PLAIN


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts, and the engine's own timings in milliseconds and the cost in US dollars where they are known.

    `prompt_tokens` includes `cached_tokens`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_ms: float | None = None
    completion_ms: float | None = None
    cost: float | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token's log probability, with the alternatives that the client asked for."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TokenLogprob, ...] = ()


class ProgressStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a model operation. For downloads, `digest` is the file's (64 hex digits), and sizes are in bytes."""

    step: Literal["looking", "fetching", "verifying", "parsing", "reusing", "adding", "writing", "done"]
    digest: str = ""
    completed: int | None = None
    total: int | None = None


#: Receives the steps of a model operation as they happen.
ReportStep = Callable[[ProgressStep], Awaitable[None]]


class Chunk(msgspec.Struct, kw_only=True, gc=False):
    """A piece of a response.

    `raw` holds the bytes as they came in the protocol `wire`: one or more whole events of a stream or, with `is_body`,
    a segment of a body that is not a stream. `finish` and `usage` are always set where the backend sends them, the
    other fields only if the parser decodes fields. `stop` is the stop sequence that was hit, where the backend names
    it. `vectors` are embeddings, in the order of the inputs. Treat as immutable: it is not frozen for speed alone.
    """

    wire: str = ""
    raw: bytes = b""
    is_body: bool = False
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    stop: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()
    index: int = 0
    step: ProgressStep | None = None


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """Status, media type and, where the backend sent it, the length of the body in bytes."""

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
    "reading the prompt",
    "waking",
    "fallback",
]


class PromptStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a backend has read a prompt, in tokens: `processed` of `total`, of which `cached` took no time.

    `seconds` is how long the others took.
    """

    total: int
    cached: int = 0
    processed: int = 0
    seconds: float = 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is waiting for. Times in seconds, `percent` from 0 to 100, `position` counts from 1.

    `elapsed_s` is how long the present phase or load has taken, `overdue` that this is longer than estimated: then there
    is neither `percent` nor `eta_s`.
    """

    phase: ProgressPhase
    model: str
    from_model: str | None = None
    position: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    elapsed_s: float | None = None
    overdue: bool = False
    waited_s: float = 0.0
