"""What must be known of a native completion's body before it is forwarded: how many answers, and whether they can be folded."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NUMBER = frozenset(b"-0123456789")


def prompts(members: Mapping[str, msgspec.Raw]) -> int:
    """How many prompts a body holds. A list that begins with a number is one prompt of tokens."""
    prompt = bytes(members.get("prompt", msgspec.Raw(b"")))
    if not prompt.startswith(b"["):
        return 1
    entries = [bytes(entry) for entry in _entries(prompt)]
    plain = all(not entry.startswith((b"[", b"{")) for entry in entries)
    # Numbers and strings mixed are one prompt, too.
    if not entries or (plain and any(entry[0] in _NUMBER for entry in entries)):
        return 1
    return len(entries)


def foldable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the whole answer can be made of a stream: it is one answer, and none of its fields is left out."""
    alone = all(bytes(members.get(name, msgspec.Raw(b"1"))) in (b"1", b"null") for name in ("n", "n_cmpl"))
    return alone and not chosen(members) and prompts(members) == 1


def chosen(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the client chose the fields of the answer; its last event then has those and no other."""
    return bytes(members.get("response_fields", msgspec.Raw(b"[]"))) not in (b"[]", b"null")
