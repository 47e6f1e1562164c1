"""A certificate and its key in one command."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hostler.gateway.cli.main import app
from hostler.supervisor.tls import ServerCertificate


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["certificate", *arguments])
    return result.exit_code, result.output


def test_a_certificate_is_made_with_the_lines_for_both_sides(tmp_path: Path) -> None:
    code, text = run("Main-PC", "--address", "192.168.1.10", "--folder", str(tmp_path / "new"))
    cert, key = tmp_path / "new/main-pc.crt", tmp_path / "new/main-pc.key"
    assert code == 0
    assert f"tls: {{cert: {cert}, key: {key}}}" in text
    assert 'main-pc: {kind: supervisor, url: "https://main-pc:8080", certificate: main-pc.crt' in text
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in cert.parent.iterdir()) == ["main-pc.crt", "main-pc.key"]
    ServerCertificate(str(cert), str(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    (decoded,) = context.get_ca_certs()
    assert ("DNS", "main-pc") in decoded["subjectAltName"]
    assert ("IP Address", "192.168.1.10") in decoded["subjectAltName"]


def test_files_are_never_replaced(tmp_path: Path) -> None:
    first = json.loads(run("box", "--folder", str(tmp_path), "--json")[1])
    before = Path(first["key"]).read_text()
    code, text = run("box", "--folder", str(tmp_path))
    assert (code, "exists; remove it first" in text) == (1, True)
    assert Path(first["key"]).read_text() == before


@pytest.mark.parametrize("name", ["a b", "a,DNS:evil", "a/b", ""])
def test_names_are_names(tmp_path: Path, name: str) -> None:
    code, text = run(name or " ", "--folder", str(tmp_path))
    assert (code, "host names or addresses" in text) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_without_the_program_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, text = run("box", "--folder", str(tmp_path / "new"))
    assert (code, "needs the program openssl" in text) == (1, True)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo loading >&2; echo 'no entropy' >&2; exit 3", "openssl failed: no entropy\n"),
        ("exit 3", "openssl failed: exit code 3\n"),
    ],
)
def test_a_failure_of_the_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    program = tmp_path / "bin" / "openssl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    code, text = run("box", "--folder", str(tmp_path / "new"))
    assert (code, text) == (1, f"hostler: {words}")
    assert list((tmp_path / "new").iterdir()) == []
