"""The manual page is that of the commands as they are, and programs that show such pages accept it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "hostler.1"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The program that writes the page."""
    spec = importlib.util.spec_from_file_location("man_page", ROOT / "docs" / "tools" / "man_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    expected = generator.manual_page()
    assert PAGE.read_text(encoding="utf-8") == expected, "run: python docs/tools/man_page.py"


def test_mandoc_has_no_objections() -> None:
    if (mandoc := shutil.which("mandoc")) is None:
        pytest.skip("needs mandoc")
    found = subprocess.run([mandoc, "-T", "lint", "-W", "warning", PAGE], capture_output=True, text=True)
    objections = found.stdout.splitlines() + found.stderr.splitlines()
    # A page without a date stays the same until the commands change.
    assert [each for each in objections if "missing date" not in each] == []


def test_man_shows_every_command() -> None:
    if (man := shutil.which("man")) is None:
        pytest.skip("needs man")
    command = [man, "--warnings", "-E", "UTF-8", "-l", str(PAGE)]
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "100", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "minimized" in found.stdout + found.stderr:  # Debian's containers have a man that shows nothing
        pytest.skip("needs a man that is not cut down")
    assert found.returncode == 0 and found.stderr == ""
    assert "hostler profiles rename [OPTIONS] MODEL NEW-NAME" in found.stdout
    assert "-c, --config FILE" in found.stdout
    assert "130    Interrupted." in found.stdout


def test_text_cannot_become_a_command_of_the_formatter(generator: ModuleType) -> None:
    assert generator._text(".hidden") == "\\&.hidden"
    assert generator._text("a\\b --long `x`\n  y") == "a\\eb \\-\\-long x y"
