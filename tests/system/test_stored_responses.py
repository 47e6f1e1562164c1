"""Stored responses: later requests refer to earlier ones, whatever backend answers, as OpenAI's own package sends them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes.scripted_server import ScriptedAnswer, ScriptedServer, start_scripted_server
from system.fallback_chain import start_chain
from system.running_gateway import StartGateway, write_keys

pytestmark = pytest.mark.anyio

each_backend = pytest.mark.parametrize("backend", ["llamacpp", "openai", "ollama", "anthropic"])
streamed_or_whole = pytest.mark.parametrize("stream", [False, True])


@asynccontextmanager
async def meeting(
    tmp_path: Path, kind: str = "llamacpp", **gateway: Any
) -> AsyncIterator[tuple[ScriptedServer, openai.AsyncOpenAI]]:
    """OpenAI's package before a gateway before a scripted backend of this kind."""
    async with start_scripted_server() as server:
        server.answer = ScriptedAnswer(words=("Hi", " Bob."))
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}}
        async with (
            start_chain(tmp_path, {"there": backend}, gateway=gateway) as chain,
            openai.AsyncOpenAI(base_url=f"{chain.http.base_url}/v1", api_key="x", max_retries=0) as client,
        ):
            yield server, client


async def respond(client: openai.AsyncOpenAI, text: Any, *, stream: bool = False, **more: Any) -> Any:
    """The response to a request, from its last event if it is streamed."""
    answer = await client.responses.create(model="m", input=text, stream=stream, **more)
    if not stream:
        return answer
    events = [event async for event in answer]
    return events[-1].response


def asked(server: ScriptedServer) -> list[tuple[str, str]]:
    """The texts of the last request that the backend received, with their roles."""
    body = server.requests[-1][1]
    turns = body.get("messages") or body.get("input")
    result: list[tuple[str, str]] = []
    for turn in turns:
        content = turn["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        result.append((turn["role"], text))
    return result


def text_of(item: openai.BaseModel) -> str:
    """The text of a message among the items of a response's input."""
    content: Any = item.to_dict()["content"]
    return str(content[0]["text"])


CONVERSATION = [("user", "I am Bob."), ("assistant", "Hi Bob."), ("user", "Who am I?")]


@each_backend
@streamed_or_whole
async def test_a_request_continues_a_response_by_its_id(tmp_path: Path, backend: str, stream: bool) -> None:
    async with meeting(tmp_path, backend) as (server, client):
        first = await respond(client, "I am Bob.", stream=stream)
        assert first.store is True
        second = await respond(client, "Who am I?", stream=stream, previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert asked(server) == CONVERSATION
        await respond(client, "And now?", stream=stream, previous_response_id=second.id)
        assert asked(server) == [*CONVERSATION, ("assistant", "Hi Bob."), ("user", "And now?")]


@each_backend
@streamed_or_whole
async def test_items_are_referred_to_by_their_ids(tmp_path: Path, backend: str, stream: bool) -> None:
    async with meeting(tmp_path, backend) as (server, client):
        first = await respond(client, "I am Bob.", stream=stream)
        reference = {"type": "item_reference", "id": first.output[0].id}
        turns = [{"role": "user", "content": "I am Bob."}, reference, {"role": "user", "content": "Who am I?"}]
        second = await respond(client, turns, stream=stream)
        assert asked(server) == CONVERSATION
        await respond(client, "And now?", previous_response_id=second.id)
        assert asked(server)[:3] == CONVERSATION


async def test_a_backend_with_the_responses_api_of_its_own_gets_the_whole_conversation(tmp_path: Path) -> None:
    async with meeting(tmp_path, "openai") as (server, client):
        server.has_responses = True
        first = await respond(client, "I am Bob.", stream=True)
        await respond(client, "Who am I?", previous_response_id=first.id)
        path, body = server.requests[-1]
        assert path == "/v1/responses" and body["previous_response_id"] is None
        assert asked(server) == CONVERSATION


@streamed_or_whole
async def test_a_backend_without_the_responses_api_cannot_have_stored_one(tmp_path: Path, stream: bool) -> None:
    async with meeting(tmp_path, "openai") as (server, client):
        for _ in range(2):
            with pytest.raises(openai.BadRequestError, match="needs a backend that stores responses") as refused:
                await respond(client, "Who am I?", stream=stream, previous_response_id="resp_unknown")
            assert refused.value.param == "previous_response_id"
            assert refused.value.response.headers["x-should-retry"] == "false"
        assert [path for path, _ in server.requests].count("/v1/chat/completions") == 0
        assert (await respond(client, "Hello", stream=stream)).output


@streamed_or_whole
@pytest.mark.parametrize("status", [400, 404])
async def test_a_backends_own_word_on_an_unknown_response_stands(tmp_path: Path, stream: bool, status: int) -> None:
    words = "Response with id 'resp_unknown' not found."
    body = {"error": {"message": words, "type": "invalid_request_error", "param": None, "code": None}}
    async with meeting(tmp_path, "openai") as (server, client):
        server.has_responses = True
        server.prepared = [(status, "application/json", json.dumps(body).encode())]
        with pytest.raises(openai.APIStatusError, match=words) as refused:
            await respond(client, "Who am I?", stream=stream, previous_response_id="resp_unknown")
        assert refused.value.status_code == status
        assert len(server.requests) == 1


@streamed_or_whole
@pytest.mark.parametrize("by", ["previous_response_id", "item_reference"])
async def test_what_was_stored_and_dropped_reaches_no_backend(tmp_path: Path, stream: bool, by: str) -> None:
    async with meeting(tmp_path, "openai") as (server, client):
        first = await respond(client, "I am Bob.", stream=stream)
        await client.responses.delete(first.id)
        server.has_responses = True
        sent = len(server.requests)
        turns = [{"type": "item_reference", "id": first.output[0].id}]
        with pytest.raises(openai.BadRequestError, match="not found"):
            if by == "item_reference":
                await respond(client, turns, stream=stream)
            else:
                await respond(client, "Who am I?", stream=stream, previous_response_id=first.id)
        assert len(server.requests) == sent


async def test_a_stored_response_is_shown_and_deleted(tmp_path: Path) -> None:
    async with meeting(tmp_path) as (_, client):
        first = await respond(client, "I am Bob.")
        second = await respond(client, "Who am I?", stream=True, previous_response_id=first.id)
        shown = await client.responses.retrieve(second.id)
        assert shown == second
        page = await client.responses.input_items.list(second.id, order="asc")
        assert list(map(text_of, page.data)) == [text for _, text in CONVERSATION]
        latest = await client.responses.input_items.list(second.id, limit=1)
        assert text_of(latest.data[0]) == "Who am I?" and latest.has_more
        await client.responses.delete(second.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await call(second.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await respond(client, "x", previous_response_id=second.id)
        assert caught.value.param == "previous_response_id"


async def test_a_response_is_not_stored_if_its_request_says_so(tmp_path: Path) -> None:
    async with meeting(tmp_path) as (_, client):
        first = await respond(client, "I am Bob.", store=False)
        assert first.store is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_a_key_sees_its_own_responses_only(tmp_path: Path) -> None:
    file, keys = write_keys(tmp_path, anna=0, ben=0)
    async with meeting(tmp_path, api_keys_file=file) as (_, client):
        anna, ben = client.with_options(api_key=keys["anna"]), client.with_options(api_key=keys["ben"])
        first = await respond(anna, "I am Anna.")
        assert (await anna.responses.retrieve(first.id)).id == first.id
        with pytest.raises(openai.NotFoundError):
            await ben.responses.retrieve(first.id)
        for turns, more in (
            ([{"type": "item_reference", "id": first.output[0].id}], {}),
            ("x", {"previous_response_id": first.id}),
        ):
            with pytest.raises(openai.BadRequestError):
                await respond(ben, turns, **more)


async def test_references_to_anothers_responses_reach_no_backend(tmp_path: Path) -> None:
    file, keys = write_keys(tmp_path, anna=0, ben=0)
    async with meeting(tmp_path, "openai", api_keys_file=file) as (server, client):
        anna, ben = client.with_options(api_key=keys["anna"]), client.with_options(api_key=keys["ben"])
        first = await respond(anna, "I am Anna.")
        before = len(server.requests)
        for turns, more in (
            ([{"type": "item_reference", "id": first.output[0].id}], {}),
            ("x", {"previous_response_id": first.id}),
        ):
            with pytest.raises(openai.BadRequestError, match="not found"):
                await respond(ben, turns, **more)
        with pytest.raises(openai.BadRequestError, match="background"):
            await respond(ben, "x", background=True)
        assert len(server.requests) == before


async def test_a_new_key_does_not_see_the_responses_of_one_that_had_its_name(tmp_path: Path) -> None:
    on_disk = {"store": "disk", "file": str(tmp_path / "responses.sqlite3")}
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        file, keys = write_keys(tmp_path / name, anna=0)
        async with meeting(tmp_path, api_keys_file=file, responses=on_disk) as (_, client):
            anna = client.with_options(api_key=keys["anna"])
            found.append(await respond(anna, "I am Anna."))
            with pytest.raises(openai.NotFoundError) if name == "second" else nullcontext():
                await anna.responses.retrieve(found[0].id)


async def test_nothing_is_stored_while_it_is_switched_off(tmp_path: Path) -> None:
    async with meeting(tmp_path, responses={"store": "off"}) as (server, client):
        first = await respond(client, "I am Bob.")
        assert first.store is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError):
            await respond(client, "x", previous_response_id=first.id)
        assert len(server.requests) == 1


async def test_responses_on_disk_survive_a_restart(tmp_path: Path) -> None:
    on_disk = {"store": "disk", "file": str(tmp_path / "state" / "responses.sqlite3")}
    async with meeting(tmp_path, responses=on_disk) as (_, client):
        first = await respond(client, "I am Bob.")
        gone = await respond(client, "I am Eve.")
        await client.responses.delete(gone.id)
    assert (tmp_path / "state" / "responses.sqlite3").stat().st_mode & 0o777 == 0o600
    async with meeting(tmp_path, responses=on_disk) as (server, client):
        await respond(client, "Who am I?", previous_response_id=first.id)
        assert asked(server) == CONVERSATION
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone.id)


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"type": "item_reference", "id": "msg_unknown"}]},
        {"input": "x", "previous_response_id": "resp_unknown"},
        {"input": "x", "conversation": "conv_1"},
        {"input": "x", "background": True},
        {"input": [{"type": "unheard_of"}]},
    ],
)
@pytest.mark.parametrize("store", ["memory", "off"])
async def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(
    start_gateway: StartGateway, body: dict[str, Any], store: str
) -> None:
    async with start_gateway({"a": {}}, gateway={"responses": {"store": store}}) as gateway:
        answer = await gateway.http.post("/v1/responses", json={"model": "a", "stream": True, **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert gateway.starts() == []
