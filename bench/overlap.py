"""The gap of a switch, `python -m bench.overlap`: from the last token of one model's answer to the first of the next one's.

The second model is requested while the first one answers, and then the first one while the second is idle; conversations are
saved. The file is not in the page cache. The engine is the embedded one with copies of the shipped model, which is fetched the
first time; in each round it is also started alone, without Hostler: less than that no stop and start can take.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.conversation import conversation
from bench.processes import free_port, hostler_up, running, wait_for
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.sources import cache_directory
from hostler.profiles.store import demo_profiles

CONTEXT: Final = 2048
#: How long the engine alone may load its model, in seconds.
LOADING_S: Final = 120.0
#: What `supervisor.prepare_next` does, in words.
MODES = {"off": "stop, then start", "read": "file read ahead", "start": "started early"}


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """Two switches: seconds between both answers, the tokens a second of the first one, and seconds from a request to its first
    token while the other model is idle."""

    gap_s: float
    speed: float
    idle_s: float


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The engine alone: seconds from its start to its first token, and from its stop signal to its end."""

    first_token_s: float
    stop_s: float


class Stream:
    """A streamed answer, and when its tokens came."""

    def __init__(self, port: int, model: str, tokens: int, *, prompt: str = "") -> None:
        self.times: list[float] = []
        self._port = port
        self._path = "/completion" if prompt else "/v1/chat/completions"
        asked = {"prompt": prompt, "n_predict": tokens} if prompt else {"messages": conversation(60)}
        self._body: dict[str, Any] = {
            "model": model, **asked, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True,
        }  # fmt: skip

    def read(self, first: threading.Event | None = None) -> None:
        """Read all of it; `first` is set with the first token."""
        address = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        with contextlib.closing(address) as connection:
            body = msgspec.json.encode(self._body)
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read().decode()}")
            for line in response:
                if line.startswith(b"data: {") and _has_text(line[6:]):
                    self.times.append(time.perf_counter())
                    if first is not None:
                        first.set()


def _has_text(event: bytes) -> bool:
    found = msgspec.json.decode(event)
    if "content" in found:
        return bool(found["content"])
    if "choices" not in found:
        raise RuntimeError(event.decode())
    return any(choice["delta"].get("content") for choice in found["choices"])


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alone(file: Path, folder: Path) -> Start:
    """Start the engine without Hostler, get an answer to one token, and stop it: Hostler's have their prompts restored."""
    port = free_port()
    command = [sys.executable, "-m", "hostler.supervisor.embedded.server", "-m", str(file), "--host", "127.0.0.1"]
    command += ["--port", str(port), "-c", str(CONTEXT), "-np", "1", "-b", "512", "-t", "1", "--cache-ram", "0"]
    began = time.perf_counter()
    with running(command, folder / "engine.log") as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, LOADING_S)
        answer = Stream(port, "alone", 8, prompt="In")
        answer.read()
        ended = time.perf_counter()
        process.terminate()
        process.wait()
        return Start(first_token_s=answer.times[0] - began, stop_s=time.perf_counter() - ended)


def switch(port: int, wanted: str, loaded: str, files: Mapping[str, Path], tokens: int) -> Switch:
    """Have `loaded` answer, ask for `wanted` as soon as it does; then for `loaded` again."""
    forget(files[wanted])
    first, second = Stream(port, loaded, tokens), Stream(port, wanted, 8)
    begun = threading.Event()
    reading = threading.Thread(target=first.read, args=(begun,))
    reading.start()
    begun.wait()
    second.read()
    reading.join()
    third, asked = Stream(port, loaded, 8), time.perf_counter()
    third.read()
    Stream(port, wanted, 1).read()
    return Switch(
        gap_s=second.times[0] - first.times[-1],
        speed=(len(first.times) - 1) / (first.times[-1] - first.times[0]),
        idle_s=third.times[0] - asked,
    )


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured in one run: switches in each mode, and the engine alone, with its file on the disk or in the page
    cache."""

    switches: dict[str, list[Switch]]
    alone: list[Start]
    alone_cached: list[Start]


def run(rounds: int, tokens: int) -> Results:
    """Alternating switches in each mode and starts of the engine alone, one after the other, so many times."""
    shipped = fetch_sync(demo_profiles()[0], cache_directory(), lambda _: None, Cancellation())
    found = Results(switches={mode: [] for mode in MODES}, alone=[], alone_cached=[])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        bare = _copy(shipped, folder / "alone.gguf")
        files: dict[str, dict[str, Path]] = {}
        ports = {}
        for mode in MODES:
            (folder / mode).mkdir()
            # An engine's file stays in the page cache: each has its own.
            files[mode] = {each: _copy(shipped, folder / mode / f"{each}.gguf") for each in "ab"}
            profiles = {
                each: {"model": str(file), "context": CONTEXT, "threads": 1} for each, file in files[mode].items()
            }
            document = {
                "gateway": {"switching": {"patience_s": 0}},
                "supervisor": {"engine": "embedded", "slots_min_tokens": 16, "prepare_next": mode},
                "profiles": profiles,
            }
            ports[mode] = stack.enter_context(hostler_up(document, folder / mode))
        for port in ports.values():
            Stream(port, "a", 1).read()
        for number in range(rounds):
            loaded, wanted = ("a", "b") if number % 2 == 0 else ("b", "a")
            for mode, port in ports.items():
                found.switches[mode].append(switch(port, wanted, loaded, files[mode], tokens))
            forget(bare)
            found.alone.append(alone(bare, folder))
            found.alone_cached.append(alone(bare, folder))
    return found


def _copy(file: Path, to: Path) -> Path:
    shutil.copyfile(file, to)
    return to


def table(found: Results) -> str:
    """The medians in Markdown."""
    lines = [
        "| next model | gap, median | best | worst | tokens/s of the first model | first one idle: request to first token, median |",
        "|" + " --- |" * 6,
    ]
    for mode, switches in found.switches.items():
        gaps = [1000 * each.gap_s for each in switches]
        speed = statistics.median(each.speed for each in switches)
        idle = 1000 * statistics.median(each.idle_s for each in switches)
        lines.append(
            f"| {MODES[mode]} (`{mode}`) | {statistics.median(gaps):.0f} ms | {min(gaps):.0f} ms | {max(gaps):.0f} ms | {speed:.1f} | "
            f"{idle:.0f} ms |"
        )
    starts = [1000 * each.first_token_s for each in found.alone]
    cached = 1000 * statistics.median(each.first_token_s for each in found.alone_cached)
    stop = 1000 * statistics.median(each.stop_s for each in found.alone)
    lines.append(
        f"| the engine alone, from its start | {statistics.median(starts):.0f} ms | {min(starts):.0f} ms | {max(starts):.0f} ms | | "
        f"{cached:.0f} ms, after {stop:.0f} ms for a stop |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overlap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="switches in each mode")
    parser.add_argument("--tokens", type=int, default=150, help="length of the first model's answer")
    options = parser.parse_args()
    print(table(run(options.rounds, options.tokens)))


if __name__ == "__main__":
    main()
