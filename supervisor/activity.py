"""What an engine is at, as it says itself: how many questions it has, and how much it has done so far. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_http import EngineError, ask_text

_PREFIX: Final = "llamacpp:"
_ASKED: Final = frozenset({"requests_processing", "requests_deferred"})
_DONE_COUNTERS: Final = frozenset({"prompt_tokens_total", "tokens_predicted_total", "n_decode_total"})


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """`asked`: questions that it answers now or has in line. `done` grows whenever it works."""

    asked: int = 0
    done: int = 0


async def activity(address: EngineAddress, *, timeout_s: float = 1.0) -> Activity | None:
    """Ask the engine; `None` for one that does not say. One that says nothing in time counts as having one question.

    Not to be asked more often than every one and a half seconds: a busy engine notices only in between that somebody
    left who waits for a whole answer.
    """
    try:
        counters = dict(_counters(await ask_text(address, "/metrics", timeout_s=timeout_s)))
    except EngineError as error:
        return Activity(asked=1) if error.late else None
    if not counters.keys() & _ASKED:
        return None
    return Activity(
        asked=int(sum(counters.get(name, 0.0) for name in _ASKED)),
        done=int(sum(counters.get(name, 0.0) for name in _DONE_COUNTERS)),
    )


def _counters(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_PREFIX):
            try:
                yield name.removeprefix(_PREFIX), float(value)
            except ValueError:
                continue
