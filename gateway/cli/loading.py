"""Loading a model through the admin API: the steps as they happen, and how they are shown."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from hostler.gateway.cli.client import CallFailed
from hostler.gateway.cli.options import echo, print_json, print_json_line

if TYPE_CHECKING:
    from hostler.gateway.cli.client import AdminTarget

#: Time limit of an operation that may have to load a model or wait for answers, in seconds.
OPERATION_S: Final = 3600.0

#: How long after the answer the last event of a switch may arrive, in seconds.
_LAST_EVENT_S: Final = 1.0

#: How long the load request waits for the event stream to open, in seconds.
_SUBSCRIBE_S: Final = 10.0

#: The width of a model's name beside a progress bar.
_NAME_CELLS: Final = 30

#: The engine's last lines that are shown after a failure.
_ENGINE_LINES: Final = 8

#: `phase` (a phase of the switch), `waiting` (a place in the queue), and at last `ready` or `failed`; with its data.
Step = tuple[str, dict[str, Any]]

_NO_STEP: Final[Step] = ("failed", {"message": "the stream ended before the model was ready"})


def load_steps(target: AdminTarget, model: str) -> Iterator[Step]:
    """Load a model. The steps as they happen; the last one is `ready` or `failed`. Raises `CallFailed`."""
    return _supervisor_steps(target, model) if target.kind == "supervisor" else _gateway_steps(target, model)


def _supervisor_steps(target: AdminTarget, model: str) -> Iterator[Step]:
    """A supervisor streams the phases in its answer."""
    for kind, data in target.client.events("/models/switch", body={"model": model}):
        if kind == "failed":
            failure = data["error"]
            lines = list((failure.get("failure") or {}).get("lines", ()))
            yield "failed", {"model": model, "message": failure["message"], "lines": lines}
        elif kind == "ready":
            yield "ready", {"model": model, "elapsed_s": data["elapsed_s"], "phase_seconds": data["phase_seconds"]}
        else:
            yield kind, data


def _gateway_steps(target: AdminTarget, model: str) -> Iterator[Step]:
    """A gateway answers when the model is ready; its events report the phases until then."""
    received: queue.SimpleQueue[Step | CallFailed] = queue.SimpleQueue()
    subscribed = threading.Event()

    def follow_events() -> None:
        try:
            for kind, data in target.client.events("/events"):
                subscribed.set()
                if kind == "switch" and data["switch"]["model"] == model:
                    received.put(("phase", data["switch"]))
                elif kind == "queue":
                    ours = [each for each in data["waiting"] if each["model"] == model and each["client"] == "operator"]
                    if ours:
                        received.put(("waiting", ours[-1]))
        except CallFailed:
            pass  # a key without the scope read: only the outcome is shown
        finally:
            subscribed.set()

    def load() -> None:
        subscribed.wait(_SUBSCRIBE_S)
        try:
            received.put(("ready", target.client.post("/admin/load", OPERATION_S, model=model)))
        except CallFailed as error:
            received.put(error)

    was_loaded = any(card["state"] == "loaded" for card in target.status.get("models", ()) if card["name"] == model)
    follower = threading.Thread(target=follow_events, daemon=True)
    follower.start()
    threading.Thread(target=load, daemon=True).start()
    began_at, phase, phase_seconds, failure = time.monotonic(), "", {}, None
    while True:
        step = received.get()
        if isinstance(step, CallFailed):
            if step.status in (401, 403, 404) or not step.status:
                raise step
            failure = failure or _failure_in(received)
            message = str(step)
            # Clients are not shown names of files and folders; the event, for operators, has them.
            if failure and failure["message"].rpartition(": ")[2] not in message:
                message += f": {failure['message']}"
            yield "failed", {"model": model, "message": message, "lines": (failure or {}).get("lines", ())}
            return
        kind, data = step
        if kind == "ready":
            break
        if kind == "phase":
            phase, phase_seconds = data["phase"], data["phase_seconds"]
            failure = data["failure"] or failure
            if phase in ("ready", "failed"):
                continue  # the answer decides: the gateway may retry a failed switch
        yield step
    elapsed_s = time.monotonic() - began_at
    # Events are batched, so those of a quick switch arrive after the answer.
    until = time.monotonic() + (_LAST_EVENT_S if not was_loaded and follower.is_alive() else 0.0)
    while phase != "ready" and (left := until - time.monotonic()) > 0:
        try:
            step = received.get(timeout=left)
        except queue.Empty:
            break
        if not isinstance(step, CallFailed) and step[0] == "phase":
            phase, phase_seconds = step[1]["phase"], step[1]["phase_seconds"]
            if phase not in ("ready", "failed"):
                yield step
    yield "ready", {"model": model, "elapsed_s": round(elapsed_s, 3), "phase_seconds": phase_seconds}


def _failure_in(received: queue.SimpleQueue[Step | CallFailed]) -> dict[str, Any] | None:
    """The failure in the last event of a switch, which may arrive after the answer."""
    until = time.monotonic() + _LAST_EVENT_S
    while (left := until - time.monotonic()) > 0:
        try:
            step = received.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(step, tuple) and step[0] == "phase" and step[1]["failure"]:
            found: dict[str, Any] = step[1]["failure"]
            return found
    return None


#: Consumes the steps, shows them, and returns the last one.
Display = Callable[[str, Iterator[Step]], Step]


def print_steps_as_json(model: str, steps: Iterator[Step]) -> Step:
    last = _NO_STEP
    for last in steps:
        kind, data = last
        print_json_line({"event": kind, "data": data})
    return last


def print_outcome_as_json(model: str, steps: Iterator[Step]) -> Step:
    last = _last(steps)
    print_json({"state": "loaded" if last[0] == "ready" else "failed", "model": model, **last[1]})
    return last


def print_outcome(model: str, steps: Iterator[Step]) -> Step:
    last = _last(steps)
    _print_last(model, last)
    return last


def print_steps(model: str, steps: Iterator[Step]) -> Step:
    """A progress bar on a terminal, else a line per step."""
    last = _show_bar(model, steps) if sys.stderr.isatty() else _print_lines(model, steps)
    _print_last(model, last)
    return last


def _last(steps: Iterator[Step]) -> Step:
    return ([_NO_STEP, *steps])[-1]


def _print_last(model: str, last: Step) -> None:
    from hostler.gateway.cli.formatting import format_seconds
    from hostler.gateway.events import printable

    kind, data = last
    if kind != "ready":
        for line in data.get("lines", ())[-_ENGINE_LINES:]:
            typer.echo(f"  {printable(line, 300)}", err=True)
        return
    if not data["phase_seconds"]:
        echo(f"{model} is ready.")
        return
    phases = ", ".join(
        f"{phase} {format_seconds(took)}" for phase, took in data["phase_seconds"].items() if took >= 0.0005
    )
    echo(f"{model} is ready after {format_seconds(data['elapsed_s'])}" + (f" ({phases})." if phases else "."))


def _print_lines(model: str, steps: Iterator[Step]) -> Step:
    last = _NO_STEP
    before = ""
    for last in steps:
        text = _describe(last)
        if text and text != before:
            before = text
            echo(f"{model}: {text}", err=True)
    return last


def _describe(step: Step) -> str:
    kind, data = step
    if kind == "phase":
        stopped = f" {', '.join(data['from_models'])}" if data["from_models"] and data["phase"] == "stopping" else ""
        return f"{data['phase']}{stopped}"
    if kind == "waiting":
        return f"waiting, place {data['position']}"
    return ""


def _show_bar(model: str, steps: Iterator[Step]) -> Step:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from hostler.gateway.cli.formatting import cut_middle, format_seconds
    from hostler.gateway.events import printable

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[left]}", markup=False),
        TimeElapsedColumn(),
    )
    name = cut_middle(printable(model), _NAME_CELLS)
    last = _NO_STEP
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=5) as bar:
        task = bar.add_task(f"{name}: requested", total=None, left="")
        for last in steps:
            kind, data = last
            if kind not in ("phase", "waiting"):
                continue
            eta = data.get("eta_s")
            percent = _percent(kind, data)
            bar.update(
                task,
                description=f"{name}: {_describe(last)}",
                total=None if percent is None else 100.0,
                completed=percent or 0.0,
                left=f"{format_seconds(eta)} left" if eta else "",
            )
    return last


def _percent(kind: str, data: Mapping[str, Any]) -> float | None:
    """The progress as reported, else estimated from the time that is left."""
    percent: float | None = data.get("percent")
    eta = data.get("eta_s")
    if percent is None and eta and kind == "phase":
        percent = 100 * data["elapsed_s"] / (data["elapsed_s"] + eta)
    return percent
