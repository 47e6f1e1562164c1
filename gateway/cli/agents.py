"""`hostler launch`: coding agents, started with the settings that make them use this gateway, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    KeyFileOption,
    UrlOption,
    complete_model,
    fail,
    failing_calls,
    print_json,
    read_configuration,
)
from hostler.gateway.cli.start_options import FAILED, USAGE

#: The variable with the key, for programs whose settings name one.
KEY_VARIABLE = "HOSTLER_API_KEY"

#: Stands for a key where none is needed: programs insist on one.
NO_KEY = "unused"

#: An answer is no longer than this, and no longer than a quarter of the context, in tokens.
_MAX_ANSWER = 32_000

#: With these, Claude Code would send another service's key, or ask another service.
_FOREIGN_TO_CLAUDE = (
    "ANTHROPIC_API_KEY",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
)


class AgentProgram(StrEnum):
    claude = "claude"
    codex = "codex"
    opencode = "opencode"
    hermes = "hermes"
    aider = "aider"


class GatewayModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a program is to use: `url` is the gateway's, without a path; `context` is in tokens, 0 if unknown."""

    url: str
    key: str
    name: str
    context: int = 0

    @property
    def answer(self) -> int:
        """The longest answer, in tokens."""
        return min(_MAX_ANSWER, self.context // 4) if self.context else _MAX_ANSWER


class AgentLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A command, the variables it needs, and those that would lead it elsewhere."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    unset: tuple[str, ...] = ()


def launch(
    program: Annotated[
        AgentProgram, typer.Argument(metavar="PROGRAM", help="claude, codex, opencode, hermes or aider.")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [ARGUMENT]...",
            help="Model to use (default: the active or default one), and further arguments of the program, after --.",
            autocompletion=complete_model,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print variables and command instead of starting it.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a coding agent that uses this gateway.

    Nothing is written: the settings are those of this one run.
    """
    from hostler.gateway.cli.client import gateway_client, read_key

    arguments = list(rest or ())
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    configuration = read_configuration(config)
    with failing_calls():
        key = read_key(key_file)
        client = gateway_client(configuration, url, key)
        if client.url.startswith("unix:"):
            fail(
                "programs cannot use a Unix socket; let the gateway listen on an address too, or name it with --url",
                USAGE,
            )
        found = _find_model(client.get("/v1/models"), name)
    tls = None if url else configuration.settings.gateway.tls
    model = GatewayModel(url=client.url, key=key or NO_KEY, name=found["id"], context=found.get("context_length") or 0)
    path = shutil.which(program.value)
    plan = agent_launch(program, model, arguments, program_path=path, certificate=tls.cert if tls else None)
    if show or as_json:
        _print(plan, key, key_file, as_json=as_json)
        return
    if path is None:
        fail(f"{program.value} is not installed, or not in the PATH", FAILED)
    environ = {variable: value for variable, value in os.environ.items() if variable not in plan.unset}
    os.execve(path, [*plan.command], environ | dict(plan.environment))


def agent_launch(
    program: AgentProgram,
    model: GatewayModel,
    arguments: list[str],
    *,
    program_path: str | None = None,
    certificate: str | None = None,
) -> AgentLaunch:
    """How the program is started. `certificate` is the gateway's own, if no authority has signed it."""
    plan = _PLANS[program](model, program_path)
    environment = dict(plan.environment)
    if certificate is not None:
        environment["NODE_EXTRA_CA_CERTS"] = certificate
    return msgspec.structs.replace(plan, command=(*plan.command, *arguments), environment=environment)


def _claude(model: GatewayModel, path: str | None) -> AgentLaunch:
    tiers = ["ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"]
    tiers += [f"ANTHROPIC_DEFAULT_{tier}_MODEL" for tier in ("OPUS", "SONNET", "HAIKU")]
    public = {
        "ANTHROPIC_BASE_URL": model.url,
        **dict.fromkeys(tiers, model.name),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(model.answer),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # A line at the start of each prompt that changes between requests, so that engines could not reuse anything.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
    # Variables in the user's settings would replace those of the environment; these settings come before them. The key
    # is not among the arguments, which other users of the machine can see: a command prints it.
    settings = {
        "apiKeyHelper": f'printf %s "${KEY_VARIABLE}"',
        "env": public | dict.fromkeys(("ANTHROPIC_AUTH_TOKEN", *_FOREIGN_TO_CLAUDE), ""),
    }
    return AgentLaunch(
        command=("claude", "--settings", json.dumps(settings)),
        environment={**public, KEY_VARIABLE: model.key, "ANTHROPIC_AUTH_TOKEN": model.key},
        unset=_FOREIGN_TO_CLAUDE,
    )


def _codex(model: GatewayModel, path: str | None) -> AgentLaunch:
    # Values are TOML, in which a JSON string is one as well.
    settings = {
        "model_provider": "hostler",
        "model_providers.hostler.name": "Hostler",
        "model_providers.hostler.base_url": f"{model.url}/v1",
        "model_providers.hostler.env_key": KEY_VARIABLE,
        "model_providers.hostler.wire_api": "responses",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    if model.context:
        options += ["-c", f"model_context_window={model.context}"]
    return AgentLaunch(command=("codex", *options, "-m", model.name), environment={KEY_VARIABLE: model.key})


def _opencode(model: GatewayModel, path: str | None) -> AgentLaunch:
    entry: dict[str, Any] = {"name": model.name}
    if model.context:
        entry["limit"] = {"context": model.context, "output": model.answer}
    settings: dict[str, Any] = {"$schema": "https://opencode.ai/config.json", "model": f"hostler/{model.name}"}
    if (_major_version(path) or 1) == 1:
        settings["small_model"] = f"hostler/{model.name}"
        # The user's settings may name the only providers, or those that must not be used.
        settings |= {"enabled_providers": ["hostler"], "disabled_providers": []}
        settings["provider"] = {
            "hostler": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Hostler",
                "options": {"baseURL": f"{model.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
                "models": {model.name: entry},
            }
        }
    else:
        settings["providers"] = {
            "hostler": {
                "name": "Hostler",
                "env": [KEY_VARIABLE],
                "package": "@opencode/ai/providers/openai-compatible",
                "settings": {"baseURL": f"{model.url}/v1"},
                "models": {model.name: entry},
            }
        }
    return AgentLaunch(
        command=("opencode",),
        environment={"OPENCODE_CONFIG_CONTENT": json.dumps(settings), KEY_VARIABLE: model.key},
    )


def _hermes(model: GatewayModel, path: str | None) -> AgentLaunch:
    # Of the providers with any address, only LM Studio's takes address and key from the environment.
    return AgentLaunch(
        command=("hermes", "chat", "--provider", "lmstudio", "--model", model.name),
        environment={"LM_BASE_URL": f"{model.url}/v1", "LM_API_KEY": model.key},
    )


def _aider(model: GatewayModel, path: str | None) -> AgentLaunch:
    name = f"openai/{model.name}"
    return AgentLaunch(
        command=("aider", "--model", name, "--weak-model", name, "--no-show-model-warnings"),
        # Without the prefix, a `.env` file of the project would replace them.
        environment={"AIDER_OPENAI_API_BASE": f"{model.url}/v1", "AIDER_OPENAI_API_KEY": model.key},
    )


_PLANS: Mapping[AgentProgram, Callable[[GatewayModel, str | None], AgentLaunch]] = {
    AgentProgram.claude: _claude,
    AgentProgram.codex: _codex,
    AgentProgram.opencode: _opencode,
    AgentProgram.hermes: _hermes,
    AgentProgram.aider: _aider,
}


def _major_version(path: str | None) -> int | None:
    """The installed release of a program; `None` if it cannot be found out."""
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"(\d+)\.\d+", done.stdout)
    return None if found is None else int(found[1])


def _find_model(listing: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The entry of the model in the gateway's list; without a name the first one. Raises `CallFailed`."""
    from hostler.gateway.cli.client import CallFailed, unknown_model

    models: list[dict[str, Any]] = listing.get("data") or []
    if not models:
        raise CallFailed("the gateway has no models", FAILED)
    if name is None:
        return models[0]
    for model in models:
        if name.casefold() in (str(each).casefold() for each in (model["id"], *model.get("aliases", ()))):
            return model
    raise CallFailed(unknown_model(name, [model["id"] for model in models]), USAGE)


def _print(plan: AgentLaunch, key: str | None, key_file: str | None, *, as_json: bool) -> None:
    """Print the launch with a reference in place of the key."""
    reference = f'"$(cat {shlex.quote(key_file)})"' if key_file else f'"${KEY_VARIABLE}"'
    if as_json:
        shown = {
            name: reference.strip('"') if key and value == key else value for name, value in plan.environment.items()
        }
        print_json({"command": plan.command, "environment": shown, "unset": plan.unset})
        return
    lines = [f"unset {' '.join(plan.unset)}"] if plan.unset else []
    for name, value in plan.environment.items():
        if key and value == key:
            if key_file or name != KEY_VARIABLE:
                lines.append(f"export {name}={reference}")
            continue
        lines.append(f"export {name}={shlex.quote(value)}")
    typer.echo("\n".join((*lines, shlex.join(plan.command))))
