"""Ports in llama-swap's commands and addresses."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.llama_swap import import_llama_swap
from hostler.gateway.importing.llama_swap_ports import PORT, port_option, proxy_address, with_variable


@pytest.mark.parametrize(
    ("proxy", "found"),
    [
        ("http://localhost:9000/v1/", ("localhost", "9000", "/v1")),
        (f"http://127.0.0.1:{PORT}", ("127.0.0.1", PORT, "")),
        ("box.lan:80", ("box.lan", "80", "")),
        ("http://[::1", ("?", "", "")),
        ("http://localhost:x", ("?", "", "")),
    ],
)
def test_an_address_is_taken_apart(proxy: str, found: tuple[str, str, str]) -> None:
    assert proxy_address(proxy) == found


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("serve --port 9999 x", "9999"),
        ("serve --listen-port=80", "80"),
        ("serve --port", ""),
        ("serve --port auto", ""),
        ("serve --report 9999", ""),
    ],
)
def test_the_port_of_a_command_is_that_of_its_option(command: str, port: str) -> None:
    assert port_option(command.split()) == port


def test_only_the_port_itself_becomes_a_variable() -> None:
    assert with_variable("127.0.0.1:99,x=99,199,99.5", "99") == f"127.0.0.1:{PORT},x={PORT},199,99.5"


def test_a_port_in_a_command_without_an_address_is_chosen_by_the_supervisor() -> None:
    text = "models: {pictures: {cmd: sd-server --listen-port 9999 --steps 8, checkEndpoint: /}}\n"
    imported = import_llama_swap(text, "a.yaml", prefix="hostler", path_of=str, facts_of=lambda _: None)
    command = [str(word) for word in imported.sections["engines"]["pictures"]["command"]]
    assert command == ["sd-server", "--listen-port", "${port}", "--steps", "8"]
    assert any(each.kind == "changed" and each.text.endswith("instead of 9999") for each in imported.notes)
    assert not [each for each in imported.notes if each.kind == "missing"]
