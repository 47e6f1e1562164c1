"""A scripted llama-server or cloud for the storm: every word of an answer names its request, and it fails as ordered.

Runs standalone (`python -I -S backend.py --port P --alias NAME`) on the standard library. The file that `STORM_FAULTS` names
holds what goes wrong: `{"kinds": [...], "rate": 0.3}`; it is read for each request.
"""

import json
import os
import random
import re
import select
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120 - pathlib would double the start time

from answer_writer import AnswerWriter, Server, usage_of

#: An answer is refused, or nothing comes.
REFUSALS = ("status_500", "status_502", "status_503", "status_429", "error_in_200", "reset", "stall")
#: An answer that has begun ends badly.
BREAKS = ("cut", "reset_after_words", "stall_after_words", "error_after_words", "crash")
#: A success that is none, or none that ends.
BROKEN_SUCCESSES = (
    "html", "empty", "cut_json", "no_choices", "done_without_finish", "pings_only", "pings_after_words",
)  # fmt: skip
#: Right content under a wrong label.
LABELS = ("wrong_label",)

WORD_S = 0.003
SILENT_S = 60.0


def fault_of(name):
    """What goes wrong for the request of that name, by chance with a known seed.

    Errors come from the cloud only: what an engine says while it lives is about the request, which gets to hear it.
    """
    try:
        with open(os.environ["STORM_FAULTS"]) as file:  # noqa: PTH123 - pathlib would double the start time
            ordered = json.load(file)
    except (OSError, ValueError):  # it is being replaced
        return None, random.Random(name)
    kinds = [kind for kind in ordered["kinds"] if not (ENGINE and kind.startswith(("status_", "error_")))]
    TRIES[name] = TRIES.get(name, 0) + 1
    chance = random.Random(f"{ordered['seed']}/{NAME}/{name}/{TRIES[name]}")
    return (chance.choice(kinds) if kinds and chance.random() < ordered["rate"] else None), chance


TRIES = {}


class Handler(AnswerWriter):
    def do_GET(self):
        if self.path == "/health":
            return self.whole(200, {"status": "ok"})
        if self.path.endswith("/models"):
            return self.whole(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        if self.path == "/props":
            return self.whole(200, {"build_info": "storm", "total_slots": 4})
        return self.whole(404, {"error": {"code": 404, "message": "no such path", "type": "not_found_error"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = os.environ.get("LLAMA_API_KEY")
        if key and self.headers.get("authorization") != f"Bearer {key}":
            return self.whole(401, {"error": {"code": 401, "message": "no key", "type": "authentication_error"}})
        found = re.search(r"number (\w+), (\d+) words", json.dumps(asked["messages"]))
        words = [f"{found[1]}.{index} " for index in range(int(found[2]))]
        fault, self.chance = fault_of(found[1])
        try:
            self.answer(words, fault, streamed=bool(asked.get("stream")))
        except OSError:
            self.close_connection = True
        return None

    def answer(self, words, fault, *, streamed):
        if fault is not None and fault.startswith("status_"):
            return self.refuse(int(fault[7:]))
        if fault == "reset":
            return self.reset()
        if fault == "stall":
            return self.silence()
        if fault == "html":
            return self.send_bytes(200, b"<html><body>Please log in</body></html>", "text/html")
        if fault == "empty":
            return self.send_bytes(200, b"", "text/event-stream" if streamed else "application/json")
        label = "text/plain" if fault == "wrong_label" else None
        if streamed:
            return self.stream(words, fault, label or "text/event-stream")
        return self.together(words, fault, label or "application/json")

    def together(self, words, fault, label):
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(words)}}]
        body = {"id": "storm", "object": "chat.completion", "created": 1, "model": NAME, "choices": choices}
        time.sleep(WORD_S * len(words))
        if fault in ("error_in_200", "error_after_words"):
            return self.whole(200, {"error": {"code": 500, "message": "overloaded", "type": "server_error"}})
        if fault in ("no_choices", "done_without_finish"):
            body["choices"] = []
        data = json.dumps({**body, "usage": usage_of(words)}).encode()
        if fault == "cut_json":
            return self.send_bytes(200, data[: len(data) // 2], label)
        if fault in (*BREAKS, "pings_only", "pings_after_words"):
            self.head(200, label, f"Content-Length: {len(data)}")
            self.wfile.write(data[: len(data) // 2])
            # In a body of known length there are no pings.
            return self.silence() if fault.startswith("pings") else self.end_badly(fault)
        return self.send_bytes(200, data, label)

    def stream(self, words, fault, label):
        if fault == "error_in_200":
            self.head(200, label, "Transfer-Encoding: chunked")
            self.event({"error": {"code": 500, "message": "overloaded", "type": "server_error"}})
            return self.last()
        self.head(200, label, "Transfer-Encoding: chunked")
        if fault == "pings_only":
            return self.end_badly(fault)
        if fault == "no_choices":
            self.event({"id": "storm", "object": "chat.completion.chunk", "choices": []})
            self.piece(b"data: [DONE]\n\n")
            return self.last()
        self.choice({"role": "assistant", "content": None})
        stop = self.chance.randrange(1, len(words)) if fault is not None else len(words)
        for index, word in enumerate(words):
            if index == stop and fault == "cut_json":
                self.piece(b'data: {"id": "storm", "choices": [{"ind')
                return self.last()
            if index == stop and fault == "done_without_finish":
                self.piece(b"data: [DONE]\n\n")
                return self.last()
            if index == stop and fault in (*BREAKS, "pings_after_words"):
                return self.end_badly(fault)
            self.choice({"content": word})
            time.sleep(WORD_S)
        self.choice({}, "stop")
        self.piece(b"data: [DONE]\n\n")
        return self.last()

    def end_badly(self, fault):
        if fault == "crash" and ENGINE:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "error_after_words":
            self.event({"error": {"code": 500, "message": "out of memory", "type": "server_error"}})
            return self.last()
        if fault == "stall_after_words":
            return self.silence()
        if fault in ("pings_only", "pings_after_words"):
            until = time.monotonic() + SILENT_S
            while time.monotonic() < until:
                self.piece(b": ping\n\n")
                time.sleep(0.1)
            return None
        if fault == "cut":
            self.close_connection = True
            return None
        return self.reset()

    # Failures.

    def refuse(self, status):
        more = ("Retry-After: 1",) if status in (429, 503) else ()
        self.whole(status, {"error": {"code": status, "message": "not now", "type": "server_error"}}, *more)

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def silence(self):
        """Until the client gives up."""
        select.select([self.connection], [], [], SILENT_S)
        self.close_connection = True


def option(name, default):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit("usage: backend.py --port P --alias NAME")
    NAME, ENGINE = option("--alias", "cloud"), "--storm-cloud" not in sys.argv
    Handler.model = NAME
    server = Server((option("--host", "127.0.0.1"), int(option("--port", "0"))), Handler)
    server.serve_forever()
