"""OpenAI's SDK reads what the encoder writes, whatever the chunks are."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from hostler.adapters import sse
from hostler.adapters.canonical import Chunk, Progress, ResponseHead, TokenLogprob, ToolCall, Usage

texts = st.text(max_size=10)
tokens = st.builds(TokenLogprob, token=texts, logprob=st.floats(-20, 0))
calls = st.builds(ToolCall, index=st.integers(0, 2), id=st.none() | texts, name=st.just("look"), arguments=texts)
chunks = st.builds(
    Chunk,
    wire=st.just("other"),
    text=texts,
    reasoning=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    logprobs=st.lists(tokens, max_size=2).map(tuple),
    index=st.integers(0, 1),
)
counts = st.none() | st.builds(Usage, prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9))
reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
stateless = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)


@stateless
@given(content=st.lists(chunks, min_size=1, max_size=6), usage=counts, finish=reasons, waits=st.integers(0, 3))
def test_the_sdk_reads_any_stream(
    chat: Any, start_encoder: Any, content: list[Chunk], usage: Usage | None, finish: str, waits: int
) -> None:
    encoder = start_encoder(chat(stream=True, stream_options={"include_usage": True}))
    heartbeats = [encoder.heartbeat(Progress(phase="loading", model="b", percent=1.0)) for _ in range(waits)]
    end = Chunk(wire="other", finish=finish, usage=usage)
    encoded = b"".join([*heartbeats, *(encoder.encode(chunk) for chunk in (*content, end)), encoder.finish()])
    *events, done = [data for _, data in sse.iter_events(encoded)]
    read = [ChatCompletionChunk.model_validate(json.loads(data)) for data in events]
    assert done == b"[DONE]"
    text = "".join(choice.delta.content or "" for chunk in read for choice in chunk.choices)
    assert text == "".join(chunk.text for chunk in content)
    assert [chunk.usage for chunk in read if chunk.usage is not None] == [] or usage is not None


@stateless
@given(content=st.lists(chunks, min_size=1, max_size=6), usage=counts, finish=reasons)
def test_the_sdk_reads_any_whole_response(
    chat: Any, start_encoder: Any, content: list[Chunk], usage: Usage | None, finish: str
) -> None:
    encoder = start_encoder(chat())
    for chunk in (*content, *(Chunk(wire="other", finish=finish, index=index, usage=usage) for index in (0, 1))):
        encoder.encode(chunk)
    response = ChatCompletion.model_validate(json.loads(encoder.finish()))
    for choice in response.choices:
        own = [chunk for chunk in content if chunk.index == choice.index]
        assert (choice.message.content or "") == "".join(chunk.text for chunk in own)
        assert choice.finish_reason == finish


def test_the_sdk_reads_completions_and_embeddings(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/completions", {"model": "a", "prompt": "x"}))
    encoder.encode(Chunk(wire="other", text="Hi", finish="stop"))
    assert Completion.model_validate(json.loads(encoder.finish())).choices[0].text == "Hi"
    encoder = start_encoder(decode_request("/v1/embeddings", {"model": "a", "input": "x"}), ResponseHead())
    encoder.encode(Chunk(wire="other", is_body=True, vectors=((0.5, 1.0),)))
    assert CreateEmbeddingResponse.model_validate(json.loads(encoder.finish())).data[0].embedding == [0.5, 1.0]
