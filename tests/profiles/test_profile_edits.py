"""Changing profiles in a file without changing the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.profile_edits import add_profile, remove_profile, rename_profile, sections_text
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import Written, load_profiles
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
    assert [profile.name for profile in load_profiles(None, {}, real, env={})] == ["a", "b"]


WITH_REFERENCES = """\
# mine
profiles:
  a:   # the first
    model: x.gguf
  b:
    base: a   # see above
    context: 64
  c: {model: y.gguf}
variants: {"a:high": {model: a}}
supervisor:
  groups: {one: [a, b]}
  sets: [[a, c]]   # together
"""


def test_removing_changes_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WITH_REFERENCES)
    remove_profile(path, "b")
    assert path.read_text() == WITH_REFERENCES.replace("  b:\n    base: a   # see above\n    context: 64\n", "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("profiles: {a: {model: x}, b: {model: y}}\n", ["b"]),
        ("a: {model: x}\nb: {model: y}\n", ["b"]),
        ("profiles:\n  a: {model: x}\n", []),
        ("profiles:\n  scan: [m]\n  a: {model: x}\n", []),
    ],
)
def test_removing_works_in_every_kind_of_file(tmp_path: Path, before: str, after: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(before)
    remove_profile(path, "a")
    value = parse(path.read_text(), str(path), env={}).value
    profiles = value.get("profiles", value) or {}
    assert [name for name in profiles if name != "scan"] == after


def test_what_others_build_on_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WITH_REFERENCES)
    with pytest.raises(DocumentError, match="unknown profile a"):
        remove_profile(path, "a")
    with pytest.raises(DocumentError, match="there is no profile d in this file; profiles are: a, b, c"):
        remove_profile(path, "d")
    assert path.read_text() == WITH_REFERENCES


@pytest.mark.parametrize(("name", "written"), [("new", "new"), ("qwen3:8b", '"qwen3:8b"'), ("no", '"no"')])
def test_renaming_changes_every_mention(tmp_path: Path, name: str, written: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WITH_REFERENCES)
    rename_profile(path, "a", name)
    expected = WITH_REFERENCES.replace("  a:   #", f"  {written}:   #").replace("base: a ", f"base: {written} ")
    expected = expected.replace("{model: a}", f"{{model: {written}}}").replace("[a, b]", f"[{written}, b]")
    assert path.read_text() == expected.replace("[[a, c]]", f"[[{written}, c]]")


@pytest.mark.parametrize(
    ("name", "new", "message"),
    [("a", "b", "already exists"), ("d", "e", "there is no profile d"), ("a", "x y", "is not a valid name")],
)
def test_a_rejected_new_name_leaves_the_file_alone(tmp_path: Path, name: str, new: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WITH_REFERENCES)
    with pytest.raises(DocumentError, match=message):
        rename_profile(path, name, new)
    assert path.read_text() == WITH_REFERENCES


def test_dollar_signs_are_text_unless_they_are_written_as_variables() -> None:
    text = sections_text({"macros": {"a": "$HOME ${env:X}", "b": Written("${env:X}")}})
    assert text == "macros:\n  a: $$HOME $${env:X}\n  b: ${env:X}\n"
