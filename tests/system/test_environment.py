"""Nothing in the environment stops a program: with all of these variables at once, what they do not concern is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from fakes.scripted_server import start_scripted_server
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

#: Proxies and certificates that cannot be used, in every spelling.
HOSTILE = {
    **dict.fromkeys(("ALL_PROXY", "all_proxy"), "socks5://127.0.0.1:1"),
    **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "socks4://127.0.0.1:1"),
    **dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://[::1"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "10.0.0.0/8,http://[::1,999.1.1.1/8,,;"),
    "SSL_CERT_FILE": "/no/such.pem",
    "SSL_CERT_DIR": "/no/such",
    "REQUESTS_CA_BUNDLE": "/no/such.pem",
    "CURL_CA_BUNDLE": "/no/such.pem",
    "SSLKEYLOGFILE": "/no/such/keys",
    "OPENSSL_CONF": "/no/such.cnf",
    # Of uvicorn, systemd and others.
    "WEB_CONCURRENCY": "many",
    "FORWARDED_ALLOW_IPS": "%%",
    "WATCHDOG_USEC": "soon",
    "LISTEN_FDS": "some",
    "NOTIFY_SOCKET": "/no/such/socket",
    "OTEL_TRACES_SAMPLER": "unknown",
    "HF_ENDPOINT": "::::",
    "COLUMNS": "wide",
    "LINES": "long",
    "TERM": "unknown-terminal",
    "LC_ALL": "xx_YY",
    "TZ": "Nowhere/Else",
}


def configuration(tmp_path: Path, **sections: Any) -> str:
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps(sections))
    return str(path)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hostler.gateway", *command],
        env={**os.environ, **HOSTILE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_what_the_environment_does_not_concern_is_served(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
    async with start_scripted_server() as server:
        cloud = {"kind": "openai", "url": "https://127.0.0.1:9/v1", "local": False, "models": {"far": "far"}}
        path = configuration(
            tmp_path,
            gateway={"listen": ["127.0.0.1:0"]},
            supervisor={"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
            profiles={"own": {"model": str(model)}},
            backends={"near": {"kind": "openai", "url": server.url, "models": {"near": "m"}}, "cloud": cloud},
        )
        with run_hostler("up", "--config", path, errors=tmp_path / "log", environ=HOSTILE) as up:
            async with httpx.AsyncClient(base_url=up.address, timeout=60, trust_env=False) as http:
                body = {"messages": [{"role": "user", "content": "Hello"}]}
                answers = {
                    model: await http.post("/v1/chat/completions", json={"model": model, **body})
                    for model in ("own", "near", "far")
                }
                backends = (await http.get("/admin/backends")).json()["backends"]
    assert {model: answer.status_code for model, answer in answers.items()} == {"own": 200, "near": 200, "far": 503}
    (problem,) = [each["problem"] for each in backends if each["backend"] == "cloud"]
    assert "HTTPS_PROXY does not name a proxy" in problem or "SSL_CERT_FILE names /no/such.pem" in problem


@pytest.mark.parametrize("command", [("supervisor", "--config"), ("gateway", "--config")], ids=lambda each: each[0])
def test_both_halves_start(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = configuration(
        tmp_path,
        gateway={"listen": ["127.0.0.1:0"]},
        supervisor={"listen": "127.0.0.1:0", "engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
        profiles={},
        backends={"near": {"kind": "ollama", "url": "http://127.0.0.1:9"}},
    )
    with run_hostler(*command, path, errors=tmp_path / "log", environ=HOSTILE) as running:
        assert running.address


async def test_what_is_wrong_is_named_by_check_and_doctor(tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        server.documents = {"/v1/models": {"data": [{"id": "near"}]}}
        path = configuration(
            tmp_path,
            gateway={"listen": ["127.0.0.1:0"]},
            backends={
                "near": {"kind": "openai", "url": server.url},
                "cloud": {"kind": "openai", "url": "https://127.0.0.1:9/v1", "local": False, "proxy": "none"},
            },
        )
        checked = await anyio.to_thread.run_sync(run, "check", path)
        with run_hostler("gateway", "--config", path, errors=tmp_path / "log", environ=HOSTILE) as gateway:
            doctor = await anyio.to_thread.run_sync(run, "doctor", "--url", gateway.address, "--json")
    assert (checked.returncode, checked.stderr) == (
        2,
        "hostler: backends.cloud: SSL_CERT_FILE names /no/such.pem, but there is no such file\n",
    )
    near, cloud = json.loads(doctor.stdout)["hops"]
    assert (doctor.returncode, near["backend"], near["ok"], cloud["ok"]) == (1, "near", True, False)
    assert "SSL_CERT_FILE names /no/such.pem" in cloud["message"]
