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

#: The width of attention heads, as in real models.
HEAD = 64

#: The next request after a conversation of one question and its answer.
CONTINUATIONS: dict[str, Callable[[Messages, str], Messages]] = {
    "identical": lambda asked, _: asked,
    "extended": lambda asked, answer: _continued(asked, answer),
    "reasoning dropped": lambda asked, answer: _continued(asked, answer[len(answer) // 2 :]),
    "diverged": lambda asked, _: [{"role": "user", "content": asked[0]["content"][:-100] + "And how many goats?"}],
}


def _continued(asked: Messages, answer: str) -> Messages:
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": "Thank you."}]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One architecture. `read` are the tokens that were read again, by continuation; `unkept` those without saved slots.

    `read_ms` and `unkept_read_ms` are how long the engine read the longer conversation. `same`: the answers are those that the engine gives without a switch in between.
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


def architectures(tokens: int, names: Sequence[str] = tuple(ARCHITECTURES)) -> list[Row]:
    """Switch from each architecture to another model and back, once for each continuation, and once without saved slots."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            kept = _Measurement(Path(folder) / "kept", name, tokens, kept=True)
            unkept = _Measurement(Path(folder) / "unkept", name, tokens, kept=False)
            same = all(answer.text == unkept.unswitched[kind].text for kind, answer in kept.answers.items())
        rows.append(
            Row(
                architecture=name,
                tokens=unkept.answers["identical"].prompt_n or 0,
                read={kind: answer.prompt_n or 0 for kind, answer in kept.answers.items()},
                unkept={kind: answer.prompt_n or 0 for kind, answer in unkept.answers.items()},
                same=same,
                bytes=kept.bytes,
                save_ms=kept.phase_ms("saving"),
                restore_ms=kept.phase_ms("restoring"),
                read_ms=kept.answers["extended"].prompt_ms,
                unkept_read_ms=unkept.answers["extended"].prompt_ms,
                first_token_s=kept.answers["extended"].first_token_s,
                unkept_first_token_s=unkept.answers["extended"].first_token_s,
            )
        )
    return rows


class _Measurement:
    def __init__(self, folder: Path, name: str, tokens: int, *, kept: bool) -> None:
        folder.mkdir()
        model = write_model(folder / f"{name}.gguf", name, head=HEAD)
        profile = {"model": str(model), "context": 2 * tokens + 2048, "threads": 1}
        document: dict[str, Any] = {
            "supervisor": {
                "engine": "embedded", "slots_dir": str(folder / "slots"), "slots_max": "8GiB" if kept else 0,
            },
            "profiles": {"a": profile, "b": profile},
        }  # fmt: skip
        self.answers: dict[str, Answer] = {}
        self.unswitched: dict[str, Answer] = {}
        self.bytes = 0
        with gateway(document, folder) as connection:
            # Every character is a token here.
            asked = conversation(tokens // 3)
            asked[0]["content"] = asked[0]["content"][:tokens]
            for kind, continuation in CONTINUATIONS.items():
                first = ask(connection, "a", asked, 24)
                following = continuation(asked, first.text)
                if not kept:
                    self.unswitched[kind] = ask(connection, "a", following, 24)
                ask(connection, "b", [{"role": "user", "content": "Hello!"}])
                self.answers[kind] = ask(connection, "a", following, 24)
                ask(connection, "b", [{"role": "user", "content": "Hello!"}])
                # Each conversation begins with an empty slot.
                for file in (folder / "slots").glob("*.kv"):
                    self.bytes = max(self.bytes, file.stat().st_size)
                    file.unlink()
            self._log = (folder / "log").read_text()

    def phase_ms(self, phase: str) -> float:
        """The median of that phase of all switches."""
        found = sorted(float(each) for each in re.findall(rf"{phase} (\d+\.\d+)", self._log))
        return 1000 * found[len(found) // 2] if found else 0.0


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
            f"| `{row.architecture}` | {row.tokens:,} | {read} | {row.unkept['extended']:,} | {'yes' if row.same else 'no'} "
            f"| {row.bytes:,} | {row.save_ms:.0f} ms | {row.restore_ms:.0f} ms "
            f"| {row.read_ms:.0f} ms | {row.unkept_read_ms:.0f} ms | {row.share:.2f} "
            f"| {1000 * row.first_token_s:.0f} ms (not kept: {1000 * row.unkept_first_token_s:.0f} ms) |"
        )
    return "\n".join(lines)
