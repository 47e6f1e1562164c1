"""What identifies the conversation of a request."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Origin,
    Output,
    Passthrough,
    Request,
)
from hostler.gateway.prompt_identity import prompt_identity
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.slot_table import shared_bytes

SYSTEM = {"role": "system", "content": "You are a ferryman."}
HELLO = {"role": "user", "content": "Hello!"}
ANSWER = {"role": "assistant", "content": "Ahoy."}
NEXT = {"role": "user", "content": "Across, please."}


def origin(body: dict[str, Any], operation: str = "chat") -> Origin:
    return Origin(wire="openai", operation=operation, body=json.dumps(body).encode())


def chat(messages: Any, headers: dict[str, str] | None = None, owner: str = "", **fields: Any) -> PromptIdentity:
    identity = prompt_identity(ChatRequest(origin=origin({"messages": messages, **fields})), headers or {}, owner)
    assert identity is not None
    return identity


def test_a_conversation_that_goes_on_shares_all_of_its_last_prompt() -> None:
    first, second = chat([SYSTEM, HELLO]), chat([SYSTEM, HELLO, ANSWER, NEXT], temperature=0.5)
    assert second.marks[: len(first.marks)] == first.marks
    assert shared_bytes(first, second) == first.marks[-1][1]


def test_instructions_come_first_wherever_the_client_puts_them() -> None:
    tools = [{"name": "row"}]
    assert len(chat([HELLO], system="Row.", tools=tools).marks) == len(chat([SYSTEM, HELLO]).marks) == 2
    other = chat([SYSTEM, {"role": "user", "content": "Something else"}])
    assert shared_bytes(chat([SYSTEM, HELLO]), other) == chat([SYSTEM, HELLO]).marks[0][1]
    assert shared_bytes(chat([HELLO], tools=tools), chat([HELLO], tools=[{"name": "sail"}])) == 0


def test_marks_of_the_cache_are_no_part_of_the_prompt() -> None:
    marked = {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}
    plain = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    assert chat([marked, ANSWER]).marks == chat([plain, ANSWER]).marks


def test_much_white_space_takes_no_longer_than_other_text() -> None:
    mark = {"type": "ephemeral"}
    began_at = time.process_time()
    chat([{"role": "user", "content": [{"type": "text", "text": " " * 200_000, "cache_control": mark}]}])
    assert time.process_time() - began_at < 2.0


@pytest.mark.parametrize(
    "one",
    [
        {"prompt_cache_key": "k"},
        {"conversation": "conv_1"},
        {"metadata": {"user_id": "u_session_1"}},
        {"chat_id": "c"},
        {"headers": {"x-openwebui-chat-id": "c"}},
        {"headers": {"session_id": "s"}},
        {"headers": {"x-claude-code-session-id": "s"}},
    ],
)
def test_clients_name_their_conversations(one: dict[str, Any]) -> None:
    named = chat([HELLO], **one)
    assert named.id
    assert named.id == chat([HELLO, ANSWER, NEXT], **one).id
    assert named.id != chat([HELLO], prompt_cache_key="another").id
    assert chat([HELLO]).id == ""


def test_a_long_conversation_has_few_marks() -> None:
    messages = [{"role": "user", "content": f"Message {number}"} for number in range(1000)]
    before, after = chat(messages[:980]), chat(messages)
    assert len(after.marks) == 64
    assert shared_bytes(before, after) == before.marks[-1][1]
    assert after.marks == tuple(sorted(after.marks, key=lambda mark: mark[1]))


def test_a_plain_prompt_is_marked_in_parts() -> None:
    def complete(prompt: str) -> PromptIdentity:
        request = CompletionRequest(origin=origin({"prompt": prompt}, "completions"))
        identity = prompt_identity(request, {}, "")
        assert identity is not None
        return identity

    story = "Once upon a time. " * 1000
    assert shared_bytes(complete(story), complete(story + "The end.")) >= len(story) - 2048
    assert shared_bytes(complete(story), complete("Twice " + story)) == 0


@pytest.mark.parametrize(
    "request_",
    [
        EmbedRequest(origin=origin({"input": "x"}, "embeddings")),
        ChatRequest(origin=origin({"messages": [HELLO]}), output=Output(choices=2)),
        CompletionRequest(origin=origin({"prompt": ["one", "two"]}, "completions")),
        Passthrough(origin=origin({"content": "x"}, "tokenize")),
        ChatRequest(origin=Origin(wire="openai", operation="chat", body=b"{broken")),
        ChatRequest(origin=Origin(wire="openai", operation="chat", body=b'{"messages": [}')),
    ],
)
def test_other_requests_have_no_conversation(request_: Request) -> None:
    assert prompt_identity(request_, {}, "") is None


def test_unreadable_messages_have_no_marks() -> None:
    assert chat(None).marks == ()


def test_the_same_name_is_another_conversation_with_another_key() -> None:
    session = {"x-session-id": "1"}
    mine, yours = chat([SYSTEM, HELLO], session, owner="ann 1"), chat([SYSTEM, HELLO], session, owner="ben 1")
    assert len({mine.id, yours.id, chat([SYSTEM, HELLO], session).id}) == 3
    assert mine.marks == yours.marks
    assert mine == chat([SYSTEM, HELLO], session, owner="ann 1")
    # Without names, the prompt alone decides.
    assert chat([SYSTEM, HELLO], owner="ann 1") == chat([SYSTEM, HELLO], owner="ben 1")
