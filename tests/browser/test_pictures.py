"""The pictures of the README can still be taken: the page shows what they are about."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).parent.parent.parent / "docs" / "tools"

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


async def test_the_pictures_of_the_readme_can_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds the tests' folder
    spec = importlib.util.spec_from_file_location("pictures", TOOLS / "pictures.py")
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    monkeypatch.setattr(pictures, "PICTURES", tmp_path / "pictures")
    await pictures.main()
    taken = [*(tmp_path / "pictures").iterdir()]
    assert {file.name for file in taken} == {"now.png", "forecast.png", "waterfall.png"}
    assert {file.name for file in (TOOLS.parent / "pictures").glob("*.png")} == {file.name for file in taken}
    for file in taken:
        with Image.open(file) as picture:
            assert picture.width > 1000
