"""The JSON of OpenAI's requests as typed values. Unknown fields are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.openai.schema import NULL


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True):
    url: str


class InputAudio(msgspec.Struct, frozen=True, kw_only=True):
    data: str
    format: str = "wav"


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None
    input_audio: InputAudio | None = None


class PastFunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is JSON text; some clients send an object or null."""

    name: str | None = None
    arguments: Any = None


class PastCustomCall(msgspec.Struct, frozen=True, kw_only=True):
    """`input` is any text."""

    name: str | None = None
    input: str | None = None


class PastToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call in the history."""

    id: str | None = None
    function: PastFunctionCall | None = None
    custom: PastCustomCall | None = None


class OpenAIMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "user"
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[PastToolCall] | None = None
    function_call: PastFunctionCall | None = None
    tool_call_id: str | None = None
    name: str | None = None


class OpenAIFunction(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(NULL)
    strict: bool | None = None


class CustomGrammar(msgspec.Struct, frozen=True, kw_only=True):
    syntax: str | None = None
    definition: str | None = None


class CustomToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    grammar: CustomGrammar | None = None


class OpenAICustomTool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    format: CustomToolFormat | None = None


class OpenAITool(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    function: OpenAIFunction | None = None
    custom: OpenAICustomTool | None = None


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None


class OpenAIToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    function: FunctionName | None = None
    custom: FunctionName | None = None
    name: str | None = None
    allowed_tools: AllowedTools | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    """A choice among some of the tools: `mode` is `auto` or `required`."""

    mode: str = "auto"
    tools: list[OpenAIToolChoice] = []


class ReasoningOptions(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None
    enabled: bool | None = None


class TemplateArguments(msgspec.Struct, frozen=True, kw_only=True):
    enable_thinking: bool | None = None


class SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n_predict: int | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    messages: list[OpenAIMessage]
    tools: list[OpenAITool] | None = None
    functions: list[OpenAIFunction] | None = None
    tool_choice: str | OpenAIToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    think: bool | str | None = None
    chat_template_kwargs: TemplateArguments | None = None


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    prompt: Any = None
    suffix: str | None = None


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True):
    input: Any = None
    dimensions: int | None = None


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    documents: list[Any] | None = None
    texts: list[Any] | None = None
    top_n: int | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    schema: msgspec.Raw = msgspec.Raw(NULL)


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    schema: msgspec.Raw = msgspec.Raw(NULL)
    json_schema: JsonSchemaFormat | None = None
