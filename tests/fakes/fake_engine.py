"""A scripted llama-server: same arguments, routes and framing, with exactly the failures that a test configures.

Runs standalone (`python -I -S fake_engine.py -m FILE --port P ...`) on the standard library, ready within 30 ms. The
environment configures it: `FAKE_ENGINE` holds JSON, `FAKE_<NAME>` a single value (JSON or plain text); see `SCRIPT`.
`FAKE_LOG` names a file that gets one JSON line for each start, readiness, request, end, disconnect, stop request, and stop.

Keys that end in `_when` name a flag file whose existence is waited for, so that tests order events on machines of any
speed.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time

SCRIPT = {
    "log": None,  # file for what happens, see above
    "listen_after": 0.0,  # seconds until the port is open
    "ready_after": 0.0,  # seconds after that with 503 "Loading model"
    "ready_when": None,  # and until this flag is set
    "memory_mib": 0,  # takes this much memory while it loads
    "never_ready": False,  # 503 forever
    "hang": False,  # accepts connections but sends nothing
    "hang_when": None,  # the same once it is ready and this flag is set
    "exit_code": None,  # ends with this code before it is ready ...
    "exit_after": 0.0,  # ... that many seconds after its start,
    "exit_when": None,  # ... or when this flag is set,
    "exit_times": None,  # ... but only at its first n starts (counted in the log)
    "stderr": "",  # written at the start
    "die_after": None,  # seconds after readiness until it ends with code 1
    "ignore_stop": False,  # ignores SIGTERM, SIGINT and the exit command
    "slow_exit": 0.0,  # seconds from SIGTERM to the end
    "gone_when": None,  # and until this flag is set
    "grandchild": False,  # starts a child that ignores SIGTERM; its pid is in the log
    "router_child": False,  # uses the router-child protocol on stdin and stdout
    "check_key": True,  # requires LLAMA_API_KEY on all routes but /health
    "chunks": 5,  # words in an answer
    "chunk_delay": 0.0,  # seconds between them
    "first_delay": 0.0,  # seconds before the first byte of an answer
    "answer_when": None,  # waits for this flag before it
    "last_when": None,  # waits for this flag before the last word of an answer
    "close_when": None,  # waits for this flag between the last event of a stream and the end of its body
    "chunk_bytes": 0,  # each word is padded to this length
    "crash_at_chunk": None,  # the process kills itself before this chunk (from 0)
    "break_at_chunk": None,  # only the connection breaks there
    "end_at_chunk": None,  # the stream ends there without finish_reason and [DONE]
    "error_at_chunk": None,  # an error event in the stream there
    "ignore_stream": False,  # answers "stream": true with whole JSON
    "status": None,  # answers POSTs with this error status ...
    "error": "scripted error",  # ... and message
    "retry_after": None,  # ... and header
    "text": "word{}",  # the words, {} is the number
    "reasoning": 0,  # this many of the chunks are reasoning
    "usage": True,  # send usage in a last chunk if requested
    "queue": False,  # at most -np answers at a time, as the real one
    "tokens_per_char": 0.25,
    "save_when": None,  # waits for this flag before it saves a slot
    "discard_restored": False,  # restores a slot but evaluates its prompt anew
}


def read_script():
    script = dict(SCRIPT)
    script.update(json.loads(os.environ.get("FAKE_ENGINE") or "{}"))
    for name in SCRIPT:
        text = os.environ.get("FAKE_" + name.upper())
        if text is not None:
            try:
                script[name] = json.loads(text)
            except ValueError:
                script[name] = text
    unknown = set(script) - set(SCRIPT)
    if unknown:
        sys.exit(f"fake engine: unknown keys in the script: {', '.join(sorted(unknown))}")
    return script


WITHOUT_VALUE = {
    "--embeddings", "--embedding", "--metrics", "--no-ui", "--no-webui", "--offline", "--no-warmup", "--jinja",
    "--no-jinja", "--slots", "--no-slots", "--props", "-kvu", "--kv-unified", "--swa-full", "--rerank",
    "--reranking", "--no-cache-prompt", "--no-cache-idle-slots", "--log-jsonl", "--context-shift", "--no-mmproj",
}  # fmt: skip

ENDING = (signal.SIGTERM, signal.SIGINT)
LONG = {"-m": "--model", "-a": "--alias", "-c": "--ctx-size", "-np": "--parallel", "-b": "--batch-size"}


def read_arguments(words):
    flags = {
        "--host": "127.0.0.1", "--port": "8080", "--ctx-size": "4096", "--parallel": "1", "--model": "", "--alias": "",
    }  # fmt: skip
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--no-such-flag" or not word.startswith("-"):
            print(f"error: invalid argument: {word}", file=sys.stderr)
            sys.exit(1)
        if word in WITHOUT_VALUE:
            flags[word] = True
            position += 1
        else:
            if position + 1 >= len(words):
                print(f'error while handling argument "{word}": expected value for argument', file=sys.stderr)
                sys.exit(1)
            flags[LONG.get(word, word)] = words[position + 1]
            position += 2
    return flags


def is_set(flag):
    return flag is None or os.path.exists(flag)  # noqa: PTH110 - pathlib would double the start time


def wait_for(flag):
    while not is_set(flag):
        time.sleep(0.003)


class Engine:
    def __init__(self, script, flags):
        self.script = script
        self.flags = flags
        self.key = os.environ.get("LLAMA_API_KEY", "")
        self.name = flags["--alias"] or flags["--model"]
        self.parallel = int(flags["--parallel"])
        self.ready = False
        self.hanging = bool(script["hang"])
        self.slots = [{"tokens": 0, "busy": False} for _ in range(max(1, self.parallel))]
        self.room = threading.Semaphore(self.parallel)
        self.count = 0
        self.polls = 0  # of /health that were answered with 200
        self.stdout = threading.Lock()

    def log(self, event, **facts):
        if self.script["log"]:
            line = json.dumps({"event": event, "time": time.time(), "pid": os.getpid(), "model": self.name, **facts})
            file = os.open(self.script["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, line.encode() + b"\n")
            os.close(file)

    def earlier_starts(self):
        try:
            with open(self.script["log"]) as lines:  # noqa: PTH123 - pathlib would double the start time
                events = [json.loads(line) for line in lines]
        except (OSError, TypeError):
            return 0
        return sum(1 for event in events if event["event"] == "start" and event["model"] == self.name)

    def report_state(self, state, payload):
        if self.script["router_child"] and os.environ.get("LLAMA_SERVER_ROUTER_PORT"):
            line = "cmd_child_to_router:state:" + json.dumps({"state": state, "payload": payload})
            with self.stdout:
                os.write(1, line.encode() + b"\n")

    # Lifecycle.

    def run(self):
        script = self.script
        before = self.earlier_starts() if script["exit_times"] is not None else 0
        if script["ignore_stop"]:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            threading.Thread(target=self.wait_for_signal, daemon=True).start()
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(("LLAMA_", "FAKE_", "TEST_"))
        }
        self.log("start", argv=sys.argv[1:], environment=environment, environment_names=sorted(os.environ))
        if script["stderr"]:
            os.write(2, script["stderr"].encode() + b"\n")
        if script["grandchild"]:
            self.start_grandchild()
        if script["router_child"] and os.environ.get("LLAMA_SERVER_ROUTER_PORT"):
            threading.Thread(target=self.read_commands, daemon=True).start()
        if script["exit_code"] is not None and (script["exit_times"] is None or before < script["exit_times"]):
            if script["exit_after"] <= 0 and script["exit_when"] is None:
                self.end(script["exit_code"], "scripted")
            after = (script["exit_after"], script["exit_when"], script["exit_code"], "scripted")
            threading.Thread(target=self.end_after, args=after, daemon=True).start()
        time.sleep(script["listen_after"])
        listening = self.listen()
        self.report_state("loading", {"stages": ["text_model"], "current": "text_model", "value": 0.0})
        threading.Thread(target=self.load, daemon=True).start()
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=self.handle_connection, args=(connection,), daemon=True).start()

    def listen(self):
        host, port = self.flags["--host"], int(self.flags["--port"])
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError:
            line = (
                f"0.00.003.000 E srv         start: couldn't bind HTTP server socket, hostname: {host}, port: {port}\n"
            )
            os.write(2, line.encode())
            self.end(1, "port taken")
        listening.listen(128)
        return listening

    def load(self):
        script = self.script
        steps = 4 if script["ready_after"] else 1
        self.memory = b"1" * (script["memory_mib"] << 20)
        for step in range(steps):
            time.sleep(script["ready_after"] / steps)
            self.report_state(
                "loading", {"stages": ["text_model"], "current": "text_model", "value": (step + 1) / steps}
            )
        wait_for(script["ready_when"])
        if script["never_ready"]:
            return
        self.ready = True
        self.log("ready")
        slot = int(self.flags["--ctx-size"]) // self.parallel
        self.report_state("ready", {"id": self.name, "meta": {"n_ctx": slot}})
        os.write(2, b"0.00.010.000 I srv  llama_server: model loaded\n")
        if script["die_after"] is not None:
            time.sleep(script["die_after"])
            self.end(1, "died")
        if script["hang_when"] is not None:
            wait_for(script["hang_when"])
            self.hanging = True

    def read_commands(self):
        received = b""
        while True:
            piece = os.read(0, 4096)
            if not piece:
                self.end(1, "end of stdin")
            received += piece
            if b"cmd_router_to_child:exit\n" in received and not self.script["ignore_stop"]:
                self.log("stop_requested")
                self.end_after(self.script["slow_exit"], self.script["gone_when"], 0, "exit command")

    def wait_for_signal(self):
        # A signal handler would run in the main thread only, which may be blocked in accept().
        signal.sigwait(ENDING)
        self.log("stop_requested")
        self.end_after(self.script["slow_exit"], self.script["gone_when"], 0, "SIGTERM")

    def end_after(self, seconds, flag, code, how):
        time.sleep(seconds)
        wait_for(flag)
        self.end(code, how)

    def end(self, code, how):
        self.log("stop", how=how, code=code)
        os._exit(code)

    def start_grandchild(self):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
        self.log("grandchild", grandchild=pid)

    # HTTP.

    def handle_connection(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = connection.makefile("rb")
        try:
            for _ in range(100):
                connection.settimeout(5)
                request = self.read(reader)
                connection.settimeout(None)
                if request is None or not self.answer(connection, *request):
                    return
        except (OSError, ValueError):
            pass
        finally:
            reader.close()
            connection.close()

    def read(self, reader):
        first = reader.readline().split()
        if len(first) < 3:
            return None
        headers = {}
        while True:
            line = reader.readline().strip()
            if not line:
                break
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        body = reader.read(int(headers.get("content-length") or 0))
        return first[0].decode(), first[1].decode(), headers, body

    def answer(self, connection, method, target, headers, body):
        path, _, query = target.partition("?")
        if path not in ("/health", "/v1/health"):
            facts = {"method": method, "path": target, "headers": headers, "polls": self.polls}
            self.log("request", body=body.decode("utf-8", "replace"), **facts)
        while self.hanging:
            time.sleep(0.05)
        if not self.ready:
            return self.refuse(connection, 503, "Loading model", "unavailable_error")
        if path in ("/health", "/v1/health"):
            self.polls += 1
            return self.send(connection, 200, {"status": "ok"})
        if self.script["check_key"] and self.key and not self.has_key(headers):
            return self.refuse(connection, 401, "Invalid API Key", "authentication_error")
        if method == "GET":
            found = self.look_up(path)
            if found is None:
                return self.refuse(connection, 404, "File Not Found", "not_found_error")
            if isinstance(found, str):
                return self.send_bytes(connection, 200, found.encode(), {"Content-Type": "text/plain; version=0.0.4"})
            return self.send(connection, 200, found)
        if path.startswith("/slots/"):
            return self.slot_action(connection, int(path.split("/")[2]), query.partition("=")[2], json.loads(body))
        if self.script["status"]:
            more = {"Retry-After": str(self.script["retry_after"])} if self.script["retry_after"] is not None else {}
            return self.refuse(connection, self.script["status"], self.script["error"], "server_error", more)
        try:
            asked = json.loads(body or b"{}")
        except ValueError:
            return self.refuse(connection, 400, "parse error", "invalid_request_error")
        if path.endswith("/tokenize"):
            return self.send(connection, 200, {"tokens": list(range(len(str(asked.get("content", "")).split())))})
        if path.endswith("/embeddings"):
            return self.embed(connection, asked)
        if path.endswith(("/chat/completions", "/completions", "/completion")):
            return self.complete(connection, path, asked)
        return self.refuse(connection, 404, "File Not Found", "not_found_error")

    def has_key(self, headers):
        given = headers.get("authorization") or headers.get("x-api-key") or ""
        return given.removeprefix("Bearer ") == self.key

    def look_up(self, path):
        size = int(self.flags["--ctx-size"]) // self.parallel
        if path in ("/v1/models", "/models"):
            meta = {"n_ctx": size, "n_ctx_train": 8192, "n_params": 1000, "size": 1000}
            listed = {"id": self.name, "object": "model", "created": 1, "owned_by": "llamacpp", "meta": meta}
            return {"object": "list", "data": [listed]}
        if path == "/props":
            settings = {"params": {}, "n_ctx": size}
            return {
                "default_generation_settings": settings, "total_slots": self.parallel, "model_alias": self.name,
                "model_path": self.flags["--model"], "chat_template": "{{ messages }}", "build_info": "b0-fake",
            }  # fmt: skip
        if path == "/slots":
            return [
                {"id": number, "n_ctx": size, "is_processing": slot["busy"], "n_prompt_tokens": slot["tokens"]}
                for number, slot in enumerate(self.slots)
            ]
        if path == "/metrics":
            busy = sum(slot["busy"] for slot in self.slots)
            lines = ["# TYPE llamacpp:requests_processing gauge", f"llamacpp:requests_processing {busy}"]
            lines += ["llamacpp:requests_deferred 0", f"llamacpp:n_decode_total {self.count}"]
            return "\n".join(lines) + "\n"
        return None

    def slot_action(self, connection, number, action, asked):
        folder = self.flags.get("--slot-save-path")
        if not folder:
            return self.refuse(connection, 501, "This server does not support slots action", "not_supported_error")
        slot = self.slots[number % len(self.slots)]
        file = os.path.join(folder, asked.get("filename", ""))  # noqa: PTH118 - see above
        facts = {"id_slot": number, "filename": asked.get("filename")}
        if action == "save":
            self.log("save", slot=number)
            wait_for(self.script["save_when"])
            content = f"{slot['tokens']}\n".encode() + bytes(10 * slot["tokens"])
            with open(file, "wb") as target:  # noqa: PTH123
                target.write(content)
            return self.send(connection, 200, {**facts, "n_saved": slot["tokens"], "n_written": len(content)})
        if action == "restore":
            try:
                with open(file, "rb") as source:  # noqa: PTH123
                    restored = int(source.readline())
                    size = source.seek(0, 2)
            except (OSError, ValueError):
                return self.refuse(connection, 400, "Unable to restore slot", "invalid_request_error")
            slot["tokens"] = 0 if self.script["discard_restored"] else restored
            return self.send(connection, 200, {**facts, "n_restored": restored, "n_read": size})
        slot["tokens"] = 0
        return self.send(connection, 200, {"id_slot": number, "n_erased": 1})

    def embed(self, connection, asked):
        if not (self.flags.get("--embeddings") or self.flags.get("--embedding")):
            message = "This server does not support embeddings. Start it with `--embeddings`"
            return self.refuse(connection, 501, message, "not_supported_error")
        given = asked.get("input", asked.get("content", ""))
        texts = given if isinstance(given, list) else [given]
        data = [{"object": "embedding", "index": i, "embedding": [0.0, 0.6, 0.8]} for i, _ in enumerate(texts)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return self.send(connection, 200, {"object": "list", "model": self.name, "data": data, "usage": usage})

    # Completions.

    def complete(self, connection, path, asked):
        if self.script["queue"]:
            self.room.acquire()
        self.count += 1
        slot = min(self.slots[self.count % len(self.slots) :] + self.slots, key=lambda slot: slot["busy"])
        slot["busy"] = True
        try:
            prompt = json.dumps(asked.get("messages", asked.get("prompt", "")))
            tokens = max(1, int(len(prompt) * self.script["tokens_per_char"]))
            cached = min(slot["tokens"], tokens - 1)
            answer = Answer(self, path, asked, prompt_tokens=tokens, cached=cached)
            slot["tokens"] = tokens
            if asked.get("stream") and not self.script["ignore_stream"]:
                return self.stream(connection, answer, path)
            return self.whole(connection, answer, path)
        finally:
            slot["busy"] = False
            if self.script["queue"]:
                self.room.release()

    def pause(self, connection, seconds, path, chunk):
        """Wait, and notice a client that disconnects meanwhile."""
        end = time.monotonic() + seconds
        while True:
            readable, _, _ = select.select([connection], [], [], max(0.0, end - time.monotonic()))
            if readable:
                try:
                    gone = not connection.recv(1, socket.MSG_PEEK)
                except OSError:
                    gone = True
                if gone:
                    self.log("gone", path=path, chunk=chunk)
                    raise ConnectionResetError
                time.sleep(max(0.0, end - time.monotonic()))
            if time.monotonic() >= end:
                return

    def begin(self, connection, path):
        self.pause(connection, self.script["first_delay"], path, 0)
        self.wait(connection, self.script["answer_when"], path, 0)

    def wait(self, connection, flag, path, chunk):
        """Like `pause`, until a flag is set."""
        while not is_set(flag):
            self.pause(connection, 0.003, path, chunk)

    def stream(self, connection, answer, path):
        script = self.script
        self.begin(connection, path)
        head = {
            "Content-Type": "text/event-stream", "X-Accel-Buffering": "no", "Transfer-Encoding": "chunked",
            "Keep-Alive": "timeout=5, max=100",
        }  # fmt: skip
        connection.sendall(self.head(200, head))
        try:
            for number, event in enumerate(answer.events()):
                if number:
                    self.pause(connection, script["chunk_delay"], path, number)
                if number == answer.words:
                    self.wait(connection, script["last_when"], path, number)
                    self.log("finished", path=path)
                if number == script["crash_at_chunk"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number == script["break_at_chunk"]:
                    return False
                if number == script["end_at_chunk"]:
                    connection.sendall(b"0\r\n\r\n")
                    return False
                if number == script["error_at_chunk"]:
                    error = {"code": 500, "message": script["error"], "type": "server_error"}
                    event = json.dumps({"error": error})
                data = f"data: {event}\n\n".encode()
                connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                if number == script["error_at_chunk"]:
                    break
            self.wait(connection, script["close_when"], path, answer.words)
            connection.sendall(b"0\r\n\r\n")
            self.log("done", path=path)
        except (BrokenPipeError, ConnectionResetError):
            self.log("gone", path=path, chunk=number + 1)
        # As the real one: the connection is closed after a stream, and nothing said so.
        return False

    def whole(self, connection, answer, path):
        script = self.script
        self.begin(connection, path)
        for number in range(script["chunks"]):
            if number == script["crash_at_chunk"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if number:
                self.pause(connection, script["chunk_delay"], path, number)
        self.wait(connection, script["last_when"], path, script["chunks"])
        self.log("done", path=path)
        return self.send(connection, 200, answer.whole())

    def head(self, status, headers):
        lines = [f"HTTP/1.1 {status} Scripted", "Server: llama.cpp", "Access-Control-Allow-Origin: "]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def send(self, connection, status, value, more=None):
        head = {"Content-Type": "application/json; charset=utf-8", **(more or {})}
        return self.send_bytes(connection, status, json.dumps(value).encode(), head)

    def send_bytes(self, connection, status, body, more):
        head = {"Content-Length": len(body), "Keep-Alive": "timeout=5, max=100"}
        connection.sendall(self.head(status, {**more, **head}) + body)
        return True

    def refuse(self, connection, status, message, kind, more=None):
        return self.send(connection, status, {"error": {"code": status, "message": message, "type": kind}}, more)


class Answer:
    """The words of one answer, in the shapes of chat and completions."""

    def __init__(self, engine, path, asked, *, prompt_tokens, cached):
        self.engine = engine
        self.script = engine.script
        self.chat = "chat" in path
        self.native = path in ("/completion", "/completions")
        self.asked = asked
        self.prompt_tokens = prompt_tokens
        self.cached = cached
        limit = asked.get("max_tokens", asked.get("n_predict"))
        self.words = self.script["chunks"] if limit is None else min(self.script["chunks"], max(1, limit))
        self.finish = "stop" if self.words == self.script["chunks"] else "length"
        self.base = {
            "id": f"chatcmpl-{engine.count}", "object": "chat.completion" if self.chat else "text_completion",
            "created": 1, "model": engine.name, "system_fingerprint": "b0-fake",
        }  # fmt: skip

    def word(self, number):
        word = self.script["text"].format(number) + " "
        return word.ljust(self.script["chunk_bytes"], "x")

    def usage(self):
        details = {"cached_tokens": self.cached}
        total = self.prompt_tokens + self.words
        return {
            "completion_tokens": self.words, "prompt_tokens": self.prompt_tokens, "total_tokens": total,
            "prompt_tokens_details": details,
        }  # fmt: skip

    def timings(self):
        return {
            "cache_n": self.cached, "prompt_n": self.prompt_tokens - self.cached, "prompt_ms": 1.0,
            "predicted_n": self.words, "predicted_ms": 1.0, "predicted_per_second": 1000.0,
        }  # fmt: skip

    def events(self):
        if self.native:
            for number in range(self.words):
                piece = {"index": 0, "content": self.word(number), "tokens": [number], "stop": False, "id_slot": -1}
                yield json.dumps(piece)
            yield json.dumps({"index": 0, "content": "", "stop": True, "stop_type": "eos", "timings": self.timings()})
            return
        base = dict(self.base, object="chat.completion.chunk") if self.chat else self.base
        if self.chat:
            yield self.choice(base, {"delta": {"role": "assistant", "content": None}})
        for number in range(self.words):
            if self.chat:
                field = "reasoning_content" if number < self.script["reasoning"] else "content"
                yield self.choice(base, {"delta": {field: self.word(number)}})
            else:
                yield self.choice(base, {"text": self.word(number)})
        asked_usage = (self.asked.get("stream_options") or {}).get("include_usage")
        with_usage = self.script["usage"] and (asked_usage or not self.chat)
        last = {"delta": {}} if self.chat else {"text": ""}
        more = {} if asked_usage and self.chat else {"timings": self.timings()}
        if with_usage and not self.chat:
            more["usage"] = self.usage()
        yield self.choice(base, last, self.finish, more)
        if with_usage and self.chat:
            yield json.dumps({**base, "choices": [], "usage": self.usage(), "timings": self.timings()})
        yield "[DONE]"

    def choice(self, base, piece, finish=None, more=None):
        return json.dumps({**base, "choices": [{"index": 0, "finish_reason": finish, **piece}], **(more or {})})

    def whole(self):
        words = [self.word(number) for number in range(self.words)]
        thinking, spoken = "".join(words[: self.script["reasoning"]]), "".join(words[self.script["reasoning"] :])
        if self.native:
            facts = {"content": "".join(words), "stop": True, "stop_type": "eos"}
            return {**facts, "tokens_predicted": self.words, "timings": self.timings()}
        if self.chat:
            message = {"role": "assistant", "content": spoken}
            if thinking:
                message["reasoning_content"] = thinking
            piece = {"message": message}
        else:
            piece = {"text": "".join(words), "logprobs": None}
        choices = [{"index": 0, "finish_reason": self.finish, **piece}]
        return {**self.base, "choices": choices, "usage": self.usage(), "timings": self.timings()}


if __name__ == "__main__":
    Engine(read_script(), read_arguments(sys.argv[1:])).run()
