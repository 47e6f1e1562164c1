"""Commands for what members share: what they say of the store and of members."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.redis_server import RedisServer, needs_redis, redis_server
from typer.testing import CliRunner, Result

from hostler.gateway.cli.config_command import config_app
from hostler.gateway.cluster.configuration_writer import ConfigurationWriter, MemberConfiguration, WriterError
from hostler.gateway.cluster_view import ConfigurationState

pytestmark = needs_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, server: RedisServer) -> Path:
    return configuration(tmp_path / "hostler.yaml", server, "secret")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    file = tmp_path / "shared.yaml"
    file.write_text("profiles: {a: {model: /m.gguf}}\n")
    return file


def configuration(file: Path, server: RedisServer, token: str) -> Path:
    file.write_text(json.dumps({"gateway": {}, "cluster": {"store": server.url, "name": "home", "token": token}}))
    return file


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(config_app, [*arguments, "--config", str(config)])


def test_an_empty_file_is_refused(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "empty"
    for kind, text in (("keys", ""), ("profiles", " \n")):
        file.write_text(text)
        done = run(config, "push", kind, str(file))
        assert done.exit_code == 2
        assert f"empty is empty; to stop sharing: hostler config remove {kind}" in done.stderr
    assert run(config, "status").stdout == "Nothing is shared.\n"


def test_what_was_removed_is_shown_as_no_longer_shared(config: Path, shared: Path) -> None:
    assert run(config, "push", "profiles", str(shared)).exit_code == 0
    assert run(config, "show", "profiles").stdout == shared.read_text()
    assert "any more" not in run(config, "status").stdout
    for command in (("remove", "profiles"), ("status",)):
        done = run(config, *command)
        assert done.exit_code == 0
        assert done.stdout.startswith("profiles: version 2, by ")
        assert done.stdout.splitlines()[0].endswith(": nothing is shared any more")
    done = run(config, "show", "profiles")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "nothing is shared any more" in done.stderr
    assert json.loads(run(config, "show", "profiles", "--json").stdout)["text"] == ""


def test_what_another_token_has_signed_is_named(
    config: Path, shared: Path, tmp_path: Path, server: RedisServer
) -> None:
    other = configuration(tmp_path / "other.yaml", server, "other")
    assert run(other, "push", "profiles", str(shared)).exit_code == 0
    said = "the shared profiles in the store are damaged or signed with another token than cluster.token"
    done = run(config, "show", "profiles")
    assert done.exit_code == 1
    assert said in done.stderr
    done = run(config, "status")
    assert done.exit_code == 0
    assert done.stdout.startswith(said)
    (problem,) = json.loads(run(config, "status", "--json").stdout)["problems"]
    assert problem.startswith(said)


class States:
    """What members say, one answer after the other; the last one stays. `None`: the store does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[ConfigurationState, ...] | None) -> None:
        self._answers = list(answers)

        async def states(_: ConfigurationWriter) -> list[MemberConfiguration]:
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if answer is None:
                raise WriterError("the cluster's store does not answer (slow); try again")
            return [MemberConfiguration(member="attic", role="host", configuration=answer)]

        monkeypatch.setattr(ConfigurationWriter, "states", states)


USES = ConfigurationState(kind="profiles", version=1)


def test_a_version_is_published_although_the_store_does_not_answer_afterwards(
    config: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    States(monkeypatch, None)
    done = run(config, "push", "profiles", str(shared), "--wait", "0.1")
    assert done.exit_code == 1
    assert "profiles: version 1, by " in done.stdout
    assert "Version 1 is published. Who uses it is not known" in done.stdout
    assert "try again" not in done.output
    done = run(config, "push", "profiles", str(shared), "--wait", "0", "--json")
    assert (done.exit_code, json.loads(done.stdout)["members"]) == (1, None)


def test_a_store_that_is_slow_for_a_moment_changes_nothing(
    config: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    States(monkeypatch, None, None, (USES,))
    assert run(config, "push", "profiles", str(shared)).exit_code == 0
    States(monkeypatch, None, (ConfigurationState(kind="profiles", version=1, refused=2, reason="no file"),))
    done = run(config, "push", "profiles", str(shared))
    assert done.exit_code == 1
    assert "refuses 2: no file" in done.stdout


def test_only_the_kind_that_was_published_is_shown_of_members(
    config: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    States(monkeypatch, (USES, ConfigurationState(kind="keys", version=4711)))
    done = run(config, "push", "profiles", str(shared))
    assert "attic" in done.stdout
    assert "keys" not in done.stdout and "4711" not in done.stdout
    assert "4711" in run(config, "status").stdout
