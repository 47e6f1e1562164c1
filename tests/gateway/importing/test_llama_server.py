"""llama-server's presets."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.llama_server import import_llama_server
from hostler.gateway.importing.report import Imported, ImportFailed

PRESETS = """\
version = 1

; for all models
[*]
jinja = true
n-gpu-layers = 99
ctx-size = 4096

[chat]
model = chat.gguf
c = 8192
LLAMA_ARG_N_PARALLEL = 2
mmap = off
temp = 0.7
load-on-startup = true
stop-timeout = 5

[org/repo:Q4_K_M]
chat-template-kwargs = {"reasoning_effort": "high"}
"""


def translate(text: str) -> Imported:
    return import_llama_server(
        text, "models.ini", prefix="hostler", path_of=lambda path: f"/m/{path}", facts_of=lambda _: None
    )


def test_a_section_becomes_a_profile() -> None:
    assert translate(PRESETS).sections["profiles"]["chat"] == {
        "model": "/m/chat.gguf", "parallel": 2, "context": 4096, "gpu_layers": 99, "preload": True, "stop_grace_s": 5.0,
        "args": ["--jinja", "--no-mmap", "--temp", "0.7"],
    }  # fmt: skip


def test_a_repository_is_loaded_by_llama_server_itself() -> None:
    sections = translate(PRESETS).sections
    command = sections["engines"]["org-repo-Q4_K_M"]["command"]
    assert sections["profiles"]["org/repo:Q4_K_M"] == {"engine": "org-repo-Q4_K_M"}
    assert command[:3] == ["llama-server", "-hf", "org/repo:Q4_K_M"] and command[-1] == "${port}"
    assert '{"reasoning_effort": "high"}' in command


def test_the_engine_of_a_repository_has_what_the_report_says() -> None:
    imported = translate("[org/repo]\nhost = 0.0.0.0\napi-key = secret\ntemp = 0.7\nLLAMA_CACHE = /srv/cache\n")
    command = imported.sections["engines"]["org-repo"]["command"]
    assert command == [
        "llama-server", "-hf", "org/repo", "--temp", "0.7", "--host", "${host}", "--port", "${port}",
    ]  # fmt: skip
    assert imported.sections["profiles"]["org/repo"] == {"engine": "org-repo", "env": {"LLAMA_CACHE": "/srv/cache"}}


def test_a_preset_with_variables_is_not_taken_over() -> None:
    imported = translate("[a]\nmodel = a.gguf\nchat-template-file = ${HOME}/a.jinja\n")
    assert "profiles" not in imported.sections
    assert any(note.kind == "missing" and "${HOME}" in note.text for note in imported.notes)


def test_every_key_is_reported_with_its_line() -> None:
    notes = {(note.key, note.line) for note in translate(PRESETS).notes}
    assert {("[chat].c", 11), ("[*].jinja", 5), ("version", 1), ("[chat].stop-timeout", 16)} <= notes


def test_a_preset_without_a_model_is_reported() -> None:
    imported = translate("[a]\ntemp = 1\n")
    assert "profiles" not in imported.sections
    ((kind, key, text),) = [(note.kind, note.key, note.text) for note in imported.notes]
    assert (kind, key) == ("missing", "[a]") and text.startswith(
        "names no model: add `model = FILE` or `hf = ORG/REPO`"
    )


def test_options_of_presets_alone_are_no_arguments() -> None:
    imported = translate("[a]\nmodel = /a.gguf\ndedup-cache-models = true\nstop-timeout = soon\n")
    assert "args" not in imported.sections["profiles"]["a"]
    assert {note.key: note.kind for note in imported.notes if "." in note.key} == {
        "[a].model": "taken",
        "[a].dedup-cache-models": "meaningless",
        "[a].stop-timeout": "missing",
    }


def test_what_all_sections_share_is_noted_once_also_where_each_has_its_own() -> None:
    imported = translate("[*]\nc = 1024\nb = 8\n[a]\nmodel = /a.gguf\nc = 2048\n[d]\nmodel = /d.gguf\nc = 512\n")
    shared = [(note.key, note.line, note.text) for note in imported.notes if note.key.startswith("[*]")]
    assert shared == [("[*].c", 2, "each section has its own"), ("[*].b", 3, "")]


@pytest.mark.parametrize(
    ("text", "line"), [("[a]\nnonsense", 2), ("[a", 1), ("[]", 1), ("= 1", 1), ("\n\n[a]\nb c = 1", 4)]
)
def test_a_broken_line_is_named(text: str, line: int) -> None:
    with pytest.raises(ImportFailed, match=f"models.ini:{line}: "):
        translate(text)


def test_a_binary_file_is_refused() -> None:
    with pytest.raises(ImportFailed, match="is not a text file"):
        translate("\0")
