"""What identifies the conversation that a request continues: the client's own name of it, and its prompt so far."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Final

import msgspec

from hostler.adapters.canonical import ChatRequest, CompletionRequest, Passthrough, Request, output_of
from hostler.adapters.json_body import NOT_JSON
from hostler.supervisor.contract import PromptIdentity

#: Headers in which clients name the session or conversation, in lower case; besides them all of `_AGENT_HEADERS`.
_HEADERS: Final = (
    "x-openwebui-chat-id", "x-conversation-id", "conversation_id", "conversation-id", "x-session-id", "session_id",
    "session-id", "x-session-affinity", "x-chat-id",
)  # fmt: skip
_AGENT_HEADERS: Final = "x-claude-code-"

#: Members of the body with such a name, and members of `metadata`.
_MEMBERS: Final = ("prompt_cache_key", "conversation", "conversation_id", "session_id", "chat_id")
_METADATA: Final = ("chat_id", "session_id", "conversation_id", "user_id")

#: What comes before the messages in a prompt, whatever the order in the body.
_INSTRUCTIONS: Final = ("tools", "functions", "system", "instructions")

#: The members with the prompt itself.
_PROMPTS: Final = ("messages", "input", "prompt")

#: Operations of llama-server itself that continue a prompt.
_COMPLETIONS: Final = frozenset({"completion", "completions", "infill"})

#: How many marks a prompt has at most: the first two, and those at its end.
_LAST_MARKS: Final = 62

#: Plain prompts have a mark after each so many bytes.
_PART: Final = 2048

#: The prompts of larger bodies, in bytes, are read in a thread.
_LARGE: Final = 256 * 1024

# Clients move it from message to message; it is no part of the prompt. White space is only looked at behind a comma: at each place
# of a long piece of it, the search would go over all of the rest.
_CACHE_CONTROL: Final = re.compile(rb'(?:,\s*)?"cache_control"\s*:\s*\{[^{}]*\}')

_decode_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def prompt_identity(request: Request, headers: Mapping[str, str], owner: str) -> PromptIdentity | None:
    """What identifies the request's conversation; `None` for requests that continue none, or several at once.

    The same name means another conversation with another `owner`: see `Client.owner`. Takes about 1 µs for each message and
    kilobyte.
    """
    if not isinstance(request, ChatRequest | CompletionRequest | Passthrough) or output_of(request).choices > 1:
        return None
    origin = request.origin
    if isinstance(request, Passthrough) and origin.operation not in _COMPLETIONS:
        return None
    if not origin.content_type.lower().startswith("application/json"):
        return None
    try:
        members = _decode_members(origin.body) if origin.json_body is None else origin.json_body.members
        if bytes(members.get("prompt", b""))[:1] == b"[":
            return None  # several prompts, or tokens
        return PromptIdentity(_client_id(members, headers, owner), tuple(_marks(members)))
    except NOT_JSON:
        return None


async def identify_prompt(request: Request, headers: Mapping[str, str], owner: str) -> PromptIdentity | None:
    """The same, in a thread for large bodies."""
    if not is_large(request):
        return prompt_identity(request, headers, owner)
    return await asyncio.to_thread(prompt_identity, request, headers, owner)


def is_large(request: Request) -> bool:
    """Whether reading the request's prompt would hold up others."""
    return len(request.origin.body) >= _LARGE


def _client_id(members: Mapping[str, msgspec.Raw], headers: Mapping[str, str], owner: str) -> str:
    found = [headers[name] for name in _HEADERS if name in headers]
    found += [f"{name}={headers[name]}" for name in sorted(headers) if name.startswith(_AGENT_HEADERS)]
    found += [bytes(members[name]).decode() for name in _MEMBERS if name in members]
    metadata = members.get("metadata")
    if metadata is not None and bytes(metadata).startswith(b"{"):
        known = _decode_members(metadata)
        found += [bytes(known[name]).decode() for name in _METADATA if name in known]
    # Ids may be secrets, and of any length.
    return blake2b("\n".join([owner, *found]).encode(), digest_size=8).hexdigest() if found else ""


def _marks(members: Mapping[str, msgspec.Raw]) -> list[tuple[int, int]]:
    digest, size, marks = blake2b(digest_size=6), 0, list[tuple[int, int]]()
    for part in _parts(members):
        digest.update(part)
        size += len(part)
        marks.append((int.from_bytes(digest.copy().digest()), size))
    return marks if len(marks) <= _LAST_MARKS + 2 else [*marks[:2], *marks[-_LAST_MARKS:]]


def _parts(members: Mapping[str, msgspec.Raw]) -> Iterator[bytes]:
    """The prompt in pieces that stay the same as long as the conversation goes on: the instructions, then its messages."""
    instructions = b"\n".join(_plain(members[name]) for name in _INSTRUCTIONS if name in members)
    messages = next((bytes(members[name]) for name in _PROMPTS if name in members), b"")
    if messages.startswith(b"["):
        listed = [_plain(message) for message in _decode_messages(messages)]
        # Many clients send the instructions as the first message.
        begins = 1 if listed and not instructions and b'"system"' in listed[0][:40] else 0
        yield instructions + b"".join(listed[:begins])
        yield from listed[begins:]
    elif messages.startswith(b'"'):
        yield instructions
        text = _decode_text(messages).encode()
        yield from (text[at : at + _PART] for at in range(0, len(text), _PART))


def _plain(value: msgspec.Raw) -> bytes:
    content = bytes(value)
    return _CACHE_CONTROL.sub(b"", content) if b'"cache_control"' in content else content
