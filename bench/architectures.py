"""What survives a switch with models of every kind of memory: small ones of random weights, in the embedded engine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.conversation import Answer, Message, ask, conversation, gateway
from bench.random_models import ARCHITECTURES, write_model

Messages = list[Message]

#: The width of attention heads, as in real models, and of feed-forward layers: with narrow ones nearly all time goes to
#: attention. As many times wider than the model would be more than in real ones, but there are few layers and heads.
HEAD = 64
FEED_FORWARD = 2048

#: The next request after a conversation of one question and its answer.
CONTINUATIONS: dict[str, Callable[[Messages, str], Messages]] = {
    "identical": lambda asked, _: asked,
    "extended": lambda asked, answer: _continued(asked, answer),
    "reasoning dropped": lambda asked, answer: _continued(asked, answer[len(answer) // 2 :]),
    "diverged": lambda asked, _: [{"role": "user", "content": asked[0]["content"][:-100] + "And how many goats?"}],
}

#: The one whose times are reported.
TIMED = "extended"


def _continued(asked: Messages, answer: str) -> Messages:
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": "Thank you."}]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One architecture. `read` are the tokens that were read again, by continuation; `unkept` those without saved slots.

    `read_ms` and `unkept_read_ms` are how long the engine read the longer conversation. `same`: the answers are those that
    the engine gives without a switch in between.
    """

    architecture: str
    tokens: int
    read: dict[str, int]
    unkept: dict[str, int]
    same: bool
    bytes: int
    save_ms: float
    restore_ms: float
    read_ms: float
    unkept_read_ms: float
    first_token_s: float
    unkept_first_token_s: float

    @property
    def share(self) -> float:
        """What a kept conversation takes until its first token, of the time that reading it all takes: without the load."""
        return (self.restore_ms + self.read_ms) / max(0.001, self.unkept_read_ms)


def architectures(tokens: int, names: Sequence[str] = tuple(ARCHITECTURES), *, repeats: int = 5) -> list[Row]:
    """Switch from each architecture to another model and back for each continuation, with saved slots and without; so many
    times for the one whose times are reported, of which the shortest counts."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            kept = _Measurement(Path(folder) / "kept", name, tokens, repeats=repeats, kept=True)
            unkept = _Measurement(Path(folder) / "unkept", name, tokens, repeats=repeats, kept=False)
            same = all(texts == {unkept.unswitched[kind].text} for kind, texts in kept.texts.items())
        rows.append(
            Row(
                architecture=name,
                tokens=unkept.answers["identical"].prompt_n or 0,
                read={kind: answer.prompt_n or 0 for kind, answer in kept.answers.items()},
                unkept={kind: answer.prompt_n or 0 for kind, answer in unkept.answers.items()},
                same=same,
                bytes=kept.bytes,
                save_ms=kept.phase_ms("saving", model="b"),
                restore_ms=kept.phase_ms("restoring", model="a"),
                read_ms=kept.answers[TIMED].prompt_ms,
                unkept_read_ms=unkept.answers[TIMED].prompt_ms,
                first_token_s=kept.answers[TIMED].first_token_s,
                unkept_first_token_s=unkept.answers[TIMED].first_token_s,
            )
        )
    return rows


class _Measurement:
    def __init__(self, folder: Path, name: str, tokens: int, *, repeats: int, kept: bool) -> None:
        folder.mkdir()
        model = write_model(folder / f"{name}.gguf", name, head=HEAD, feed_forward=FEED_FORWARD)
        profile = {"model": str(model), "context": 2 * tokens + 2048, "threads": 1}
        document: dict[str, Any] = {
            "supervisor": {
                "engine": "embedded", "slots_dir": str(folder / "slots"), "slots_max": "8GiB" if kept else 0,
            },
            "profiles": {"a": profile, "b": profile},
        }  # fmt: skip
        self.answers: dict[str, Answer] = {}
        self.texts: dict[str, set[str]] = {}
        self.unswitched: dict[str, Answer] = {}
        self.bytes = 0
        with gateway(document, folder) as connection:
            # Every character is a token here.
            asked = conversation(tokens // 3)
            asked[0]["content"] = asked[0]["content"][:tokens]
            for kind, continuation in CONTINUATIONS.items():
                answers = []
                for _ in range(repeats if kind == TIMED else 1):
                    first = ask(connection, "a", asked, 24)
                    following = continuation(asked, first.text)
                    if not kept:
                        self.unswitched[kind] = ask(connection, "a", following, 24)
                    ask(connection, "b", [{"role": "user", "content": "Hello!"}])
                    answers.append(ask(connection, "a", following, 24))
                    ask(connection, "b", [{"role": "user", "content": "Hello!"}])
                    # Each conversation begins with an empty slot.
                    for file in (folder / "slots").glob("*.kv"):
                        self.bytes = max(self.bytes, file.stat().st_size)
                        file.unlink()
                # Other programs only ever add to the time.
                self.answers[kind] = min(answers, key=lambda answer: answer.prompt_ms)
                self.texts[kind] = {answer.text for answer in answers}
            self._log = (folder / "log").read_text()

    def phase_ms(self, phase: str, *, model: str) -> float:
        """The shortest of that phase of the switches to `model` for which a conversation was saved or restored."""
        found, moved = [], False
        for line in self._log.splitlines():
            moved = moved or "a: saved" in line or "a: restored" in line
            if f"{model}: ready after" in line and moved:
                found += [1000 * float(each) for each in re.findall(rf"{phase} (\d+\.\d+)", line)]
            moved = moved and ": ready after" not in line
        return min(found, default=0.0)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    kinds = list(CONTINUATIONS)
    lines = [
        f"| architecture | prompt | {' | '.join(kinds)} | not kept | same tokens | bytes | save | restore "
        "| reading | reading it all | share | first token |",
        f"| --- | --- | {' | '.join('---' for _ in kinds)} | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        read = " | ".join(f"{row.read[kind]:,}" for kind in kinds)
        lines.append(
            f"| `{row.architecture}` | {row.tokens:,} | {read} | {row.unkept[TIMED]:,} | {'yes' if row.same else 'no'} "
            f"| {row.bytes:,} | {row.save_ms:.0f} ms | {row.restore_ms:.0f} ms "
            f"| {row.read_ms:.0f} ms | {row.unkept_read_ms:.0f} ms | {row.share:.2f} "
            f"| {1000 * row.first_token_s:.0f} ms (not kept: {1000 * row.unkept_first_token_s:.0f} ms) |"
        )
    return "\n".join(lines)
