"""The parts that serve requests for models, made from a configuration."""

from __future__ import annotations

import time
from pathlib import Path

from hostler.gateway.config import read
from hostler.gateway.serving import ServingComponents

BACKENDS = """
gateway:
  listen: ["127.0.0.1:0"]
  chain: [pc, cloud]
backends:
  pc: {kind: supervisor, url: "http://127.0.0.1:9", token: secret-of-the-test}
  cloud: {kind: openai, url: "http://127.0.0.1:9/v1", models: {big: big}}
"""


def serving(tmp_path: Path, text: str = BACKENDS) -> ServingComponents:
    file = tmp_path / "hostler.yaml"
    file.write_text(text, encoding="utf-8")
    return ServingComponents(
        read(file, {}).settings,
        local=None,
        presets={},
        on_status=lambda name, status: None,
        on_return=lambda name: None,
        clock=time.monotonic,
    )
