"""The embedded engine: llama.cpp's HTTP server from the `xllamacpp` wheel, with llama-server's arguments.

`python -m hostler.supervisor.embedded.server -m FILE ...` behaves like `llama-server`: same routes, log lines and exit
codes. It imports nothing else of the product.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import IO, Any, Final, NoReturn

from hostler.supervisor.embedded.arguments import BadArgument, parameters, parse, usage

ROUTER_CHILD: Final = "LLAMA_SERVER_ROUTER_PORT"

#: On its standard input this line ends it, as it ends a llama-server that was started as a router's child.
EXIT_COMMAND: Final = b"cmd_router_to_child:exit"

#: With this variable it waits for the command on its standard input before it loads its model.
HOLDS: Final = "HOSTLER_ENGINE_HOLDS"
LOAD_COMMAND: Final = b"hostler:load"


def serve(params: Any, commands: IO[bytes] | None, wakeup: int) -> NoReturn:
    """Load and serve until a signal, the exit command, or the end of `commands`."""
    import xllamacpp

    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - llama.cpp has printed the reason above
        _exit(1)
    if sys.platform == "win32":  # where neither pipes nor signals can be waited for
        _serve_until_told(server, commands)
    # Until here a signal ends the process at once, by its default action: there are no requests yet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _exit(0))
    watched: list[Any] = [wakeup] if commands is None else [wakeup, commands]
    received = b""
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wakeup in ready:
            os.read(wakeup, 64)
        if commands is not None and commands in ready:
            piece = os.read(commands.fileno(), 4096)
            if not piece:
                print("stdin closed: the supervisor is gone, exiting", file=sys.stderr)  # noqa: T201
                _exit(1)
            *lines, received = (received + piece).split(b"\n")
            if EXIT_COMMAND in lines:
                _exit(0)
        assert server  # kept alive: the server ends with its object


def _serve_until_told(server: Any, commands: IO[bytes] | None) -> NoReturn:
    """Serve until Ctrl-Break, which ends the process by its default action, the exit command, or the end of `commands`."""
    if commands is None:
        while server:  # kept alive: the server ends with its object
            time.sleep(3600)
    told = read_until_exit(commands) if commands is not None else False
    if not told:
        print("stdin closed: the supervisor is gone, exiting", file=sys.stderr)  # noqa: T201
    _exit(0 if told else 1)


def read_until_exit(commands: IO[bytes]) -> bool:
    """Wait for the exit command; false if the other end has gone before."""
    received = b""
    while piece := os.read(commands.fileno(), 4096):
        *lines, received = (received + piece).split(b"\n")
        if EXIT_COMMAND in (line.rstrip(b"\r") for line in lines):
            return True
    return False


def hold(commands: IO[bytes]) -> None:
    """Wait for the command to load. Exits for any other one, and at the end of `commands`."""
    print("holding until the model may be loaded", file=sys.stderr, flush=True)  # noqa: T201
    command = commands.readline().rstrip(b"\r\n")
    if command != LOAD_COMMAND:
        _exit(0 if command == EXIT_COMMAND else 1)


def _exit(code: int) -> NoReturn:
    """Exit at once. The server's own shutdown would wait for responses in progress, which the supervisor has drained."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_stdin() -> IO[bytes] | None:
    """The standard input, if the supervisor sends commands on it.

    llama.cpp's server would read them itself, but its exit command ends only its own loop, not this process; so it gets
    a silent pipe instead.
    """
    if not os.environ.get(ROUTER_CHILD):
        return None
    commands = os.fdopen(os.dup(0), "rb", buffering=0)
    silent, kept_open = os.pipe()
    os.dup2(silent, 0)
    os.close(silent)
    os.set_inheritable(kept_open, False)
    return commands


def _end_with_parent() -> None:
    """Have Linux kill this process with its parent: while a model loads, the end of stdin is not noticed."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        _exit(1)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command. Like llama-server it exits with 1 after one line that states the error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help", "--usage"}.isdisjoint(arguments):
        print(usage())  # noqa: T201
        sys.exit(0)
    try:
        values = parse(arguments)
        if not values.get("model.path"):
            raise BadArgument("error: no model is given, use -m FILE")
        commands = _take_stdin()
        if commands is not None:
            _end_with_parent()
        params = parameters(values, os.environ)
        if commands is not None and os.environ.get(HOLDS):
            hold(commands)
    except BadArgument as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except ImportError as error:
        print(f"error: the embedded engine cannot be loaded ({error}): {_remedy(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    waking, wakeup = os.pipe()
    if sys.platform != "win32":
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    serve(params, commands, waking)


def _remedy(error: ImportError) -> str:
    if "libgomp" in str(error):
        return "install the OpenMP library, on Debian and Ubuntu: apt install libgomp1"
    return "pip install 'hostler[embedded]'"


if __name__ == "__main__":
    main()
