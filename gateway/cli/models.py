"""The commands that order: `switch`, `load`, `unload`, `cancel`. A switch is shown phase by phase while it lasts."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.gateway.cli.options import (
    FAILED,
    INTERRUPTED,
    USAGE,
    ConfigOption,
    JsonLinesOption,
    JsonOption,
    KeyFileOption,
    ModelArgument,
    UrlOption,
    fail,
    print_json,
    print_json_line,
    say,
)
from hostler.gateway.cli.status import asking, reach

if TYPE_CHECKING:
    from hostler.gateway.cli.client import CallFailed, House


#: A model may take this long to load, in seconds; a client that waits longer has been forgotten.
_LONGEST_S = 3600.0

#: So long after the answer the last event of a switch may come, in seconds.
_LAST_EVENT_S = 1.0

#: Beside a bar, a model's name takes no more cells.
_NAME_CELLS = 30

Step = tuple[str, dict[str, Any]]

_ENDED: Step = ("failed", {"message": "it ended before the model was ready"})


def switch(
    model: ModelArgument,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Make a model ready, and show how it comes.

    Answers in progress end first. Ends when the model is ready, or has failed. With --json each step is a line.
    """
    _make_ready(model, config, url, key_file, _steps_as_json if as_json else _steps_as_words)


def load(
    model: ModelArgument,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model ready, without a word until it is."""
    _make_ready(model, config, url, key_file, _outcome_as_json if as_json else _outcome_as_words)


def unload(
    model: ModelArgument,
    now: Annotated[bool, typer.Option("--now", help="Cut answers off that are in progress.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a model, after the answers in progress."""
    with asking():
        house = reach(config, url, key_file, look=False)
        name = house.model(model)
        if house.kind == "supervisor":
            told = house.caller.post("/models/unload", _LONGEST_S, model=name)
        else:
            told = house.caller.post("/admin/unload", _LONGEST_S, model=name, force=now)
    if as_json:
        print_json(told)
    elif told.get("state") == "draining":
        say(f"{told['model']} stops as soon as its answers in progress have ended; --now does not wait for them.")
    else:
        say(f"{told['model']} is unloaded.")


def cancel(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="As `hostler ps` and X-Request-ID tell it.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a request that waits or is being answered."""
    from hostler.gateway.cli.client import CallFailed

    with asking():
        house = reach(config, url, key_file, look=False)
        house.gateway_only("requests are known to gateways")
        try:
            told = house.caller.post("/admin/cancel", id=request_id)
        except CallFailed as error:
            if error.status == 404:
                fail(f"no request {request_id!r} is on its way; `hostler ps` lists those that are", FAILED)
            raise
    if as_json:
        print_json(told)
    else:
        say(f"{request_id} is cancelled.")


def _make_ready(
    model: str,
    config: str | None,
    url: str | None,
    key_file: str | None,
    show: Callable[[str, Iterator[Step]], Step],
) -> None:
    with asking():
        house = reach(config, url, key_file, look=False)
        name = house.model(model)
        steps = _of_supervisor(house, name) if house.kind == "supervisor" else _of_gateway(house, name)
        try:
            last, data = show(name, steps)
        except KeyboardInterrupt:
            typer.echo("hostler: nobody waits for it any more; a switch that has begun goes on", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if last == "failed":
        if show in (_steps_as_json, _outcome_as_json):
            raise typer.Exit(FAILED)
        fail(str(data["message"]), FAILED)


def _of_supervisor(house: House, model: str) -> Iterator[Step]:
    """A supervisor tells the phases of an order itself."""
    for kind, data in house.caller.events("/models/switch", body={"model": model}):
        if kind == "failed":
            failure = data["error"]
            yield "failed", {"model": model, "message": failure["message"], "lines": _lines(failure)}
        elif kind == "ready":
            yield "ready", {"model": model, "elapsed_s": data["elapsed_s"], "phase_seconds": data["phase_seconds"]}
        else:
            yield kind, data


def _of_gateway(house: House, model: str) -> Iterator[Step]:
    """A gateway answers when it is over; the phases are among its events, which are heard of until then."""
    from hostler.gateway.cli.client import CallFailed

    came: queue.SimpleQueue[Step | CallFailed] = queue.SimpleQueue()
    listening = threading.Event()

    def watch() -> None:
        try:
            for kind, data in house.caller.events("/events"):
                listening.set()
                if kind == "switch" and data["switch"]["model"] == model:
                    came.put(("phase", data["switch"]))
                elif kind == "queue":
                    ours = [each for each in data["waiting"] if each["model"] == model and each["client"] == "operator"]
                    if ours:
                        came.put(("waiting", ours[-1]))
        except CallFailed:
            pass  # a key that may give orders, but not look: then nothing is shown but the outcome
        finally:
            listening.set()

    def order() -> None:
        listening.wait(10.0)
        try:
            came.put(("ready", house.caller.post("/admin/load", _LONGEST_S, model=model)))
        except CallFailed as error:
            came.put(error)

    switches = all(card["state"] != "loaded" for card in house.status.get("models", ()) if card["name"] == model)
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    threading.Thread(target=order, daemon=True).start()
    began_at, phase, spent, failure = time.monotonic(), "", {}, None
    while True:
        step = came.get()
        if isinstance(step, CallFailed):
            if step.status in (401, 403, 404) or not step.status:
                raise step
            failure = failure or _failure_in(came)
            message = str(step)
            # Clients are told less than operators: what is said of files and folders is in the event.
            if failure and failure["message"].rpartition(": ")[2] not in message:
                message += f": {failure['message']}"
            yield "failed", {"model": model, "message": message, "lines": (failure or {}).get("lines", ())}
            return
        kind, data = step
        if kind == "ready":
            break
        if kind == "phase":
            phase, spent = data["phase"], data["phase_seconds"]
            failure = data["failure"] or failure
            if phase in ("ready", "failed"):
                continue  # the order's own answer is what counts: a failed switch may be tried again
        yield step
    elapsed_s = time.monotonic() - began_at
    # Phases are told together a few times a second: of a quick switch, they come after the answer.
    until = time.monotonic() + (_LAST_EVENT_S if switches and watching.is_alive() else 0.0)
    while phase != "ready" and (left := until - time.monotonic()) > 0:
        try:
            step = came.get(timeout=left)
        except queue.Empty:
            break
        if not isinstance(step, CallFailed) and step[0] == "phase":
            phase, spent = step[1]["phase"], step[1]["phase_seconds"]
            if phase not in ("ready", "failed"):
                yield step
    yield "ready", {"model": model, "elapsed_s": round(elapsed_s, 3), "phase_seconds": spent}


def _failure_in(came: queue.SimpleQueue[Step | CallFailed]) -> dict[str, Any] | None:
    """Why a switch failed, as its last event says, which may come a moment later than the answer."""
    until = time.monotonic() + _LAST_EVENT_S
    while (left := until - time.monotonic()) > 0:
        try:
            step = came.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(step, tuple) and step[0] == "phase" and step[1]["failure"]:
            found: dict[str, Any] = step[1]["failure"]
            return found
    return None


def _lines(error: Mapping[str, Any]) -> list[str]:
    return list((error.get("failure") or {}).get("lines", ()))


# How the steps are shown; each returns the last one.


def _steps_as_json(model: str, steps: Iterator[Step]) -> Step:
    last = _ENDED
    for last in steps:
        kind, data = last
        print_json_line({"event": kind, "data": data})
    return last


def _outcome_as_json(model: str, steps: Iterator[Step]) -> Step:
    last = _quietly(steps)
    print_json({"state": "loaded" if last[0] == "ready" else "failed", "model": model, **last[1]})
    return last


def _outcome_as_words(model: str, steps: Iterator[Step]) -> Step:
    last = _quietly(steps)
    _tell_outcome(model, last)
    return last


def _quietly(steps: Iterator[Step]) -> Step:
    return ([_ENDED, *steps])[-1]


def _steps_as_words(model: str, steps: Iterator[Step]) -> Step:
    last = _with_bar(model, steps) if sys.stderr.isatty() else _line_by_line(model, steps)
    _tell_outcome(model, last)
    return last


def _tell_outcome(model: str, last: Step) -> None:
    from hostler.gateway.cli.formatting import seconds
    from hostler.gateway.events import printable

    kind, data = last
    if kind != "ready":
        for line in data.get("lines", ())[-8:]:
            typer.echo(f"  {printable(line, 300)}", err=True)
        return
    if not data["phase_seconds"]:
        say(f"{model} is ready.")
        return
    spent = ", ".join(f"{phase} {seconds(took)}" for phase, took in data["phase_seconds"].items() if took >= 0.0005)
    say(f"{model} is ready after {seconds(data['elapsed_s'])}" + (f" ({spent})." if spent else "."))


def _line_by_line(model: str, steps: Iterator[Step]) -> Step:
    """A line for every phase, for logs and pipes."""
    last = _ENDED
    told = ""
    for last in steps:
        words = _words(last)
        if words and words != told:
            told = words
            say(f"{model}: {words}", err=True)
    return last


def _words(step: Step) -> str:
    kind, data = step
    if kind == "phase":
        source = f" instead of {', '.join(data['from_models'])}" if data["from_models"] else ""
        return f"{data['phase']}{source}" if data["phase"] == "stopping" else str(data["phase"])
    if kind == "waiting":
        return f"waits for its turn, place {data['position']}"
    return ""


def _with_bar(model: str, steps: Iterator[Step]) -> Step:
    """A bar that runs as far as anybody knows, with the phase and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from hostler.gateway.cli.formatting import middle_cut, seconds
    from hostler.gateway.events import printable

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[left]}", markup=False),
        TimeElapsedColumn(),
    )
    name = middle_cut(printable(model), _NAME_CELLS)
    last = _ENDED
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=5) as bar:
        task = bar.add_task(f"{name}: asked for", total=None, left="")
        for last in steps:
            kind, data = last
            if kind not in ("phase", "waiting"):
                continue
            eta = data.get("eta_s")
            percent = data.get("percent")
            if percent is None and eta and kind == "phase":
                percent = 100 * data["elapsed_s"] / (data["elapsed_s"] + eta)
            bar.update(
                task,
                description=f"{name}: {_words(last)}",
                total=None if percent is None else 100.0,
                completed=percent or 0.0,
                left=f"{seconds(eta)} left" if eta else "",
            )
    return last


HostOption = Annotated[
    str | None, typer.Option("--host", metavar="HOST", help="Where; else on every host that has the model.")
]


def pin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a model stay loaded: it makes room for nobody.

    Loads nothing by itself. Holds over restarts.
    """
    _order(True, model, host, config, url, key_file, as_json=as_json)


def unpin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model make room for others again."""
    _order(False, model, host, config, url, key_file, as_json=as_json)


def _order(
    pinned: bool,
    model: str,
    host: str | None,
    config: str | None,
    url: str | None,
    key_file: str | None,
    *,
    as_json: bool,
) -> None:
    from hostler.gateway.cli.client import CallFailed

    with asking():
        house = reach(config, url, key_file, look=False)
        name = house.model(model)
        if house.kind == "supervisor":
            if host is not None:
                raise CallFailed(
                    f"{house.caller.url} is a supervisor: it is the one host there; leave out --host", USAGE
                )
            told = house.caller.post("/models/pin", model=name, pinned=pinned)
        else:
            where: dict[str, Any] = {} if host is None else {"backend": host}
            try:
                told = house.caller.post("/admin/pin", model=name, pinned=pinned, **where)
            except CallFailed as error:
                if error.status == 404:  # the model's name or the host's
                    raise CallFailed(str(error), USAGE, error.status) from error
                raise
    if as_json:
        print_json(told)
    else:
        say(_pin_words(told))


def _pin_words(told: dict[str, Any]) -> str:
    """What was done, and what it does not mean."""
    places = told.get("backends") or ()
    where = f" on {' and '.join(places)}" if places else ""
    words = f"{told['model']} is pinned{where}" if told["pinned"] else f"{told['model']} is not pinned any more{where}"
    if not told["remembered"]:
        words += ", but only until the supervisor's next start: its disk did not take it"
    elif told["pinned"]:
        words += ": it stays once it is loaded"
    return f"{words}."
