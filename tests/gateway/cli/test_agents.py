"""How coding agents are started: with variables and arguments alone."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hostler.gateway.cli.agents import AgentProgram, GatewayModel, agent_launch
from hostler.gateway.cli.main import app

MODEL = GatewayModel(url="http://10.0.0.5:8000", key="hst-secret", name='qwen "3"', context=40_000)
MODELS = {"data": [{"id": "qwen3", "context_length": 40_000}, {"id": "phi", "context_length": None}]}


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_claude_gets_every_tier_and_no_key_of_another_service() -> None:
    plan = agent_launch(AgentProgram.claude, MODEL, ["--resume"])
    assert (plan.command[:2], plan.command[3:]) == (("claude", "--settings"), ("--resume",))
    assert plan.environment["ANTHROPIC_BASE_URL"] == "http://10.0.0.5:8000"
    assert plan.environment["ANTHROPIC_AUTH_TOKEN"] == "hst-secret"
    models = [name for name, value in plan.environment.items() if value == MODEL.name]
    assert {"ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL"} <= set(models)
    assert plan.environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "10000"
    assert "ANTHROPIC_API_KEY" in plan.unset


def test_claudes_settings_replace_those_of_the_user_and_do_not_show_the_key() -> None:
    plan = agent_launch(AgentProgram.claude, MODEL, [])
    settings = json.loads(plan.command[2])
    assert settings["env"] == {
        **{name: value for name, value in plan.environment.items() if value != "hst-secret"},
        **dict.fromkeys(("ANTHROPIC_AUTH_TOKEN", *plan.unset), ""),
    }
    helper = ["sh", "-c", settings["apiKeyHelper"]]
    done = subprocess.run(helper, capture_output=True, text=True, env=dict(plan.environment), check=True)
    assert done.stdout == "hst-secret"
    assert "hst-secret" not in " ".join(plan.command)


def test_codex_gets_a_provider_as_toml_and_the_name_of_the_keys_variable() -> None:
    plan = agent_launch(AgentProgram.codex, MODEL, [])
    settings = [value for option, value in zip(plan.command, plan.command[1:], strict=False) if option == "-c"]
    read = tomllib.loads("\n".join(settings))
    assert read["model_provider"] == "hostler"
    assert read["model_providers"]["hostler"] == {
        "name": "Hostler", "base_url": "http://10.0.0.5:8000/v1", "env_key": "HOSTLER_API_KEY", "wire_api": "responses",
    }  # fmt: skip
    assert read["model_context_window"] == 40_000
    assert plan.command[-2:] == ("-m", MODEL.name)
    assert plan.environment == {"HOSTLER_API_KEY": "hst-secret"}
    assert "hst-secret" not in " ".join(plan.command)


@pytest.mark.parametrize(
    ("script", "section", "url"),
    [
        ("echo 1.18.16", "provider", ("options", "baseURL")),
        ("echo opencode v2.0.3", "providers", ("settings", "baseURL")),
        ("exit 1", "provider", ("options", "baseURL")),
    ],
)
def test_opencode_gets_the_settings_of_its_release(
    tmp_path: Path, script: str, section: str, url: tuple[str, str]
) -> None:
    path = program(tmp_path, "opencode", script)
    plan = agent_launch(AgentProgram.opencode, MODEL, ["run", "hi"], program_path=path)
    settings = json.loads(plan.environment["OPENCODE_CONFIG_CONTENT"])
    assert settings["model"] == f"hostler/{MODEL.name}"
    assert settings.get("enabled_providers") == (["hostler"] if section == "provider" else None)
    entry = settings[section]["hostler"]
    assert entry[url[0]][url[1]] == "http://10.0.0.5:8000/v1"
    assert entry["models"][MODEL.name]["limit"] == {"context": 40_000, "output": 10_000}
    assert "hst-secret" not in plan.environment["OPENCODE_CONFIG_CONTENT"]
    assert (plan.command, plan.environment["HOSTLER_API_KEY"]) == (("opencode", "run", "hi"), "hst-secret")


@pytest.mark.parametrize(
    ("name", "url", "key"),
    [("hermes", "LM_BASE_URL", "LM_API_KEY"), ("aider", "AIDER_OPENAI_API_BASE", "AIDER_OPENAI_API_KEY")],
)
def test_programs_with_openais_protocol_get_its_variables(name: str, url: str, key: str) -> None:
    plan = agent_launch(AgentProgram(name), MODEL, [], certificate="/etc/llm.crt")
    assert plan.environment[url] == "http://10.0.0.5:8000/v1"
    assert plan.environment[key] == "hst-secret"
    assert plan.environment["NODE_EXTRA_CA_CERTS"] == "/etc/llm.crt"
    assert any(MODEL.name in part for part in plan.command)


@pytest.fixture
def gateway() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(MODELS).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def run(folder: Path, *arguments: str, **environ: str) -> Result:
    config = folder / "hostler.yaml"
    config.write_text("")
    return CliRunner(env={"HOSTLER_API_KEY": "", **environ}).invoke(
        app, ["launch", *arguments, "--config", str(config)]
    )


@pytest.mark.parametrize("name", [each.value for each in AgentProgram])
def test_print_shows_lines_for_a_shell_without_the_key(gateway: str, tmp_path: Path, name: str) -> None:
    result = run(tmp_path, name, "PHI", "--url", gateway, "--print", HOSTLER_API_KEY="hst-secret")
    assert result.exit_code == 0, result.output
    assert "phi" in result.output
    assert gateway in result.output
    assert "hst-secret" not in result.output
    assert f"\n{name}" in f"\n{result.output}"
    file = tmp_path / "key"
    file.write_text("hst-other")
    result = run(tmp_path, name, "--url", gateway, "--print", "--key-file", str(file))
    assert "qwen3" in result.output
    assert f'="$(cat {file})"' in result.output
    assert "hst-other" not in result.output
    plain = json.loads(run(tmp_path, name, "--url", gateway, "--json").stdout)
    assert set(plain) == {"command", "environment", "unset"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostler.yaml", "key"]


def test_an_unknown_model_is_answered_with_those_that_exist(gateway: str, tmp_path: Path) -> None:
    result = run(tmp_path, "claude", "qwen4", "--url", gateway, "--print")
    assert result.exit_code == 2
    assert "did you mean qwen3? models are: qwen3, phi" in result.output


def test_a_program_that_is_not_installed_is_named(gateway: str, tmp_path: Path) -> None:
    result = run(tmp_path, "aider", "--url", gateway, PATH=str(tmp_path))
    assert (result.exit_code, "aider is not installed" in result.output) == (1, True)


def test_a_unix_socket_is_no_address_for_programs(tmp_path: Path) -> None:
    result = run(tmp_path, "aider", "--url", f"unix:{tmp_path}/s")
    assert (result.exit_code, "cannot use a Unix socket" in result.output) == (2, True)


@pytest.mark.parametrize("name", [each.value for each in AgentProgram])
def test_the_program_replaces_this_one_and_nothing_is_written(gateway: str, tmp_path: Path, name: str) -> None:
    bin_folder, home = tmp_path / "bin", tmp_path / "home"
    bin_folder.mkdir()
    home.mkdir()
    recorder = f'case $1 in --version) echo 1.18.16; exit;; esac; exec {sys.executable} {bin_folder}/record.py "$@"'
    program(bin_folder, name, recorder)
    (bin_folder / "record.py").write_text(
        "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)])); sys.exit(7)"
    )
    environ = {
        "PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(home), "ANTHROPIC_API_KEY": "sk-ant", "OTHER": "kept",
        "HOSTLER_API_KEY": "hst-secret", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "hostler.gateway", "launch", name, "phi", "--url", gateway, "--", "-p", "hi"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environ, check=False)
    assert done.returncode == 7, done.stderr
    arguments, variables = json.loads(done.stdout)
    model = GatewayModel(url=gateway, key="hst-secret", name="phi")
    plan = agent_launch(AgentProgram(name), model, ["-p", "hi"], program_path=str(bin_folder / name))
    assert tuple(arguments) == plan.command[1:]
    assert plan.environment.items() <= variables.items()
    assert set(plan.unset).isdisjoint(variables)
    assert variables["OTHER"] == "kept"
    assert "hst-secret" not in done.stdout.partition("], {")[0]
    assert list(home.rglob("*")) == []
