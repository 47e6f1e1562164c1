"""The count of what importers take over: `python -m bench.importers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import importers

LITELLM = """\
model_list:
  - model_name: a
    litellm_params: {model: groq/a, rpm: 3}
  - model_name: b
    litellm_params: {model: bedrock/b, aws_region_name: eu}
litellm_settings: {num_retries: 2, cache: true, callbacks: }
guardrails:
  - {guardrail_name: g, litellm_params: {guardrail: x, mode: [pre_call, post_call]}}
general_settings: {store_model_in_db: true}
"""


def test_every_key_with_a_value_counts_once(tmp_path: Path) -> None:
    found = importers.keys("litellm", "a.yaml", LITELLM)
    assert [(key.line, key.name, key.outcome) for key in found] == [
        (2, "model_list[0].model_name", "taken"),
        (3, "model_list[0].litellm_params.model", "changed"),
        (3, "model_list[0].litellm_params.rpm", "taken"),
        (4, "model_list[1].model_name", "missing"),
        (5, "model_list[1].litellm_params.model", "missing"),
        (5, "model_list[1].litellm_params.aws_region_name", "missing"),
        (6, "litellm_settings.num_retries", "changed"),
        (6, "litellm_settings.cache", "missing"),
        (8, "guardrails[0].guardrail_name", "missing"),
        (8, "guardrails[0].litellm_params.guardrail", "missing"),
        (8, "guardrails[0].litellm_params.mode", "missing"),
        (9, "general_settings.store_model_in_db", "meaningless"),
    ]
    assert {key.group for key in found if key.outcome in ("taken", "changed")} == {importers.REST}
    assert len({key.group for key in found}) == 5


def test_examples_are_files_and_fenced_blocks(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("models: {}\n")
    (tmp_path / "other.yaml").write_text("services: {}\n")
    (tmp_path / "page.md").write_text(
        "Text\n\n  ```yaml title=x\n  models:\n    a: {cmd: x}\n  ```\n```python\nmodels: 1\n```\n"
    )
    found = dict(importers.examples("llama-swap", [tmp_path]))
    assert found == {
        str(tmp_path / "one.yaml"): "models: {}\n",
        f"{tmp_path / 'page.md'}:3": "models:\n  a: {cmd: x}\n",
    }


def test_presets_of_llama_server_are_counted_by_section() -> None:
    text = "version = 1\n[*]\nctx-size = 4096\nmodel = /x.gguf\n[one]\nmodel = /m.gguf\n[two]\nmodel = /n.gguf\n"
    found = importers.keys("llama-server", "a.ini", text)
    assert [(key.name, key.outcome) for key in found] == [
        ("version", "taken"),
        ("[*].ctx-size", "taken"),
        ("[*].model", "taken"),
        ("[one].model", "taken"),
        ("[two].model", "taken"),
    ]


def test_the_table_has_a_row_for_each_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(LITELLM)
    (tmp_path / "broken.yaml").write_text("model_list: [\n")
    monkeypatch.setattr("sys.argv", ["importers", "litellm", str(tmp_path), "--reasons"])
    importers.main()
    shown = capsys.readouterr()
    assert "left out" in shown.err and "broken.yaml" in shown.err
    assert "| all | 12 | 2 | 2 | 1 | 7 | 0 | 33.3% |" in shown.out
    assert f"| {importers.REST} | 4 | 2 | 2 | 0 | 0 | 0 | 100.0% |" in shown.out
    assert "   1 answers are cached: litellm_settings.cache: not taken over: answers are not cached" in shown.out
