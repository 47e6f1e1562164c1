"""A type name has one owner in the whole project, so that a name says which thing is meant."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "adapters", "supervisor", "profiles")

#: Names that two modules may both define, each with the reason.
SHARED: dict[str, str] = {}


def type_names() -> dict[str, list[str]]:
    """Each public class and type alias, with the files that define it."""
    owners: dict[str, list[str]] = defaultdict(list)
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            else:
                continue
            if name[0].isupper() and not name.isupper():
                owners[name].append(str(file.relative_to(ROOT)))
    return owners


def test_a_type_name_has_one_owner() -> None:
    shared = {name: files for name, files in type_names().items() if len(files) > 1 and name not in SHARED}
    assert not shared


def test_every_exception_is_still_needed() -> None:
    names = type_names()
    assert not [name for name in SHARED if len(names[name]) < 2]
