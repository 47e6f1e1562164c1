"""An engine that speaks WebSocket: `--port PORT --key KEY --log FILE`. Each message is answered as its first word says.

`echo` sends it back, `close CODE` closes the connection, `flood BYTES` sends so many of them, `exit` ends the process.
"""

import argparse
import json
import os
from pathlib import Path

from aiohttp import WSMsgType, web

_MIB = 1024 * 1024


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--log", type=Path, required=True)
    return parser.parse_args()


def engine(key, file):
    def log(event, **facts):
        with file.open("a") as opened:
            opened.write(json.dumps({"event": event, "model": "", **facts}) + "\n")

    async def socket(request):
        headers = {name.lower(): value for name, value in request.headers.items()}
        log("handshake", path=request.path_qs, headers=headers)
        if key and headers.get("authorization") != f"Bearer {key}":
            raise web.HTTPUnauthorized
        server = web.WebSocketResponse(protocols=("realtime",), max_msg_size=0)
        await server.prepare(request)
        async for message in server:
            if message.type is WSMsgType.BINARY:
                await server.send_bytes(message.data)
                continue
            word, _, rest = message.data.partition(" ")
            if word == "close":
                await server.close(code=int(rest), message=b"as asked")
            elif word == "flood":
                for sent in range(int(rest) // _MIB):
                    log("flood", sent=sent)
                    await server.send_bytes(bytes(_MIB))
            elif word == "exit":
                os._exit(3)
            else:
                await server.send_str(message.data)
        log("closed", code=server.close_code)
        return server

    async def ok(_):
        return web.json_response({"status": "ok"})

    async def chat(_):
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [choice]})

    app = web.Application()
    app.router.add_get("/ok", ok)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/plain", ok)
    app.router.add_get("/{path:.*}", socket)
    return app


if __name__ == "__main__":
    given = options()
    web.run_app(engine(given.key, given.log), host="127.0.0.1", port=given.port, print=None)
