"""Other people's clients, unmodified, each in an environment of its own, against the whole product.

They are many and heavy, so that the folder with their environments is made elsewhere and named by
`HOSTLER_TEST_CLIENTS`: `langchain`, `litellm`, `llm`, `hermes` and `aider` for Python, `js` with its `node_modules`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.scripted_server import ScriptedAnswer, start_scripted_server
from system.fallback_chain import start_chain
from system.five_servers import MODELS, five_servers
from system.hostler_process import run_hostler, write_shipped_model_config
from system.running_gateway import RunningGateway, StartGateway, write_keys

INSTALLED = os.environ.get("HOSTLER_TEST_CLIENTS")
PROGRAMS = Path(__file__).parent / "programs"
WORDS = "word0 word1 word2 word3 word4 "

# Every model takes a moment to load, with immediate and frequent progress for waiting clients.
PROFILES: dict[str, Any] = {
    "a": {"default": True, "aliases": ["alpha"], "context": 65536, "script": {"ready_after": 0.6}},
    "org/b": {"context": 70000, "script": {"ready_after": 0.6}},
}
EAGER = {"switching": {"progress_after_s": 0, "progress_every_s": 0.1}}
in_every_form = pytest.mark.parametrize("progress", ["thinking", "quiet", "comments", "off"])

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    pytest.mark.skipif(INSTALLED is None, reason="HOSTLER_TEST_CLIENTS names no folder with their environments"),
]


def shown(progress: str) -> dict[str, Any]:
    """The gateway's settings with progress in this form."""
    return {"switching": {**EAGER["switching"], "progress": progress}}


async def run(command: list[str], folder: Path, **environ: str) -> str:
    """What a command prints. It gets a home of its own and no settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    done = await anyio.run_process(
        command, cwd=folder, env={**kept, "HOME": str(folder), "NO_PROXY": "127.0.0.1", **environ}, check=False
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout.decode()


async def python(client: str, gateway: RunningGateway, folder: Path, **environ: str) -> Any:
    """The JSON that the program of a Python client prints."""
    program = str(PROGRAMS / f"{client}_client.py")
    command = [f"{INSTALLED}/{client}/bin/python", program, gateway.url, "a", "org/b"]
    return json.loads((await run(command, folder, **environ)).splitlines()[-1])


async def node(client: str, url: str, folder: Path, *models: str) -> Any:
    """The JSON that the program of a JavaScript client prints. Packages are resolved from the program's folder."""
    program = folder / f"{client}_client.mjs"
    program.write_text((PROGRAMS / program.name).read_text())
    (folder / "node_modules").symlink_to(f"{INSTALLED}/js/node_modules")
    return json.loads(await run(["node", str(program), url, *(models or ("a", "org/b"))], folder))


@in_every_form
async def test_langchain_reads_streams_with_progress_in_them(
    start_gateway: StartGateway, tmp_path: Path, progress: str
) -> None:
    async with start_gateway(PROFILES, gateway=shown(progress)) as gateway:
        printed = await python("langchain", gateway, tmp_path)
        assert gateway.starts() == ["a", "org/b"]
    answer = {"words": WORDS, "usage": 5, "whole": WORDS}
    assert printed == {"openai": answer, "ollama": answer}


@in_every_form
async def test_litellm_reads_streams_with_progress_in_them_in_every_protocol(
    start_gateway: StartGateway, tmp_path: Path, progress: str
) -> None:
    async with start_gateway(PROFILES, gateway=shown(progress)) as gateway:
        printed = await python("litellm", gateway, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
        assert gateway.starts() == ["a", "org/b"] * 3 + ["a"]
    assert set(printed) == {"openai", "hosted_vllm", "lm_studio", "llamafile", "ollama_chat", "ollama", "anthropic"}
    for protocol, answer in printed.items():
        assert answer == {"words": WORDS, "finish": "stop", "whole": WORDS, "usage": 5}, protocol


async def test_llm_with_its_plugin_for_ollama_lists_models_and_chats(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        environ = {"OLLAMA_HOST": gateway.url, "LLM_USER_PATH": str(tmp_path)}
        command = f"{INSTALLED}/llm/bin/llm"
        listed = await run([command, "models"], tmp_path, **environ)
        assert "ollama/org/b" in listed
        assert gateway.starts() == []
        assert await run([command, "-m", "ollama/a", "Hello"], tmp_path, **environ) == WORDS + "\n"
        whole = [command, "-m", "ollama/org/b", "--no-stream", "-s", "Be brief", "-o", "temperature", "0", "Hello"]
        assert await run(whole, tmp_path, **environ) == WORDS + "\n"


async def test_ollamas_package_for_javascript(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        printed = await node("ollama", gateway.url, tmp_path)
    assert printed == {
        "models": ["a:latest", "alpha:latest", "org/b:latest"],
        "capabilities": ["completion"],
        "words": WORDS,
        "finish": [True, "stop", 5],
        "whole": WORDS,
        "generated": WORDS,
        "running": ["org/b:latest"],
        "refused": [404, "model 'no-such-model' not found"],
    }


@in_every_form
async def test_openais_package_for_javascript_reads_a_stream_with_progress_in_it(
    start_gateway: StartGateway, tmp_path: Path, progress: str
) -> None:
    async with start_gateway(PROFILES, gateway=shown(progress)) as gateway:
        printed = await node("openai", gateway.url, tmp_path)
    waited = printed.pop("waited")
    assert waited >= 3 if progress in ("thinking", "quiet") else waited == 0
    models = ["org/b", "a", "alpha"]
    assert printed == {"words": WORDS, "helped": WORDS, "whole": WORDS, "models": models}


async def test_anthropics_package_for_javascript_reads_a_stream_with_progress_in_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        printed = await node("anthropic", gateway.url, tmp_path)
    models = ["org/b", "a", "alpha"]
    assert printed == {"words": WORDS, "finish": "end_turn", "usage": 5, "whole": WORDS, "models": models}


@in_every_form
async def test_vercels_package_reads_a_stream_with_progress_in_it(
    start_gateway: StartGateway, tmp_path: Path, progress: str
) -> None:
    async with start_gateway(PROFILES, gateway=shown(progress)) as gateway:
        printed = await node("ai", gateway.url, tmp_path)
    answer = {"words": WORDS, "errors": [], "finish": "stop", "usage": 5, "whole": WORDS}
    assert printed == {"openai": answer, "compatible": answer}


async def test_the_ai_sdk_refers_to_earlier_items_by_their_ids(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        assert await node("ai_default", gateway.url, tmp_path) == {
            "first": WORDS,
            "second": WORDS,
            "ollama": [WORDS, WORDS],
        }
        second = gateway.requests("a")[1]
        turns = json.loads(second["body"])["messages"]
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "I am Bob."),
        ("assistant", WORDS),
        ("user", "Who am I?"),
    ]


CLAUDE = f"{INSTALLED}/js/node_modules/.bin/claude"
HEADLESS = ("-p", "--output-format", "json")
CODEX = (f"{INSTALLED}/js/node_modules/.bin/codex", "exec", "--skip-git-repo-check")


def claude_environ(url: str) -> dict[str, str]:
    """The environment with Claude Code's settings: the model of this gateway."""
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "unused",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **{f"ANTHROPIC_{which}": "a" for which in ("MODEL", "SMALL_FAST_MODEL", "DEFAULT_HAIKU_MODEL")},
    }


async def claude(url: str, folder: Path, *words: str) -> dict[str, Any]:
    """The JSON that Claude Code prints without a terminal, in its own home folder."""
    printed: dict[str, Any] = json.loads(await run([CLAUDE, *HEADLESS, *words], folder, **claude_environ(url)))
    return printed


async def test_claude_code_gets_an_answer(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        printed = await claude(gateway.url, tmp_path, "Hello")
        assert gateway.starts() == ["a"]
    assert (printed["result"], printed["is_error"], printed["num_turns"]) == (WORDS, False, 1)


@pytest.mark.parametrize("kind", ["openai", "ollama", "anthropic"])
async def test_claude_code_uses_its_tools(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("The number is 42.\n")
    call = ("call_1", "Read", json.dumps({"file_path": str(secret)}))
    end = ScriptedAnswer(words=("It", " is 42."))
    script = ScriptedAnswer(
        thoughts=("Hm.",), words=("Let me look.",), calls=(call,), finish="tool_calls", after_tools=end
    )
    # Ollama refuses to think with most models, and Claude Code always wishes for it.
    script = replace(
        script, reasoning_supported=kind != "ollama", after_tools=replace(end, reasoning_supported=kind != "ollama")
    )
    async with start_scripted_server() as server:
        server.answer = script
        backend = {"kind": kind, "url": server.url, "models": {"a": "there"}}
        async with start_chain(tmp_path, {"there": backend}) as chain:
            url = str(chain.http.base_url).rstrip("/")
            printed = await claude(url, tmp_path, "--allowedTools", "Read", "--", "Which number?")
    assert (printed["result"], printed["is_error"], printed["num_turns"]) == ("It is 42.", False, 2)
    assert "The number is 42." in json.dumps(server.requests[-1][1]["messages"])


BROKEN: dict[str, Any] = {"a": {"default": True, "script": {"exit_code": 7}}}


async def fails(command: list[str], folder: Path, **environ: str) -> str:
    """What a command that ends with an error prints. It may try again once, not for minutes."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    done = await anyio.run_process(
        command, cwd=folder, env={**kept, "HOME": str(folder), "NO_PROXY": "127.0.0.1", **environ}, check=False
    )
    assert done.returncode != 0
    return (done.stdout + done.stderr).decode()


async def test_claude_code_ends_when_the_model_cannot_start(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(BROKEN) as gateway:
        printed = await fails([CLAUDE, *HEADLESS, "Hello"], tmp_path, **claude_environ(gateway.url))
        assert len(gateway.starts()) <= 2  # every request starts it again, up to the third
    assert "exit code 7" in printed


def codex_home(url: str, folder: Path) -> dict[str, str]:
    """The environment with Codex' settings: the model of this gateway."""
    home = folder / "codex"
    home.mkdir(exist_ok=True)
    provider = f'name = "hostler"\nbase_url = "{url}/v1"\nwire_api = "responses"\nenv_key = "HOSTLER_API_KEY"\n'
    settings = f'model = "a"\nmodel_provider = "hostler"\n[model_providers.hostler]\n{provider}'
    (home / "config.toml").write_text(settings)
    return {"CODEX_HOME": str(home), "HOSTLER_API_KEY": "unused"}


async def test_codex_gets_an_answer(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        assert WORDS.strip() in await run([*CODEX, "Hello"], tmp_path, **codex_home(gateway.url, tmp_path))


@in_every_form
async def test_codex_ends_when_the_model_cannot_start(
    start_gateway: StartGateway, tmp_path: Path, progress: str
) -> None:
    async with start_gateway(BROKEN, gateway=shown(progress)) as gateway:
        printed = await fails([*CODEX, "Hello"], tmp_path, **codex_home(gateway.url, tmp_path))
        assert gateway.starts() == ["a"]
    assert "exit code 7" in printed and "Reconnecting" not in printed


@pytest.mark.parametrize(
    ("model", "called", "arguments", "result"),
    [
        ("a", "mcp__hostler__list_models", "{}", '"a"'),
        # With a name like this, Codex has the model look for its tools.
        ("gpt-5.5-codex", "tool_search", '{"query": "list models"}', "mcp__hostler__list_models"),
    ],
    ids=["named", "searched"],
)
async def test_codex_calls_a_tool_of_an_mcp_server(
    tmp_path: Path, model: str, called: str, arguments: str, result: str
) -> None:
    end = ScriptedAnswer(words=("It", " has one."))
    async with start_scripted_server() as server:
        server.answer = ScriptedAnswer(
            words=(), calls=(("call_1", called, arguments),), finish="tool_calls", after_tools=end
        )
        backend = {"kind": "ollama", "url": server.url, "models": {model: "there"}}
        async with start_chain(tmp_path, {"there": backend}) as chain:
            url = str(chain.http.base_url).rstrip("/")
            home = codex_home(url, tmp_path)
            with (tmp_path / "codex" / "config.toml").open("a") as settings:
                settings.write(f'[mcp_servers.hostler]\nurl = "{url}/mcp"\nrequired = true\n')
                settings.write('default_tools_approval_mode = "approve"\n')
            printed = await run([*CODEX, "-m", model, "Which models?"], tmp_path, **home)
    assert "It has one." in printed
    history = server.requests[-1][1]["messages"]
    assert history[-2]["tool_calls"][0]["function"]["name"] == called
    assert result in history[-1]["content"]


#: Settings that lead a program elsewhere, as its users may have them: a file in the home folder, and what is in it.
ELSEWHERE = "http://127.0.0.1:9/v1"
CONTRARY = {
    ".claude/settings.json": json.dumps(
        {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_AUTH_TOKEN": "other", "ANTHROPIC_MODEL": "x"}}
    ),
    ".codex/config.toml": f'model = "x"\nmodel_provider = "o"\n[model_providers.o]\nname = "o"\nbase_url = "{ELSEWHERE}"\n',
    ".config/opencode/opencode.json": json.dumps(
        {"$schema": "https://opencode.ai/config.json", "model": "openai/x", "enabled_providers": ["openai"]}
    ),
    ".hermes/config.yaml": json.dumps({"model": {"provider": "lmstudio", "base_url": ELSEWHERE, "default": "x"}}),
    ".env": f"OPENAI_API_BASE={ELSEWHERE}\nOPENAI_API_KEY=other\n",
}
LAUNCHED = {
    "claude": ("js/node_modules/.bin", ("-p", "Hello")),
    "codex": ("js/node_modules/.bin", ("exec", "--skip-git-repo-check", "Hello")),
    "opencode": ("js/node_modules/.bin", ("run", "Hello")),
    "hermes": ("hermes/bin", ("-Q", "-q", "Hello")),
    "aider": (
        "aider/bin",
        ("--message", "Hello", "--yes-always", "--no-git", "--no-check-update", "--analytics-disable"),
    ),
}

#: Programs that refuse to work with less.
LEAST_CONTEXT = {"hermes": 64_000}


@pytest.mark.parametrize("program", LAUNCHED)
async def test_a_launched_program_gets_an_answer_whatever_its_users_settings_say(
    start_gateway: StartGateway, tmp_path: Path, program: str
) -> None:
    folder, arguments = LAUNCHED[program]
    home = tmp_path / "home"
    for name, content in CONTRARY.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    keys, of = write_keys(tmp_path, agent=0)
    environ = {"PATH": f"{INSTALLED}/{folder}{os.pathsep}{os.environ['PATH']}", "HOSTLER_API_KEY": of["agent"]}
    async with start_gateway(PROFILES, gateway={**EAGER, "api_keys_file": keys}) as gateway:
        command = [f"{Path(sys.executable).parent}/hostler", "launch", program, "--url", gateway.url]
        answer = await run([*command, "a", "--", *arguments], home, **environ)
        shown = await run([*command, "--print", "a"], home, **environ)
        assert gateway.starts() == ["a"]
    assert WORDS.strip() in answer
    assert gateway.url in shown and of["agent"] not in shown
    assert {name: (home / name).read_text() for name in CONTRARY} == CONTRARY


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", LAUNCHED)
async def test_a_launched_program_uses_a_model_of_any_server(tmp_path: Path, program: str) -> None:
    folder, arguments = LAUNCHED[program]
    environ = {"PATH": f"{INSTALLED}/{folder}{os.pathsep}{os.environ['PATH']}"}
    async with five_servers(tmp_path) as (chain, servers):
        url = str(chain.http.base_url).rstrip("/")
        for server, (model, context, _) in MODELS.items():
            if context < LEAST_CONTEXT.get(program, 0):
                continue
            home = tmp_path / server
            home.mkdir()
            command = [f"{Path(sys.executable).parent}/hostler", "launch", program, "--url", url]
            answer = await run([*command, model, "--", *arguments], home, **environ)
            assert "Zürich" in answer, (model, answer)
            assert {body["model"] for _, body in servers[server].requests if "messages" in body} == {model}
            assert [name for name in servers if servers[name].requests] == [server]
            servers[server].requests.clear()


def hermes_home(gateway: RunningGateway, folder: Path, provider: str, model: str) -> str:
    """The folder with Hermes' settings: this model of this gateway."""
    home = folder / "hermes"
    home.mkdir(exist_ok=True)
    chosen = {"provider": provider, "base_url": f"{gateway.url}/v1", "default": model}
    (home / "config.yaml").write_text(json.dumps({"model": chosen}))
    return str(home)


async def test_hermes_discovers_models_without_starting_an_engine(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway(PROFILES) as gateway:
        printed = await python("hermes", gateway, tmp_path, HERMES_HOME=hermes_home(gateway, tmp_path, "custom", "a"))
        assert gateway.starts() == []
    assert printed == {
        "kind": "lm-studio",
        "models": ["a", "alpha", "org/b"],
        "models at the root": ["a", "alpha", "org/b"],
        "context": [65536, 70000],
        "known": True,
        "unknown": False,
        "known to LM Studio's": True,
        "unknown to LM Studio's": False,
        "loaded": 70000,
        "switched": [True, "org/b"],
    }


@pytest.mark.parametrize("provider", ["custom", "lmstudio"])
async def test_hermes_chats_with_one_model_then_with_the_other(
    start_gateway: StartGateway, tmp_path: Path, provider: str
) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        for model in ("a", "org/b"):
            home = hermes_home(gateway, tmp_path, provider, model)
            command = [f"{INSTALLED}/hermes/bin/hermes", "-z", "Hello"]
            assert WORDS.strip() in await run(command, tmp_path, HERMES_HOME=home)
        assert gateway.starts() == ["a", "org/b"]
        asked = [json.loads(note["body"]) for note in gateway.requests()]
        assert [body["model"] for body in asked] == ["a", "org/b"]
        assert all(body["tools"] for body in asked)


ENGINE = """
gateway: {listen: ["127.0.0.1:0"], queue: {max_wait_s: 100}}
profiles:
  smollm2: {model: "%s", sha256: %s, threads: 1, default: true}
"""


@pytest.mark.engine
async def test_packages_for_javascript_with_a_real_engine(tmp_path: Path, real_model: Path) -> None:
    with run_hostler("up", "--config", write_shipped_model_config(tmp_path, ENGINE), errors=tmp_path / "log") as up:
        found = await node("engine", up.address, tmp_path, "smollm2")
    assert len(found) == 6
    for kind, answer in found.items():
        assert answer["whole"].strip() == answer["streamed"].strip() != "", kind
        assert answer.get("object", {"n": 7}) == {"n": 7}, kind
        assert 1 < answer["usage"] <= 12, kind
    # The same model, prompt and temperature: only who asks differs.
    assert len({answer["whole"].strip() for answer in found.values()}) == 1, found
