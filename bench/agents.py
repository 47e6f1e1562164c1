"""One main agent and four subagents with tool loops share the few slots of an engine: how much of their prompts is cached.

`python -m bench.agents` replays the same requests through Hostler and to the engine alone, with a small model of random
weights.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.conversation import Message, ask, gateway
from bench.processes import free_port, running, wait_for
from bench.random_models import ARCHITECTURES, write_model

SLOTS = 2
SUBAGENTS = 4
#: What one request may have, in tokens.
CONTEXT = 24576
#: How long the engine alone may load its model, in seconds.
LOADING_S = 120.0
WORDS = [
    "read", "write", "search", "build", "test", "commit", "branch", "merge",
    "file", "line", "class", "method", "error", "result", "value", "parse",
]  # fmt: skip


class Step(msgspec.Struct, frozen=True):
    """A request of an agent: its whole conversation so far."""

    agent: str
    messages: list[Message]


class Agent:
    """An agent that calls one tool after the other. Its answers are made up: both sides get the same requests."""

    def __init__(self, name: str, instructions: str, chance: random.Random) -> None:
        self.name = name
        self._chance = chance
        self._messages: list[Message] = [
            {"role": "system", "content": instructions}, {"role": "user", "content": f"Task of {name}: {self._text(200)}"},
        ]  # fmt: skip

    def step(self) -> Step:
        """The next request."""
        step = Step(self.name, list(self._messages))
        self._messages.append({"role": "assistant", "content": f"Call the tool: {self._text(60)}"})
        self._messages.append({"role": "user", "content": f"Result of the tool: {self._text(600)}"})
        return step

    def _text(self, size: int) -> str:
        return _text(self._chance, size)


def _text(chance: random.Random, size: int) -> str:
    text = ""
    while len(text) < size:
        text += chance.choice(WORDS) + " "
    return text


def trace(*, rounds: int = 1, main_steps: int = 4, sub_steps: int = 6) -> list[Step]:
    """The main agent works, then its subagents take turns, then it goes on, and so forth."""
    chance = random.Random(7)
    main = Agent("main", _text(chance, 6000), chance)
    instructions = _text(chance, 4000)
    steps = []
    for number in range(rounds):
        steps += [main.step() for _ in range(main_steps)]
        subagents = [Agent(f"sub-{number}-{one}", instructions, chance) for one in range(SUBAGENTS)]
        for _ in range(sub_steps):
            steps += [each.step() for each in subagents]
    return [*steps, *(main.step() for _ in range(main_steps))]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One replay: tokens of all prompts, how many of them were cached, and its duration."""

    server: str
    architecture: str
    requests: int
    tokens: int
    cached: int
    seconds: float

    @property
    def share(self) -> float:
        """The cached part of all prompt tokens."""
        return self.cached / max(1, self.tokens)


def replay(connection: http.client.HTTPConnection, steps: Sequence[Step], server: str, architecture: str) -> Row:
    """Send one request after the other."""
    began = time.perf_counter()
    answers = []
    for step in steps:
        answers.append(ask(connection, "a", step.messages))
        connection.close()  # llama-server closes it after each stream without announcing it
    cached = sum(answer.cache_n or 0 for answer in answers)
    return Row(
        server=server, architecture=architecture, requests=len(steps), cached=cached,
        tokens=cached + sum(answer.prompt_n or 0 for answer in answers), seconds=time.perf_counter() - began,
    )  # fmt: skip


def agents(names: Sequence[str], steps: Sequence[Step], *, slots: int = SLOTS) -> list[Row]:
    """Replay the steps with each architecture: through Hostler, and to the engine alone with its cache in memory (the
    default), without that cache, and without it and with one slot, as in Ollama's default settings."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            model = write_model(folder / f"{name}.gguf", name)
            profile = {"model": str(model), "context": CONTEXT, "threads": 1, "parallel": slots}
            document: dict[str, Any] = {
                "supervisor": {"engine": "embedded", "slots_dir": str(folder / "slots")}, "profiles": {"a": profile},
            }  # fmt: skip
            with gateway(document, folder) as connection:
                rows.append(replay(connection, steps, "Hostler", name))
            with _engine(model, slots) as connection:
                rows.append(replay(connection, steps, "llama-server", name))
            with _engine(model, slots, "--cache-ram", "0") as connection:
                rows.append(replay(connection, steps, "llama-server, --cache-ram 0", name))
            with _engine(model, 1, "--cache-ram", "0") as connection:
                rows.append(replay(connection, steps, "one slot, as Ollama's default", name))
    return rows


@contextlib.contextmanager
def _engine(model: Path, slots: int, *arguments: str) -> Iterator[http.client.HTTPConnection]:
    port, log = free_port(), model.with_suffix(".log")
    command = ["env", *(f"--unset={name}" for name in os.environ if name.startswith("LLAMA_"))]
    command += [sys.executable, "-m", "hostler.supervisor.embedded.server", "-m", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "-np", str(slots), "-c", str(CONTEXT * slots), "-t", "1", "-a", "a", *arguments]
    with running(command, log) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, LOADING_S)
        except RuntimeError as error:
            raise RuntimeError(f"the engine {error}:\n{log.read_text()}") from error
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
            yield connection


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| architecture | server | requests | prompt tokens | cached | share | seconds |",
        "| --- |" + " --- |" * 6,
    ]
    lines += [
        f"| `{row.architecture}` | {row.server} | {row.requests} | {row.tokens:,} | {row.cached:,} | {row.share:.0%} "
        f"| {row.seconds:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.agents", description=__doc__)
    parser.add_argument(
        "--architectures", default="llama,gemma3,qwen35", help="comma list of: " + ", ".join(ARCHITECTURES)
    )
    parser.add_argument("--slots", type=int, default=SLOTS, help="slots of the engine")
    options = parser.parse_args()
    print(table(agents(options.architectures.split(","), trace(), slots=options.slots)))


if __name__ == "__main__":
    main()
