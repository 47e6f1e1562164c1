"""Selectors of llama-swap: names that stand for one of several models."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.llama_swap import import_llama_swap


@pytest.mark.parametrize(
    ("selector", "kind", "model", "why"),
    [
        ("{strategy: pin, targets: [m]}", "taken", "m", "variants.one"),
        ("{strategy: warm, targets: [m, far/x]}", "changed", "m", "that names no model goes to the loaded one"),
        ("{strategy: spillover, targets: [far/x, m]}", "changed", "far/x", "spread over them by itself"),
        ("{strategy: pin, targets: [gone, m]}", "changed", "m", "there is no model gone"),
        ("{strategy: pin, targets: [m, gone]}", "taken", "m", "variants.one"),
    ],
)
def test_a_selector_stands_for_its_first_model_and_says_what_differs(
    selector: str, kind: str, model: str, why: str
) -> None:
    text = (
        f"selectors: {{one: {selector}}}\n"
        "peers: {box: {proxy: 'http://box.lan:8080', models: [far/x]}}\n"
        "models: {m: {cmd: 'llama-server --port ${PORT} -m a.gguf'}}\n"
    )
    imported = import_llama_swap(text, "config.yaml", prefix="hostler", path_of=str, facts_of=lambda _: None)
    assert imported.sections["variants"] == {"one": {"model": model}}
    assert any(note.key == "selectors.one" and why in note.text for note in imported.notes if note.kind == kind)
