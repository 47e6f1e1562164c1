"""What cannot run is found before anything is started, all of it at once."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.certificates import make_pair
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter

from hostler.gateway.auth import keys
from hostler.gateway.config import ConfigError, Configuration, read
from hostler.gateway.preflight import Command, all_mistakes, startup_check

ENGINE = f"{sys.executable} -I"


@pytest.fixture(autouse=True)
def no_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def configured(folder: Path, **sections: Any) -> Configuration:
    """A configuration with one model that can run, and these sections."""
    (folder / "m.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
    document = {"supervisor": {"engine": ENGINE}, "profiles": {"m": {"model": "m.gguf"}}, **sections}
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return read(path, {"XDG_STATE_HOME": str(folder)})


def test_what_can_run_has_no_mistakes(tmp_path: Path) -> None:
    assert all_mistakes(configured(tmp_path)) == []


FAR = ["0.0.0.0:8000"]
LINK = {"kind": "supervisor", "url": "http://pc"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an address beyond loopback without keys": ({"gateway": {"listen": FAR}}, "gateway.listen: refusing to listen"),
    "a missing key file": ({"gateway": {"api_keys_file": "none"}}, "none does not exist"),
    "an empty key file": ({"gateway": {"api_keys_file": "empty"}}, "empty contains no keys"),
    "a damaged key file": ({"gateway": {"api_keys_file": "text"}}, "text:1: is not a key record"),
    "a supervisor beyond loopback without a token": (
        {"supervisor": {"engine": ENGINE, "listen": "0.0.0.0:8080"}}, "supervisor.listen: refusing to listen",
    ),
    "a missing token file": (
        {"supervisor": {"engine": ENGINE, "token_file": "none"}}, "supervisor.token_file: ",
    ),
    "an empty token file": ({"supervisor": {"engine": ENGINE, "token_file": "empty"}}, "is empty"),
    "a backend's missing token file": (
        {"backends": {"pc": {**LINK, "token_file": "none"}}}, "backends.pc.token_file: ",
    ),
    "a backend's empty key file": (
        {"backends": {"lan": {"kind": "openai", "url": "http://x", "models": {"*": "m"}, "api_key_file": "empty"}}},
        "backends.lan.api_key_file: ",
    ),
    "a cluster's missing token file": (
        {"cluster": {"store": "redis://127.0.0.1", "token_file": "none"}}, "cluster.token_file: ",
    ),
    "an engine that is not installed": (
        {"supervisor": {"engine": "no-such-engine"}}, 'supervisor.engine: the engine "no-such-engine" does not exist',
    ),
    "a profile's engine that is not installed": (
        {"profiles": {"m": {"model": "m.gguf", "engine": "no-such-engine"}}}, "profiles.m.engine: ",
    ),
    "ports that are none": (
        {"supervisor": {"engine": ENGINE, "engine_ports": "many"}}, "supervisor.engine_ports: 'many' is not a range",
    ),
    "a missing model file": ({"profiles": {"m": {"model": "none.gguf"}}}, "profiles.m.model: "),
    "a model file that is a folder": ({"profiles": {"m": {"model": "."}}}, "is not a file"),
    "random bytes for a model": ({"profiles": {"m": {"model": "random.gguf"}}}, "random.gguf"),
    "a model file cut short": ({"profiles": {"m": {"model": "short.gguf"}}}, "short.gguf"),
    "a missing projector": (
        {"profiles": {"m": {"model": "m.gguf", "args": ["--mmproj", "/none.gguf"]}}}, "profiles.m.args: --mmproj",
    ),
    "a missing projector in its own key": (
        {"profiles": {"m": {"model": "m.gguf", "mmproj": "/none.gguf"}}}, "profiles.m.mmproj: /none.gguf cannot be read",
    ),
    "a GPU for the embedded engine": (
        {"supervisor": {"engine": "embedded"}, "profiles": {"m": {"model": "m.gguf", "gpu_layers": 99}}},
        "profiles.m.gpu_layers: the embedded engine runs on the CPU only",
    ),
    "a draft model that is no model": (
        {"profiles": {"m": {"model": "m.gguf", "draft": "random.gguf"}}}, "random.gguf is not a GGUF file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_run_is_found(tmp_path: Path, name: str) -> None:
    sections, message = WRONG[name]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "text").write_text("not a key\n")
    (tmp_path / "random.gguf").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "short.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS)[:-100])
    found = all_mistakes(configured(tmp_path, **sections))
    assert len(found) == 1, found
    assert message in found[0]


PAIR = {"cert": "own.crt", "key": "own.key"}
IN_FILES: dict[str, Callable[[str], dict[str, Any]]] = {
    "supervisor.token_file": lambda file: {"supervisor": {"engine": ENGINE, "token_file": file}},
    "supervisor.engine": lambda file: {"supervisor": {"engine": file}},
    "supervisor.tls": lambda file: {"supervisor": {"engine": ENGINE, "tls": {**PAIR, "key": file}}},
    "gateway.tls": lambda file: {"gateway": {"tls": {**PAIR, "cert": file}}},
    "gateway.api_keys_file": lambda file: {"gateway": {"api_keys_file": file}},
    "backends.pc.token_file": lambda file: {"backends": {"pc": {**LINK, "token_file": file}}},
    "backends.pc.certificate": lambda file: {
        "backends": {"pc": {"kind": "supervisor", "url": "https://pc", "token": "t", "certificate": file}}
    },
    "backends.lan.ca_file": lambda file: {"backends": {"lan": {"kind": "openai", "url": "https://x", "ca_file": file}}},
    "profiles.m.model": lambda file: {"profiles": {"m": {"model": file}}},
    "profiles.m.draft": lambda file: {"profiles": {"m": {"model": "m.gguf", "draft": file}}},
    "profiles.m.args": lambda file: {"profiles": {"m": {"model": "m.gguf", "args": ["--grammar-file", file]}}},
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("place", IN_FILES)
def test_a_pipe_or_a_device_in_place_of_a_file_is_a_mistake_that_delays_nothing(
    tmp_path: Path, place: str, kind: str
) -> None:
    make_pair(tmp_path, "own")
    file = "/dev/zero" if kind == "device" else str(tmp_path / "pipe.gguf")
    if kind == "pipe":
        os.mkfifo(file)
        Path(file).chmod(0o755)
    found = all_mistakes(configured(tmp_path, **IN_FILES[place](file)))
    assert len(found) == 1, found
    assert file in found[0]


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    found = all_mistakes(
        configured(
            tmp_path,
            gateway={"listen": FAR, "api_keys_file": "none"},
            supervisor={"engine": "no-such-engine", "token_file": "none"},
            profiles={"m": {"model": "none.gguf"}, "n": {"base": "m"}},
        )
    )
    assert len(found) == 6


def test_mistakes_in_the_text_are_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(
        "gateway:\n  lissten: []\n  drain_s: soon\n  allowed_hosts: ['*']\n  cors_origins: ['*']\n"
        "backends:\n  b: {kind: openai, url: '${env:NOWHERE}'}\nprofiles:\n  a: {base: gone}\n  c: {}\n"
    )
    with pytest.raises(ConfigError) as raised:
        read(path, {})
    places = [mistake.removeprefix(f"{path}:").split(": ")[:2] for mistake in raised.value.mistakes]
    assert places == [
        ["2", "gateway.lissten"],
        ["3", "gateway.drain_s"],
        ["4", "gateway.allowed_hosts[0]"],
        ["5", "gateway.cors_origins[0]"],
        ["7", "backends.b.url"],
        ["9", "profiles.a.base"],
        ["10", "profiles.c"],
    ]


@pytest.mark.parametrize("command", ["up", "gateway", "supervisor"])
def test_a_profile_that_cannot_run_does_not_keep_the_others_from_starting(tmp_path: Path, command: Command) -> None:
    profiles = {"m": {"model": "m.gguf"}, "gone": {"model": "none.gguf"}, "odd": {"base": "m", "engine": "no-such"}}
    configuration = configured(tmp_path, profiles=profiles, backends={"pc": LINK})
    assert startup_check(command)(configuration) == []


def test_no_engine_at_all_keeps_from_starting_unless_other_backends_answer(tmp_path: Path) -> None:
    nothing = configured(tmp_path, supervisor={"engine": "no-such"})
    assert len(startup_check("up")(nothing)) == len(startup_check("supervisor")(nothing)) == 1
    other = configured(tmp_path, supervisor={"engine": "no-such"}, backends={"pc": LINK})
    assert startup_check("up")(other) == []


def test_a_gateway_alone_needs_backends_and_has_no_supervisor_in_its_chain(tmp_path: Path) -> None:
    assert "no backends are configured" in startup_check("gateway")(configured(tmp_path))[0]
    chained = configured(tmp_path, gateway={"chain": ["local", "pc"]}, backends={"pc": LINK})
    assert "only `hostler up` runs a supervisor" in startup_check("gateway")(chained)[0]
    assert startup_check("up")(chained) == []


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys", "me", ["infer"])
    (tmp_path / "token").write_text("secret")
    configuration = configured(
        tmp_path,
        gateway={"listen": FAR, "api_keys_file": "keys", "spending": {"file": "spent"}, "recording": {"file": "kept"}},
        supervisor={"engine": ENGINE, "listen": "0.0.0.0:8080", "token_file": "token", "slots_dir": "slots"},
        backends={"pc": {**LINK, "token_file": "token", "api_key_file": "token"}},
    )
    assert all_mistakes(configuration) == []
    settings = configuration.settings
    assert settings.gateway.spending.file == str(tmp_path / "spent")
    assert settings.gateway.recording.file == str(tmp_path / "kept")
    assert settings.supervisor.slots_dir == str(tmp_path / "slots")


def test_rules_about_models_that_do_not_exist_are_mistakes_that_let_everything_run(tmp_path: Path) -> None:
    rules = {"groups": {"large": ["m", "flux"]}, "sets": [["m"], ["qwen"]], "return_to_default_s": 60}
    configuration = configured(tmp_path, supervisor={"engine": ENGINE, **rules})
    assert all_mistakes(configuration) == [
        "supervisor.groups.large: 'flux' is not a profile; profiles are: m",
        "supervisor.sets[1]: 'qwen' is not a profile; profiles are: m",
        "supervisor.return_to_default_s: there is no default profile; set `default: true` in one of them",
    ]
    assert startup_check("up")(configuration) == []


def test_a_budget_for_something_that_is_no_gpu_keeps_a_supervisor_from_running(tmp_path: Path) -> None:
    configuration = configured(tmp_path, supervisor={"engine": ENGINE, "devices": {"cuda:0": {"budget": "8GiB"}}})
    mistake = "supervisor.devices.cuda:0: is not a device: they are gpu0, gpu1 and so on"
    assert all_mistakes(configuration) == [mistake]
    assert startup_check("supervisor")(configuration) == [mistake]


CLOUD = {"kind": "openai", "url": "https://cloud.example"}


@pytest.mark.parametrize(
    ("settings", "environ", "mistake"),
    [
        ({}, {"ALL_PROXY": "socks5://127.0.0.1:1"}, "backends.cloud: ALL_PROXY names a SOCKS proxy"),
        ({}, {"HTTPS_PROXY": "socks4://127.0.0.1:1"}, "backends.cloud: HTTPS_PROXY does not name a proxy"),
        ({}, {"SSL_CERT_FILE": "/no/such.pem"}, "backends.cloud: SSL_CERT_FILE names /no/such.pem"),
        ({"ca_file": "/no/ca.pem"}, {}, "backends.cloud: ca_file names /no/ca.pem"),
        ({"proxy": "none"}, {"ALL_PROXY": "socks5://127.0.0.1:1"}, None),
        ({"url": "http://127.0.0.1:1"}, {"ALL_PROXY": "socks5://127.0.0.1:1", "SSL_CERT_FILE": "/no/such.pem"}, None),
        ({}, {"NO_PROXY": "10.0.0.0/8", "HTTPS_PROXY": "http://proxy:3128"}, None),
    ],
)
def test_a_backend_that_cannot_be_reached_as_configured_is_a_mistake_but_keeps_nothing_else_from_running(
    settings: dict[str, Any],
    environ: dict[str, str],
    mistake: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    configuration = configured(tmp_path, backends={"cloud": {**CLOUD, **settings}})
    found = all_mistakes(configuration)
    assert found == [] if mistake is None else [each.startswith(mistake) for each in found] == [True]
    assert list(startup_check("gateway")(configuration)) == []


def test_files_of_no_use_to_an_engine_are_found(tmp_path: Path) -> None:
    engine = tmp_path / "llama-server"
    engine.write_text("not a program")
    engine.chmod(0o755)
    (tmp_path / "model.bin").write_bytes(bytes(range(256)))
    profile = {"model": "model.bin", "args": ["--mmproj", str(tmp_path)]}
    found = all_mistakes(configured(tmp_path, supervisor={"engine": str(engine)}, profiles={"m": profile}))
    assert [each.partition(": ")[0] for each in found] == ["supervisor.engine", "profiles.m.model", "profiles.m.args"]


def test_addresses_in_conflict_are_found(tmp_path: Path) -> None:
    listen = ["127.0.0.1:9000", "127.0.0.1:9000"]
    assert all_mistakes(configured(tmp_path, gateway={"listen": listen}))[0].startswith("gateway.listen[1]: ")
    supervisor = {"engine": ENGINE, "listen": "127.0.0.1:9000", "engine_ports": "9000-9010"}
    assert all_mistakes(configured(tmp_path, supervisor=supervisor))[0].startswith("supervisor.listen: ")


def test_several_processes_need_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = configured(tmp_path, gateway={"workers": 2, "api_keys_file": None})
    assert all_mistakes(workers) == []
    monkeypatch.delattr(socket, "AF_UNIX")  # as on Windows
    assert [each.partition(";")[0] for each in startup_check("up")(workers)] == [
        "gateway.workers: this system has no Unix sockets, over which processes share their work"
    ]
