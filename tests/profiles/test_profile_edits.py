"""Changing profiles in a file without changing the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.profile_edits import add_profile
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import read_profiles
from hostler.profiles.yaml_config import DocumentError, Size, parse

MAIN = """\
# my home lab
gateway: {listen: ["127.0.0.1:8000"]}   # here
profiles:
    a:   # the first
        model:   ./x.gguf
        args: ["--flash-attn",  "on"]   # aligned
    # behind it

# tail
supervisor:
    token: ${env:NOT_SET_HERE}
"""


def test_adding_changes_no_other_byte(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(MAIN)
    path.chmod(0o640)
    add_profile(path, "b", ProfileEntry(base="a", context=64, args=("--x", "$1", "on"), memory=Size(5)))
    written = path.read_text()
    block = "    b:\n      base: a\n      context: 64\n      args:\n        - --x\n        - $$1\n        - on\n      memory: 5\n"
    assert written == MAIN.replace("# aligned\n", "# aligned\n" + block)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["hostler.yaml"]


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# only a comment\n",
        "profiles:\n",
        "profiles: {}   # none yet\nother: 1\n",
        "profiles: {a: {model: x}}\n",
        "other: 1\n",
        "a: {model: x}\n",
        "a:\n  model: x\n  description: >\n    long\n    text\n\n# tail\n",
        "profiles:\r\n  a:\r\n    model: x\r\n",
        "a:\n  model: x",
    ],
)
def test_adding_works_in_every_kind_of_file(tmp_path: Path, before: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(before.encode())
    add_profile(path, "new", ProfileEntry(model="/n.gguf"))
    after = path.read_bytes().decode()
    document = parse(after, "p.yaml", env={}).value
    profiles = document.get("profiles", document)
    assert profiles["new"] == {"model": "/n.gguf"}
    assert set(parse(before, "p.yaml", env={}).value) <= set(document)
    for line in before.splitlines():
        assert "#" not in line or line[line.index("#") :] in after


def test_a_rejected_addition_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(MAIN)
    for name, new in {
        "a": ProfileEntry(model="x"),
        "A": ProfileEntry(model="x"),
        "b": ProfileEntry(base="nowhere"),
        "c": ProfileEntry(model="x", context=0),
        "../d": ProfileEntry(model="x"),
    }.items():
        with pytest.raises(DocumentError):
            add_profile(path, name, new)
    assert path.read_text() == MAIN


def test_adding_follows_a_symlink(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text("a: {model: x}\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    add_profile(link, "b", ProfileEntry(model="y"))
    assert link.is_symlink()
    assert [profile.name for profile in read_profiles(real, env={})] == ["a", "b"]
