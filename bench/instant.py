"""An engine that is ready as soon as Python is, to measure the rest of a switch: `python -I -S -E instant.py ...`.

It accepts llama-server's arguments and answers the requests of a gateway and a supervisor, one per connection.
"""

import _socket
import sys

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

ANSWER = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"word"},"finish_reason":null}]}\n\n'
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
    b"data: [DONE]\n\n"
)
GETS = {
    b"/health": b'{"status":"ok"}',
    b"/slots": b'[{"id":0,"is_processing":false}]',
    b"/props": b'{"build_info":"instant","total_slots":1,"default_generation_settings":{"n_ctx":4096}}',
}


def main() -> None:
    """Serve forever; SIGTERM ends it by its default action."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    listening: Any = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listening.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(128)
    while True:
        descriptor, _ = listening._accept()
        connection = _socket.socket(fileno=descriptor)
        try:
            answer(connection)
        except OSError:
            pass
        connection.close()


def answer(connection: _socket.socket) -> None:
    """One request, read to its end."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    while len(body) < length:
        body += connection.recv(65536)
    method, path = head.split(b" ", 2)[:2]
    if method == b"GET":
        content, kind = GETS.get(path, b"{}"), b"application/json"
    else:
        content, kind = ANSWER, b"text/event-stream"
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
        % (kind, len(content), content)
    )


if __name__ == "__main__":
    main()
