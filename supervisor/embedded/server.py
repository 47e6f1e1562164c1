"""The embedded engine: llama.cpp's own HTTP server out of the `xllamacpp` wheel, behind llama-server's arguments.

`python -m hostler.supervisor.embedded.server -m FILE ...` is a process like `llama-server` is one: same routes, same lines,
same exit codes. It knows nothing of profiles and starts without importing the rest of the product. Which arguments
there are is in `engine_arguments`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import IO, Any, Final, NoReturn

from hostler.supervisor.embedded.arguments import BadArgument, parameters, parse, usage

ROUTER_CHILD: Final = "LLAMA_SERVER_ROUTER_PORT"
EXIT_COMMAND: Final = b"cmd_router_to_child:exit"


def serve(params: Any, orders: IO[bytes] | None, wakeup: int) -> NoReturn:
    """Load, serve, and leave when told to: by a signal, by the exit command, or by the end of `orders`."""
    import xllamacpp

    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - llama.cpp has printed the reason above
        _leave(1)
    # Until here a signal ends the process at once, by its default action: nobody is served yet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(0))
    watched: list[Any] = [wakeup] if orders is None else [wakeup, orders]
    received = b""
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wakeup in ready:
            os.read(wakeup, 64)
        if orders is not None and orders in ready:
            piece = os.read(orders.fileno(), 4096)
            if not piece:
                print("end of the orders: whoever started this engine is gone", file=sys.stderr)  # noqa: T201
                _leave(1)
            *lines, received = (received + piece).split(b"\n")
            if EXIT_COMMAND in lines:
                _leave(0)
        assert server  # kept alive: the server ends with its object


def _leave(code: int) -> NoReturn:
    """End at once. The server's own shutdown waits for answers in progress, and whoever says stop has drained them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_orders() -> IO[bytes] | None:
    """The real standard input, when somebody gives orders on it.

    llama.cpp's server would read it itself, but its exit command ends its own loop only, not this process; so it gets
    a pipe on which nothing ever comes.
    """
    if not os.environ.get(ROUTER_CHILD):
        return None
    orders = os.fdopen(os.dup(0), "rb", buffering=0)
    silent, kept_open = os.pipe()
    os.dup2(silent, 0)
    os.close(silent)
    os.set_inheritable(kept_open, False)
    return orders


def _end_with_parent() -> None:
    """Ask Linux to end this process with its parent: while a model loads nobody here can see the end of the orders."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        _leave(1)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command. Exit code 1 after one line that says what is wrong, like llama-server."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help", "--usage"}.isdisjoint(arguments):
        print(usage())  # noqa: T201
        sys.exit(0)
    try:
        values = parse(arguments)
        if not values.get("model.path"):
            raise BadArgument("error: no model is given, use -m FILE")
        orders = _take_orders()
        if orders is not None:
            _end_with_parent()
        params = parameters(values, os.environ)
    except BadArgument as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except ImportError as error:
        print(f"error: the embedded engine cannot be loaded ({error}): {_way_out(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    waking, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    serve(params, orders, waking)


def _way_out(error: ImportError) -> str:
    if "libgomp" in str(error):
        return "install OpenMP's library, on Debian and Ubuntu: apt install libgomp1"
    return "pip install 'hostler[embedded]'"


if __name__ == "__main__":
    main()
