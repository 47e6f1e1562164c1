"""What both scripted servers of the storms write: heads, JSON, and OpenAI's events in chunks.

Servers that run standalone (`python -I -S`) import it from their own folder, on the standard library.
"""

import http.server
import json


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_):
        pass


class AnswerWriter(http.server.BaseHTTPRequestHandler):
    """`model` is the name that answers contain."""

    protocol_version = "HTTP/1.1"
    model = ""

    def log_message(self, *_):
        pass

    def head(self, status, label, *more):
        lines = [f"HTTP/1.1 {status} Storm", f"Content-Type: {label}", *more, "", ""]
        self.wfile.write("\r\n".join(lines).encode())

    def send_bytes(self, status, data, label, *more):
        self.head(status, label, f"Content-Length: {len(data)}", *more)
        self.wfile.write(data)

    def whole(self, status, value, *more):
        self.send_bytes(status, json.dumps(value).encode(), "application/json", *more)

    def choice(self, delta, finish=None):
        choices = [{"index": 0, "finish_reason": finish, "delta": delta}]
        self.event(
            {"id": "storm", "object": "chat.completion.chunk", "created": 1, "model": self.model, "choices": choices}
        )

    def event(self, value):
        self.piece(b"data: " + json.dumps(value).encode() + b"\n\n")

    def piece(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def last(self):
        self.wfile.write(b"0\r\n\r\n")


def usage_of(words):
    return {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
