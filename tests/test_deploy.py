"""The files that are shipped for three boxes: each loads, and they fit each other."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hostler.gateway.config import Configuration, read

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def configuration(name: str, tmp_path: Path) -> Configuration:
    text = (DEPLOY / f"{name}.yaml").read_text().replace("/etc/hostler/", f"{DEPLOY}/")
    (tmp_path / "hostler.yaml").write_text(text)
    return read(tmp_path / "hostler.yaml", environ={})


def unit(path: Path) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if found := re.fullmatch(r"(\w+)=(.*)", line):
            settings.setdefault(found[1], []).append(found[2])
    return settings


def compose() -> Any:
    return YAML(typ="safe").load(DEPLOY / "compose.yaml")


@pytest.mark.parametrize("name", ["gateway", "supervisor", "small"])
def test_an_example_file_loads_without_any_secret_in_the_environment(name: str, tmp_path: Path) -> None:
    assert configuration(name, tmp_path).path


def test_three_profiles_are_shipped_for_the_big_machine(tmp_path: Path) -> None:
    profiles = configuration("supervisor", tmp_path).profiles
    assert {profile.name for profile in profiles} == {"qwen3-8b", "qwen3-8b-agent", "embedder"}
    agents = next(profile for profile in profiles if profile.name == "qwen3-8b-agent")
    assert agents.context >= 65536


def test_the_chain_ends_at_the_small_machine_itself(tmp_path: Path) -> None:
    settings = configuration("gateway", tmp_path).settings
    assert settings.gateway.chain == ("main-pc", "openrouter", "lxc")
    small = configuration("small", tmp_path)
    assert settings.backends["lxc"].url == f"http://{small.settings.gateway.listen[0]}"
    assert settings.backends["lxc"].models == {"*": small.profiles[0].name}
    assert settings.backends["lxc"].context == small.profiles[0].context
    assert settings.backends["lxc"].is_local
    assert not settings.backends["openrouter"].is_local


def test_models_requested_from_the_cloud_have_a_profile(tmp_path: Path) -> None:
    names = {profile.name for profile in configuration("supervisor", tmp_path).profiles}
    assert set(configuration("gateway", tmp_path).settings.backends["openrouter"].models) <= names


@pytest.mark.parametrize("box", ["gateway", "supervisor"])
def test_the_secrets_that_a_file_names_are_handed_over_by_its_unit(box: str, tmp_path: Path) -> None:
    named = set(re.findall(rf"/run/credentials/hostler-{box}\.service/(\w+)", (DEPLOY / f"{box}.yaml").read_text()))
    handed = {value.partition(":")[0] for value in unit(DEPLOY / f"hostler-{box}.service")["LoadCredential"]}
    assert named == handed
    assert named


def test_containers_get_the_same_secrets_at_the_same_places(tmp_path: Path) -> None:
    there = {secret["target"] for secret in compose()["services"]["gateway"]["secrets"]}
    assert there == set(re.findall(r"/run/credentials/\S+/\w+", (DEPLOY / "gateway.yaml").read_text()))


def test_the_keys_are_kept_where_the_gateway_may_write(tmp_path: Path) -> None:
    file = configuration("gateway", tmp_path).settings.gateway.api_keys_file
    state = unit(DEPLOY / "hostler-gateway.service")["StateDirectory"][0]
    assert str(file).startswith(f"/var/lib/{state}/")
    assert f"state:/var/lib/{state}" in compose()["services"]["gateway"]["volumes"]


def test_the_socket_has_the_address_that_the_gateway_is_configured_to_listen_on(tmp_path: Path) -> None:
    listen = configuration("gateway", tmp_path).settings.gateway.listen[0]
    assert unit(DEPLOY / "hostler-gateway.socket")["ListenStream"] == [listen.rpartition(":")[2]]


@pytest.mark.parametrize("path", UNITS, ids=[path.stem for path in UNITS])
def test_a_unit_is_watched_restarted_and_locked_down(path: Path) -> None:
    settings = unit(path)
    expected = {
        "Type": "notify", "Restart": "always", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "PrivateTmp": "yes",
        "CapabilityBoundingSet": "", "UMask": "0077", "RestrictNamespaces": "yes", "SystemCallArchitectures": "native",
    }  # fmt: skip
    assert {name: settings[name][0] for name in expected} == expected
    assert int(settings["WatchdogSec"][0]) > 0
    assert settings["User"] != ["root"]
    assert settings["SystemCallFilter"][0] == "@system-service"
    configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=False).read_string(path.read_text())


def test_containers_run_without_privileges() -> None:
    for recipe in ("Dockerfile", "Dockerfile.gpu"):
        assert re.search(r"^USER \d+$", (DEPLOY / recipe).read_text(), re.MULTILINE)
    for service in compose()["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_an_image_gets_nothing_of_a_person() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert allowed.splitlines()[1] == "*"
    assert (DEPLOY / "Dockerfile.gpu.dockerignore").read_text() == allowed


def test_the_image_for_gpus_has_an_engine_on_its_path_and_none_of_its_own() -> None:
    text = (DEPLOY / "Dockerfile.gpu").read_text()
    assert re.search(r"^ARG ENGINE=\S+:server-cuda\nFROM \$\{ENGINE\}$", text, re.MULTILINE)
    assert "PATH=/opt/hostler/bin:/app:$PATH" in text and "[embedded]" not in text
    ports = {int(port) for port in re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)}
    assert ports == {8000} and "127.0.0.1:8000/healthz" in text


#: The highest exposure level that systemd may report for each unit, from 0 (closed) to 10 (open). Version 252 reports
#: 1.2, 1.5 and 2.2; other versions differ slightly.
EXPOSURE = {"hostler-gateway": 1.5, "hostler-small": 1.8, "hostler-supervisor": 2.5}


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, for a Hostler that is installed."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze not found; on Debian: apt install systemd")
    copies = []
    for shipped in sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.socket")]):
        text = shipped.read_text(encoding="utf-8").replace("/opt/hostler/bin/hostler", sys.executable)
        (tmp_path / shipped.name).write_text(text, encoding="utf-8")
        copies.append(tmp_path / shipped.name)
    return copies


def test_systemd_accepts_the_units(units: list[Path]) -> None:
    # Both streams, since unknown settings are only warnings.
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_reports_no_higher_exposure_level_than_allowed(units: list[Path]) -> None:
    services = [path for path in units if path.suffix == ".service"]
    assert {path.stem for path in services} == EXPOSURE.keys()
    for path in services:
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", path]
        report = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
        assert found is not None, report
        assert float(found[1]) <= EXPOSURE[path.stem], report
