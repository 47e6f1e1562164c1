"""Stubs of engine programs in a folder for the PATH, and the log that they write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_STUB = Path(__file__).with_name("stub_engine.py")
PROGRAMS = ("vllm", "whisper-server", "sd-server", "koboldcpp", "mlx_lm.server", "python3", "docker", "podman", "stub")


class StubPrograms:
    """The programs in `folder`; `env` is for profiles that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.log = folder / "stubs.jsonl"
        self.folder.mkdir()
        for name in PROGRAMS:
            file = self.folder / name
            code = f"import sys\nsys.path.insert(0, {str(_STUB.parent)!r})\nimport stub_engine\nstub_engine.main()\n"
            file.write_text(f"#!{sys.executable} -IS\n{code}")
            file.chmod(0o755)

    def env(self, **script: Any) -> dict[str, str]:
        """The environment of a stub that behaves like `script`."""
        return {"STUB_LOG": str(self.log), "STUB_ENGINE": json.dumps(script)}

    def containers(self) -> list[str]:
        """The containers that exist."""
        return [file.stem for file in self.log.parent.glob("*.pid")]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What the programs have logged, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if kind in (None, event["event"])]
