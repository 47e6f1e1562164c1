"""Stubs of programs that no package registry has: their command lines, readiness, key and routes, without models.

Linked under the name of a program, it accepts that program's options alone. `docker` and `podman` start a stub that is
not their child, as containers are. `STUB_ENGINE` is JSON; `STUB_LOG` names a file that gets a line of JSON per event.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Options with a value of each program, by its name; those without a value end in a `!`.
OPTIONS = {
    "vllm": "--served-model-name --host --port --max-model-len --max-num-seqs --gpu-memory-utilization "
    "--enable-sleep-mode!",
    "sglang.launch_server": "--model-path --served-model-name --host --port --context-length --max-running-requests --api-key",
    "whisper-server": "-m --host --port --inference-path -t --convert!",
    "sd-server": "-m --listen-ip --listen-port -t --vae",
    "main.py": "--host --port --model-dir --model-name --max-seq-len --disable-auth",
    "koboldcpp": "--model --host --port --contextsize --threads --gpulayers --mmproj --draftmodel --skiplauncher! --quiet! "
    "--usecuda!",
    "mlx_lm.server": "--model --host --port --draft-model",
    "llama_cpp.server": "--model --model_alias --host --port --n_ctx --n_batch --api_key --n_threads --n_gpu_layers "
    "--clip_model_path",
    "llama-server": "-m --alias --host --port -c -np -b --metrics! -t -ngl --mmproj -md",
    "stub": "--host --port -m --key --name --context --flag! --mmproj",
}
#: Options of these programs that take a number only.
NUMBERS = {"--port", "--contextsize", "--threads", "--gpulayers", "--n_gpu_layers", "--max-model-len", "-np"}
#: The path that answers when it is ready; the path that no key is needed for.
READY = {"sd-server": "/v1/models", "koboldcpp": "/api/v1/model", "llama_cpp.server": "/v1/models", "stub": "/ok"}
SCRIPT = {
    "ready_after": 0.0, "ready_status": 200, "says": None, "quiet_port": False, "hangs_after": None,
    "sleep_status": 200, "wake_status": 200, "dies_asleep": False,
}  # fmt: skip


def log(event, **facts):
    if file := os.environ.get("STUB_LOG"):
        line = json.dumps({"event": event, "pid": os.getpid(), **facts})
        with open(file, "a") as opened:  # noqa: PTH123
            opened.write(line + "\n")


def parsed(name, words):
    allowed = OPTIONS[name].split()
    values = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word + "!" in allowed:
            values[word] = True
        elif word in allowed and rest:
            values[word] = rest.pop(0)
            if word in NUMBERS and not values[word].lstrip("-").isdigit():
                sys.exit(f"error: argument {word}: invalid int value: {values[word]!r}")
        else:
            sys.exit(f"error: unrecognized arguments: {word}")
    return values


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        ready = READY.get(server.program, "/health")
        if self.path == ready:
            loading = time.monotonic() < server.ready_at
            return self.answer(503 if loading else server.script["ready_status"], {"status": "ok"})
        if self.path == "/version":
            return self.answer(200, {"version": "stub"})
        return self.answer(404, {"error": {"message": "Not Found"}})

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        log("request", path=self.path, key=self.headers.get("Authorization"), api_key=self.headers.get("x-api-key"),
            content_type=self.headers.get("Content-Type"), body=body.decode("latin-1"))  # fmt: skip
        key = self.server.key
        if key and self.headers.get("Authorization") != f"Bearer {key}" and self.headers.get("x-api-key") != key:
            return self.answer(401, {"error": {"message": "Unauthorized"}})
        path = self.path.partition("?")[0].removeprefix(self.server.prefix)
        if self.server.sleeps and path in ("/sleep", "/wake_up"):
            self.change_sleep(path == "/sleep")
            return None
        if self.server.asleep:
            return self.answer(500, {"error": {"message": "the engine sleeps"}})
        if path == "/v1/audio/transcriptions":
            return self.answer(200, {"text": f"{size} bytes"})
        if path == "/v1/audio/speech":
            return self.answer_bytes("audio/mpeg", bytes(range(256)) * 40)
        if path == "/v1/images/generations":
            return self.answer(200, {"created": 1, "data": [{"b64_json": "aW1hZ2U="}]})
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self.chat(json.loads(body))
        if path == "/v1/messages":
            content = [{"type": "text", "text": "Hello"}]
            answer = {"id": "m", "type": "message", "role": "assistant", "model": "x", "content": content}
            return self.answer(
                200, {**answer, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}}
            )
        return self.answer(200, {"path": self.path, "bytes": size})

    def change_sleep(self, asleep):
        status = self.server.script["sleep_status" if asleep else "wake_status"]
        if status == 200:
            self.server.asleep = asleep
            log("sleep" if asleep else "wake", path=self.path)
        self.answer_bytes("text/plain", b"", status)
        if asleep and self.server.script["dies_asleep"]:
            self.wfile.flush()
            log("stop", signal=None)
            os._exit(1)

    def chat(self, request):
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        head = {"id": "c", "created": 1, "model": request.get("model")}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
            return self.answer(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        events = [{"delta": {"role": "assistant", "content": "Hello"}, "index": 0, "finish_reason": None}]
        events.append({"delta": {}, "index": 0, "finish_reason": "stop"})
        lines = [json.dumps({**head, "object": "chat.completion.chunk", "choices": [event]}) for event in events]
        if self.server.script["hangs_after"] is not None:
            return self.hang(lines[: self.server.script["hangs_after"]])
        return self.answer_bytes(
            "text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
        )

    def hang(self, lines):
        """Send some events, and then comments until the client or this program leaves."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())
        try:
            while True:
                self.wfile.write(b": ping\n\n")
                time.sleep(0.02)
        except OSError:
            self.close_connection = True

    def answer(self, status, value):
        self.answer_bytes("application/json", json.dumps(value).encode(), status)

    def answer_bytes(self, media_type, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(program, words):
    if program == "vllm":
        if words[0] != "serve" or words[1].startswith("-"):
            sys.exit("error: `model` should be the first positional argument of `vllm serve`")
        values = parsed(program, words[2:])
    else:
        values = parsed(program, words)
    script = {**SCRIPT, **json.loads(os.environ.get("STUB_ENGINE") or "{}")}
    log("start", program=program, argv=words, cwd=os.getcwd(), stub=os.environ.get("STUB_VALUE"))  # noqa: PTH109
    signal.signal(signal.SIGINT, lambda *_: stop("INT"))
    signal.signal(signal.SIGTERM, lambda *_: stop("TERM"))
    if script["says"]:
        print(script["says"], flush=True)
    host = values.get("--host") or values.get("--listen-ip")
    port = values.get("--port") or values.get("--listen-port")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.program, server.script = program, script
    server.prefix = os.environ.get("STUB_PREFIX", "")
    key = values.get("--api-key") or values.get("--api_key") or values.get("--key")
    server.key = key or os.environ.get("VLLM_API_KEY") or os.environ.get("LLAMA_API_KEY")
    server.sleeps, server.asleep = bool(values.get("--enable-sleep-mode")), False
    server.ready_at = time.monotonic() + script["ready_after"]
    server.serve_forever()


def stop(name):
    log("stop", signal=name)
    os._exit(0)


#: Options of `docker run` with a value.
RUN_OPTIONS = {"--name", "--publish", "--volume", "--env", "--gpus", "--ipc", "--device", "--entrypoint"}
#: What each image runs, before the words after its name; and the programs that its --entrypoint can be.
IMAGES = {
    "vllm/vllm-openai": (["vllm", "serve"], {"vllm"}),
    "lmsysorg/sglang": ([], set()),
    "ghcr.io/ggml-org/llama.cpp": (["llama-server"], set()),
    "ghcr.io/ggml-org/whisper.cpp": (["bash", "-c"], {"whisper-server"}),
    "ghcr.io/leejet/stable-diffusion.cpp": (["/sd-cli"], {"/sd-cli", "/sd-server"}),
    "ghcr.io/theroyallab/tabbyapi": (["python3"], set()),
    "koboldai/koboldcpp": ([], set()),
    "ghcr.io/abetlen/llama-cpp-python": ([], set()),
}


def program_of(image, options, words, environment):
    """The program and its words that a container of an image runs."""
    entrypoint, programs = IMAGES.get(image.rpartition(":")[0], (["stub"], set()))
    if given := options.get("--entrypoint"):
        if given not in programs:
            sys.exit(f"exec: {given}: not found")
        entrypoint = [given]
    words = [*entrypoint, *words]
    if image.startswith("koboldai/koboldcpp"):
        if words:
            sys.exit(f"exec: {words[0]}: not found")
        if environment.get("KCPP_DONT_TUNNEL") != "true":
            sys.exit("the stub opens no tunnel to the internet")
        line = "printf '%s\\0' koboldcpp --quiet " + environment["KCPP_ARGS"]
        done = subprocess.run(["/bin/sh", "-c", line], env=environment, stdout=subprocess.PIPE, check=True)
        words = done.stdout.decode().split("\0")[:-1]
        # Its own parser takes an empty file for none.
        pairs = list(zip(words, [*words[1:], ""], strict=True))
        empty = {n for n, pair in enumerate(pairs) if pair[0] in ("--mmproj", "--draftmodel") and not pair[1]}
        words = [word for n, word in enumerate(words) if n not in empty and n - 1 not in empty]
    if words[0] == "python3":
        words = words[2:] if words[1] == "-m" else words[1:]
    program = words[0].rpartition("/")[2]
    if program not in OPTIONS:
        sys.exit(f"exec: {words[0]}: not found")
    return program, words[1:]


def container(words):
    """`run`, `stop` and `rm --force`; a container is a process of a session of its own, its pid in a file."""
    folder = Path(os.environ["STUB_LOG"]).parent
    log("docker", argv=words)
    if words[0] in ("stop", "rm"):
        file = folder / f"{words[-1]}.pid"
        if not file.exists():
            sys.exit(f"Error response from daemon: No such container: {words[-1]}")
        try:
            os.kill(int(file.read_text()), signal.SIGTERM)
        except ProcessLookupError:
            pass
        file.unlink()
        return
    options, rest, environment = {}, words[1:], {}
    while rest[0].startswith("-"):
        word = rest.pop(0)
        if word in RUN_OPTIONS:
            options[word] = rest.pop(0)
            if word == "--env" and options[word] in os.environ:
                environment[options[word]] = os.environ[options[word]]
    image, *arguments = rest
    arguments = [word.replace("0.0.0.0", "127.0.0.1") for word in arguments]
    program, arguments = program_of(image, options, arguments, environment)
    file = folder / f"{options['--name']}.pid"
    if file.exists():
        sys.exit(f"Conflict. The container name {options['--name']} is already in use")
    # Like a container: neither a child of this process for long, nor in its group.
    code = f"import os, sys; os.setsid(); sys.path.insert(0, {str(Path(__file__).parent)!r}); import stub_engine"
    arguments = [word.replace("0.0.0.0", "127.0.0.1") for word in arguments]
    child = subprocess.Popen([sys.executable, "-c", f"{code}; stub_engine.serve({program!r}, {arguments!r})"])
    file.write_text(str(child.pid))
    child.wait()


def main():
    program, words = Path(sys.argv[0]).name, sys.argv[1:]
    if program in ("docker", "podman"):
        return container(words)
    if program == "python3" and words[0] == "-m":
        program, words = words[1], words[2:]
    elif program == "python3":
        program, words = words[0], words[1:]
    return serve(program if program in OPTIONS else "stub", words)


if __name__ == "__main__":
    main()
