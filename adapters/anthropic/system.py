"""What Claude Code and its like put into system prompts, made fit for any model and for its cache of earlier prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hostler.adapters.anthropic.wire import Block, MessageBody

# A line for Anthropic's own accounting, in front of everything else and different in each request: it tells a model
# nothing, and with it no prompt ever begins like the one before, so that engines read all of it again.
_ACCOUNTING = re.compile(r"\A\s*x-anthropic-[a-z-]+:[^\n]*(?:\n|\Z)")


def system_prompt(
    system: str | Sequence[Block] | None, messages: Sequence[MessageBody]
) -> tuple[str, Sequence[MessageBody]]:
    """The system prompt with what stands in system turns before the first other turn, and the turns after those."""
    texts = [system] if isinstance(system, str) else _texts(system)
    first = 0
    while first < len(messages) and messages[first].role == "system":
        content = messages[first].content
        texts += [content] if isinstance(content, str) else _texts(content)
        first += 1
    cleaned = (_ACCOUNTING.sub("", text) for text in texts)
    return "\n\n".join(text for text in cleaned if text.strip()), messages[first:]


def reminder(block: Block) -> Block:
    """A block of a system turn in the middle of a conversation, as a part of the user's turn.

    Most chat templates allow a system prompt only at the beginning and refuse the request otherwise. Moved there, it
    would change the beginning of the prompt, which would have to be read anew; here it changes only the end.
    """
    if block.type != "text" or not (block.text or "").strip():
        return block
    return Block(text=f"<system-reminder>\n{block.text}\n</system-reminder>\n")


def _texts(blocks: Sequence[Block] | None) -> list[str]:
    return [block.text for block in blocks or () if block.text]
