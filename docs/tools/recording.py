"""Records the terminal for the README from a real run of `hostler up`: `nox -s pictures`.

The result is an SVG that plays by itself. What it shows is what the command printed, in 20 seconds of its own time, with the
scripted engines of `pictures.py`; only the prompt is drawn. Needs the group `pictures` of pyproject.toml.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from html import escape
from itertools import cycle, groupby
from pathlib import Path

import httpx
import msgspec
import pyte

ROOT = Path(__file__).parent.parent.parent
RECORDING = ROOT / "docs" / "pictures" / "terminal.svg"
sys.path.insert(0, str(ROOT / "tests"))

from fakes.ports import free_port  # noqa: E402
from pictures import CLIENTS, profiles  # noqa: E402
from system.pseudo_terminal import PseudoTerminal, run_in_terminal  # noqa: E402
from system.running_gateway import FAKE_ENGINE, write_keys  # noqa: E402

COLUMNS, LINES = 92, 24
SECONDS = 20.0
#: Between two frames, in seconds.
FRAME_S = 0.4
CHARACTER = (8.4, 18.0)
PROMPT = "$ hostler up"
BACKGROUND, PLAIN = "#15191e", "#d7dce2"
COLORS = {
    "default": PLAIN, "black": "#5c6773", "red": "#f47c7c", "green": "#7fd18b", "brown": "#e5c07b", "yellow": "#e5c07b",
    "blue": "#6cb6ff", "magenta": "#d2a8ff", "cyan": "#6fd3d8", "white": PLAIN, "brightblack": "#8b949e",
}  # fmt: skip


class Run(msgspec.Struct, frozen=True):
    """Characters of one line that look the same."""

    column: int
    text: str
    color: str
    bold: bool


Line = tuple[Run, ...]
Frame = tuple[Line, ...]


def lines_of(screen: pyte.Screen) -> Iterator[Line]:
    """What a screen shows."""
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        runs, column = [], 0
        for (color, bold), group in groupby(cells, key=lambda cell: (cell.bg if cell.reverse else cell.fg, cell.bold)):
            text = "".join(cell.data for cell in group)
            if text.strip():
                runs.append(Run(column, text.rstrip(), COLORS.get(color, f"#{color}"), bold))
            column += len(text)
        yield tuple(runs)


def record(terminal: PseudoTerminal) -> list[tuple[float, Frame]]:
    """The frames of the next seconds, each with its time, without those that change nothing."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(f"{PROMPT}\r\n".encode())
    began, seen = time.monotonic(), 0
    frames: list[tuple[float, Frame]] = []
    while (at := time.monotonic() - began) < SECONDS:
        stream.feed(terminal.raw[seen:])
        seen = len(terminal.raw)
        frame = tuple(lines_of(screen))
        if not frames or frames[-1][1] != frame:
            frames.append((at, frame))
        terminal.idle(FRAME_S)
    return frames


def svg(frames: list[tuple[float, Frame]]) -> str:
    """The frames side by side in a window that jumps from one to the next. A line that occurs twice is written once."""
    width, height = COLUMNS * CHARACTER[0] + 24, LINES * CHARACTER[1] + 20
    known: dict[Line, str] = {}
    for line in (line for _, frame in frames for line in frame if line):
        known.setdefault(line, f"l{len(known)}")
    steps = [
        f"{100 * at / SECONDS:.2f}%{{transform:translateX({-index * width:.1f}px)}}"
        for index, (at, _) in enumerate(frames)
    ]
    steps[0] = "0%{transform:translateX(0)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">',
            f"<title>{escape(PROMPT)}: a live view of models, requests and switches</title>",
            "<style>@keyframes play{" + "".join(steps) + "}",
            f"#reel{{animation:play {SECONDS:g}s step-end infinite}}",
            "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}</style>",
            f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
            f"<defs>{''.join(_text(name, line) for line, name in known.items())}</defs>",
            f'<svg x="12" y="10" width="{width - 24:.1f}" height="{height - 20:.0f}"><g id="reel">',
            *(_frame(frame, index * width, known) for index, (_, frame) in enumerate(frames)),
            "</g></svg></svg>",
        ]
    )


def _text(name: str, runs: Iterable[Run]) -> str:
    parts = []
    for run in runs:
        weight = ' font-weight="bold"' if run.bold else ""
        length = f'textLength="{len(run.text) * CHARACTER[0]:.1f}" lengthAdjust="spacingAndGlyphs"'
        place = f'x="{run.column * CHARACTER[0]:.1f}" {length}'
        parts.append(f'<text {place} fill="{run.color}"{weight}>{escape(run.text)}</text>')
    return f'<g id="{name}">{"".join(parts)}</g>'


def _frame(frame: Frame, x: float, known: dict[Line, str]) -> str:
    lines = [
        f'<use href="#{known[line]}" y="{(row + 0.8) * CHARACTER[1]:.1f}"/>' for row, line in enumerate(frame) if line
    ]
    return f'<g transform="translate({x:.1f})">{"".join(lines)}</g>'


def ask_in_turn(url: str, keys: dict[str, str], stopped: threading.Event) -> None:
    """Ask for one model after the other, as clients do, until told to stop."""
    questions = (("open-webui", "qwen3-1.7b"), ("home-assistant", "qwen3-1.7b"), ("claude-code", "qwen3-4b-agent"))
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as http:

        def ask(client: str, model: str) -> None:
            body = {"model": model, "messages": [{"role": "user", "content": "Name three animals at an inn."}]}
            http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {keys[client]}"})

        asked = []
        for client, model in cycle(questions):
            if stopped.wait(1.7):
                break
            asked.append(threading.Thread(target=ask, args=(client, model)))
            asked[-1].start()
        for each in asked:
            each.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.gguf").write_bytes(b"not read by the scripted engine")
        key_file, keys = write_keys(folder, **CLIENTS)
        port, stopped = free_port(), threading.Event()
        configuration = {
            "gateway": {"listen": [f"127.0.0.1:{port}"], "api_keys_file": key_file},
            "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}", "slots_max": 0},
            "profiles": profiles(folder),
        }
        for profile in configuration["profiles"].values():
            profile["env"] = {"FAKE_ENGINE": json.dumps(profile.pop("script"))}
        file = folder / "hostler.yaml"
        file.write_text(json.dumps(configuration), encoding="utf-8")
        environ = {"XDG_STATE_HOME": name, "HOSTLER_CACHE": name}
        clients = threading.Thread(target=ask_in_turn, args=(f"http://127.0.0.1:{port}", keys, stopped))
        with run_in_terminal("up", "-c", str(file), columns=COLUMNS, lines=LINES - 1, environ=environ) as terminal:
            terminal.until("dashboard")
            clients.start()
            frames = record(terminal)
            stopped.set()
            clients.join()
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_text(svg(frames), encoding="utf-8")


if __name__ == "__main__":
    main()
