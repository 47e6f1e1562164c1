"""A strict llama-server for the storm of the cluster: it does what it is asked, and logs what it was asked at the same time.

Runs standalone (`python -I -S cluster_backend.py --port P --alias NAME`) on the standard library. `STORM_LOG` names the host's
log, one JSON line for each start, readiness, request, end and stop. Moments are of the monotonic clock, which all processes share.
`STORM_LINK` names a file that says, with the number of a gateway behind its name, what is wrong with the way to that gateway.
"""

import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120 - pathlib would double the start time

from answer_writer import AnswerWriter, Server, usage_of

WORD_S = 0.003
LOAD_S = 0.05


def log(event, **facts):
    line = json.dumps({"event": event, "at": time.monotonic(), "pid": os.getpid(), "model": NAME, **facts})
    file = os.open(os.environ["STORM_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode() + b"\n")
    os.close(file)


def alive_before():
    """The engines of this host that still run. Two never may."""
    try:
        with open(os.environ["STORM_LOG"]) as lines:  # noqa: PTH123 - pathlib would double the start time
            pids = {json.loads(line)["pid"] for line in lines}
    except OSError:
        return []
    return [pid for pid in pids if pid != os.getpid() and is_engine(pid)]


def is_engine(pid):
    """Whether an engine of this host has this number: others may get it later."""
    own = b"STORM_LOG=" + os.environ["STORM_LOG"].encode()
    try:
        with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] not in "ZX" and own in environ.read().split(b"\0")
    except OSError:
        return False


class Link:
    """The way to the gateway that a request names. While it is to `hold` it carries nothing, the end of the connection
    included; it is `cut` once, and then refuses what comes."""

    def __init__(self, request):
        self.file = os.environ["STORM_LINK"] + request.rpartition("g")[2]

    def state(self):
        try:
            with open(self.file) as file:  # noqa: PTH123 - pathlib would double the start time
                return file.read()
        except OSError:
            return ""

    def has_left(self, connection):
        """Whether the gateway has closed the connection, as far as the engine can know."""
        state = self.state()
        return state == "cut" or (state != "hold" and has_left(connection))

    def wait(self):
        """Until it carries anything. Raises `OSError` if it is cut."""
        while (state := self.state()) == "hold":
            time.sleep(WORD_S)
        if state == "cut":
            raise ConnectionResetError


class HeldFile:
    """What a handler writes to, behind a link."""

    def __init__(self, file, link):
        self.file = file
        self.link = link

    def write(self, data):
        self.link.wait()
        return self.file.write(data)


class Running:
    """The requests in progress whose clients are there."""

    def __init__(self):
        self.lock = threading.Lock()
        self.sockets = {}

    def begin(self, request, connection):
        with self.lock:
            self.sockets[connection] = request
            running = self.present()
            log("begin", request=request, running=running, slots=SLOTS)

    def end(self, request, connection, how):
        with self.lock:
            if self.sockets.pop(connection, None) is not None:
                log("end", request=request, how=how)

    def present(self):
        return sum(not Link(request).has_left(each) for each, request in self.sockets.items())


def has_left(connection):
    """Whether the other end has closed the connection."""
    try:
        if not select.select([connection], [], [], 0)[0]:
            return False
        return connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


RUNNING = Running()


class Handler(AnswerWriter):
    def do_GET(self):
        if time.monotonic() < READY_AT:
            return self.whole(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
        if self.path == "/health":
            if not READY:
                READY.append(True)
                log("ready")
            return self.whole(200, {"status": "ok"})
        if self.path.endswith("/models"):
            return self.whole(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        if self.path == "/props":
            return self.whole(200, {"build_info": "storm", "total_slots": SLOTS})
        if self.path == "/metrics":
            with RUNNING.lock:
                busy = RUNNING.present()
            lines = (
                f"llamacpp:requests_processing {busy}",
                "llamacpp:requests_deferred 0",
                "llamacpp:n_decode_total 1",
            )
            return self.send_bytes(200, "\n".join((*lines, "")).encode(), "text/plain")
        return self.whole(404, {"error": {"code": 404, "message": "no such path", "type": "not_found_error"}})

    def do_POST(self):
        text = self.rfile.read(int(self.headers["content-length"])).decode()
        key = os.environ.get("LLAMA_API_KEY")
        if key and self.headers.get("authorization") != f"Bearer {key}":
            return self.whole(401, {"error": {"code": 401, "message": "no key", "type": "authentication_error"}})
        asked, found = json.loads(text), re.search(r"number (\w+), (\d+) words", text)
        self.name = found[1]
        words = [f"{found[1]}.{index} " for index in range(int(found[2]))]
        self.link, plain = Link(self.name), self.wfile
        try:
            self.link.wait()  # else the request would not be here yet
            if has_left(self.connection):
                raise ConnectionResetError
            self.wfile = HeldFile(plain, self.link)
            RUNNING.begin(self.name, self.connection)
            if self.path.endswith("/embeddings"):
                self.embed(words)
            elif asked.get("stream"):
                self.stream(words)
            else:
                self.together(words)
        except OSError:
            self.close_connection = True
        finally:
            self.wfile = plain
            RUNNING.end(self.name, self.connection, "gone")
        return None

    def work(self):
        """The time for a word. Raises `OSError` once the client has left."""
        time.sleep(WORD_S)
        if self.link.has_left(self.connection):
            raise ConnectionResetError

    def finished(self):
        """Said before the last bytes: what reads them may send its next request at once."""
        RUNNING.end(self.name, self.connection, "finished")

    def embed(self, words):
        self.work()
        numbers = [*map(float, re.findall(r"\d+", self.name)), float(len(words))]
        data = [{"object": "embedding", "index": 0, "embedding": numbers}]
        self.finished()
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        self.whole(200, {"object": "list", "model": NAME, "data": data, "usage": usage})

    def together(self, words):
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(words)}}]
        for _ in words:
            self.work()
        self.finished()
        self.whole(
            200,
            {"id": "storm", "object": "chat.completion", "created": 1, "model": NAME, "choices": choices}
            | {"usage": usage_of(words)},
        )

    def stream(self, words):
        self.head(200, "text/event-stream", "Transfer-Encoding: chunked")
        self.choice({"role": "assistant", "content": None})
        for word in words:
            self.choice({"content": word})
            self.work()
        self.finished()
        self.choice({}, "stop")
        self.event({"id": "storm", "object": "chat.completion.chunk", "choices": [], "usage": usage_of(words)})
        self.piece(b"data: [DONE]\n\n")
        self.last()


def stop(*_):
    log("stop")
    os._exit(0)


def option(*names):
    return next(sys.argv[sys.argv.index(name) + 1] for name in names if name in sys.argv)


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit("usage: cluster_backend.py --port P --alias NAME")
    NAME, SLOTS = option("--alias"), int(option("--parallel", "-np"))
    Handler.model = NAME
    READY, READY_AT = [], time.monotonic() + LOAD_S
    log("start", alive=alive_before())
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = Server((option("--host"), int(option("--port"))), Handler)
    server.serve_forever()
