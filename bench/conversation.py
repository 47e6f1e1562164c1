"""The cost of a switch: a long conversation that is unloaded and restored, and Hostler's own share of the time.

`python -m bench.conversation` runs all; `engine`, `instant`, `ready` or `architectures` one part. The real engine is the embedded
one with the shipped model, which is fetched the first time, or with small models of random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.processes import free_port, hostler_up
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.sources import cache_directory
from hostler.profiles.store import demo_profiles

INSTANT = Path(__file__).with_name("instant.py")
#: Repeated with different numbers, so that the engine finds no repeated prefix.
LINE = "In the year {} the ferry crossed the river with {} sheep, {} goats and a cart full of apples. "
TOKENS_OF_LINE = 30


Message = dict[str, str]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a client saw, in seconds from its request on, and what the engine says it did.

    `prompt_ms` is how long it read the `prompt_n` tokens that it had not cached.
    """

    first_byte_s: float
    first_token_s: float
    seconds: float
    prompt_n: int | None
    cache_n: int | None
    prompt_ms: float
    text: str


@contextlib.contextmanager
def gateway(document: dict[str, Any], folder: Path) -> Iterator[http.client.HTTPConnection]:
    """Run `hostler up` with this configuration; yields a connection to it."""
    with (
        hostler_up(document, folder) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection,
    ):
        yield connection


def ask(connection: http.client.HTTPConnection, model: str, messages: list[Message], most: int = 8) -> Answer:
    """One streamed answer."""
    body = {
        "model": model, "messages": messages, "max_tokens": most, "stream": True, "temperature": 0,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    content = json.dumps(body).encode()
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    first = response.read(1)
    first_byte_s = time.perf_counter() - began
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {(first + response.read()).decode()}")
    timings: dict[str, Any] = {}
    text, first_token_s, line = "", 0.0, first + response.readline()
    while line:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            timings = event.get("timings") or timings
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if text and not first_token_s:
                first_token_s = time.perf_counter() - began
        line = response.readline()
    seconds = time.perf_counter() - began
    return Answer(
        first_byte_s=first_byte_s, first_token_s=first_token_s, seconds=seconds, prompt_n=timings.get("prompt_n"), cache_n=timings.get("cache_n"), prompt_ms=timings.get("prompt_ms") or 0.0,
        text=text,
    )  # fmt: skip


def conversation(tokens: int) -> list[Message]:
    """About so many tokens without repetition."""
    lines = [LINE.format(1000 + n, 17 * n % 97, 31 * n % 89) for n in range(tokens // TOKENS_OF_LINE)]
    return [{"role": "user", "content": "".join(lines) + "How many sheep crossed in the first year?"}]


def engine(kept: bool, threads: int, tokens: int) -> None:
    """A, then B, then A again, with a conversation of about so many tokens in A."""
    file = fetch_sync(demo_profiles()[0], cache_directory(), lambda _: None, Cancellation())
    profile = {"model": str(file), "context": 8192, "threads": threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = {
            "supervisor": {
                "engine": "embedded", "slots_dir": str(folder / "slots"), "slots_max": "8GiB" if kept else 0
            },
            "profiles": {"a": {**profile, "default": True}, "b": profile},
        }  # fmt: skip
        with gateway(document, folder) as connection:
            said = conversation(tokens)
            first = ask(connection, "a", said)
            asked = [*said, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Thank you."}]
            other = ask(connection, "b", [{"role": "user", "content": "Hello!"}])
            back = ask(connection, "a", asked)
            size = sum(file.stat().st_size for file in (folder / "slots").glob("*.kv")) if kept else 0
            print(
                f"conversations {'kept' if kept else 'not kept'} over a switch"
                + (f", {size / 1e6:.1f} MB on disk" if kept else "")
            )
            for what, answer in (("first answer of A", first), ("B, short", other), ("A again", back)):
                read = answer.prompt_n or 0
                total = read + (answer.cache_n or 0)
                print(
                    f"  {what:18} first token {answer.first_token_s:7.3f} s   prompt {total:5} tokens, "
                    f"read {read:5} ({100 * read / max(1, total):5.1f} %)"
                )
        spent(folder / "log")


def spent(log: Path) -> None:
    """What was saved and restored, from the log."""
    for line in log.read_text().splitlines():
        if any(words in line for words in (": saved ", ": restored ", ": ready after ")):
            print("  " + line.partition(" INFO ")[2].partition(": ")[2])


def write_gguf(path: Path) -> None:
    """A minimal GGUF file: no tensors, a few metadata keys."""
    facts: dict[str, str | int] = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 4096,
        "llama.embedding_length": 64, "llama.attention.head_count": 1, "llama.attention.head_count_kv": 1,
    }  # fmt: skip
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(facts))
    for name, value in facts.items():
        data += struct.pack("<Q", len(name)) + name.encode()
        if isinstance(value, str):
            data += struct.pack("<IQ", 8, len(value)) + value.encode()
        else:
            data += struct.pack("<II", 4, value)
    path.write_bytes(data)


def bare_start(times: int) -> float:
    """Seconds from starting the instant engine to its first answer, without Hostler: the median."""
    taken = []
    for _ in range(times):
        port = free_port()
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-I", "-S", "-E", str(INSTANT), "--port", str(port)])
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.0002)
            finally:
                connection.close()
        taken.append(time.perf_counter() - began)
        process.kill()
        process.wait()
    return statistics.median(taken)


def instant(times: int = 20) -> None:
    """So many alternating switches with an engine that takes no time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.gguf"
        write_gguf(model)
        profile = {"model": str(model)}
        document = {
            "supervisor": {"engine": f"{sys.executable} -I -S -E {INSTANT}", "slots_dir": str(folder / "slots")},
            "profiles": {"a": profile, "b": profile},
        }
        with gateway(document, folder) as connection:
            for model_name in ("a", "b"):
                ask(connection, model_name, [{"role": "user", "content": "Hi"}])
            taken = [
                ask(connection, "ab"[n % 2], [{"role": "user", "content": "Hi"}]).first_byte_s for n in range(times)
            ]
            hot = statistics.median(
                ask(connection, "ab"[(times - 1) % 2], [{"role": "user", "content": "Hi"}]).first_byte_s
                for _ in range(times)
            )
    median, bare = statistics.median(taken), bare_start(times)
    print(f"{times} alternating switches, instant engine: request to first byte")
    print(f"  median {1000 * median:6.1f} ms, best {1000 * min(taken):.1f}, worst {1000 * max(taken):.1f}")
    print(f"  of it the engine's own start {1000 * bare:.1f} ms, a request without a switch {1000 * hot:.1f} ms")
    print(f"  the switch itself {1000 * (median - bare - hot):.1f} ms")


def ready(after: Sequence[float] = (0, 0.1, 0.3, 0.6, 1.0, 1.3, 2.5), times: int = 3) -> None:
    """The time from a scripted engine being ready to the first byte of its answer, for slow and fast engines."""
    scripted = Path(__file__).parents[1] / "tests" / "fakes" / "fake_engine.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, notes = folder / "model.gguf", folder / "notes"
        write_gguf(model)
        delays = {f"after-{seconds}": seconds for seconds in after}
        profiles = {
            each: {"model": str(model), "env": {"FAKE_ENGINE": json.dumps({"ready_after": s, "log": str(notes)})}}
            for each, s in delays.items()
        }
        settings = {"engine": f"{sys.executable} -I -S {scripted}", "slots_dir": str(folder / "slots")}
        print("from ready to the first byte, for engines that get ready after")
        with gateway({"supervisor": settings, "profiles": profiles}, folder) as connection:
            for each, seconds in delays.items():
                taken = []
                for _ in range(times):
                    began = time.time()
                    answer = ask(connection, each, [{"role": "user", "content": "Hi"}])
                    events = [json.loads(line) for line in notes.read_text().splitlines()]
                    at = [event["time"] for event in events if (event["event"], event["model"]) == ("ready", each)][-1]
                    taken.append(began + answer.first_token_s - at)
                    ask(
                        connection,
                        next(other for other in delays if other != each),
                        [{"role": "user", "content": "Hi"}],
                    )
                print(f"  {seconds:3} s   {1000 * statistics.median(taken):6.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.conversation", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["engine", "instant", "ready", "architectures"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the real engine")
    parser.add_argument("--tokens", type=int, default=3000, help="approximate length of the real engine's conversation")
    options = parser.parse_args()
    if options.what in (None, "instant"):
        instant()
    if options.what in (None, "ready"):
        ready()
    if options.what in (None, "engine"):
        for kept in (False, True):
            engine(kept, options.threads, options.tokens)
    if options.what in (None, "architectures"):
        from bench.architectures import architectures, table  # which measures with this module

        print("tokens read again after a switch, by what follows")
        print(table(architectures(options.tokens)))


if __name__ == "__main__":
    main()
