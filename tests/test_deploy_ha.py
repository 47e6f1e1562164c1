"""The files that are shipped for two gateways behind one address: each loads, and they fit each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hostler.gateway.config import read
from hostler.gateway.settings import Settings

HA = Path(__file__).parent.parent / "deploy" / "ha"
SECRET = re.compile(r"/run/secrets/([\w-]+)")


def compose() -> Any:
    return YAML(typ="safe").load(HA / "compose.yaml")


def settings(name: str, tmp_path: Path) -> Settings:
    text = (HA / f"{name}.yaml").read_text()
    for secret in SECRET.findall(text):
        (tmp_path / secret).write_text("a-secret-of-some-length")
    (tmp_path / "hostler.yaml").write_text(text.replace("/run/secrets/", f"{tmp_path}/"))
    return read(tmp_path / "hostler.yaml", environ={"STORE_PASSWORD": "x", "HOSTNAME": "gateway-1"}).settings


def services(command: str) -> dict[str, Any]:
    """The services that run this command of Hostler, by name."""
    return {name: each for name, each in compose()["services"].items() if each.get("command", [""])[0] == command}


def test_the_gateways_know_each_supervisor_by_its_name(tmp_path: Path) -> None:
    backends = settings("gateway", tmp_path).backends
    port = settings("supervisor", tmp_path).supervisor.listen.rpartition(":")[2]
    assert {backend.url for backend in backends.values()} == {
        f"http://{name}:{port}" for name in services("supervisor")
    }
    assert len(backends) == 2


def test_the_gateways_trust_the_proxy_and_it_knows_them(tmp_path: Path) -> None:
    proxy = compose()["services"]["proxy"]
    assert settings("gateway", tmp_path).gateway.trusted_proxies == (proxy["networks"]["cluster"]["ipv4_address"],)
    addresses = {each["networks"]["cluster"]["ipv4_address"] for each in services("gateway").values()}
    assert {address.removesuffix(":8000") for address in proxy["environment"].values()} == addresses
    configuration = (HA / "haproxy.cfg").read_text()
    assert all(name in configuration for name in proxy["environment"])


def test_each_secret_that_a_file_names_is_handed_over() -> None:
    for name in ("gateway", "supervisor"):
        named = set(SECRET.findall((HA / f"{name}.yaml").read_text()))
        for service in services(name).values():
            assert set(service["secrets"]) == named
        assert named <= set(compose()["secrets"])


def test_answers_in_progress_have_time_to_end(tmp_path: Path) -> None:
    drain = settings("gateway", tmp_path).gateway.drain_s
    for service in services("gateway").values():
        assert float(service["stop_grace_period"].removesuffix("s")) > drain


def test_containers_run_without_privileges() -> None:
    for service in compose()["services"].values():
        assert service["read_only"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_haproxy_accepts_its_configuration() -> None:
    done = checked("haproxy", "-c", "-f", str(HA / "haproxy.cfg"))
    assert done.returncode == 0, done.stderr


def test_caddy_understands_its_configuration() -> None:
    done = checked("caddy", "adapt", "--adapter", "caddyfile", "--config", str(HA / "Caddyfile"))
    assert done.returncode == 0, done.stderr
    assert "/healthz" in done.stdout


def test_keepalived_finds_no_mistake_in_its_configuration(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("keepalived", "unshare", "ip"))):
        pytest.skip("needs keepalived, and unshare, ip and root for a network namespace")
    # It looks for the interface. A namespace of its own has one, and nothing that could leave it.
    shell = f"ip link add eth0 type bridge && ip link set eth0 up && setsid keepalived -t -f {HA}/keepalived.conf"
    made = subprocess.run(["unshare", "-n", "ip", "link", "add", "eth0", "type", "bridge"], capture_output=True)
    if made.returncode:
        pytest.skip("no network namespace can be made here")
    done = subprocess.run(["unshare", "-n", "sh", "-c", shell], capture_output=True, text=True, timeout=30)
    # Debian's version ends itself with a signal after a check, so its exit status says nothing.
    assert [line for line in (done.stdout + done.stderr).splitlines() if line and "Terminated" not in line] == []


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, timeout=30)
