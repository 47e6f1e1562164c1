"""The last good configuration: when it is used instead of the file, and what of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hostler.gateway.config import ConfigError, Configuration
from hostler.gateway.last_good import find_configuration, keep, kept_texts, load

GOOD = "profiles:\n  a: {model: /m.gguf}\n"
BROKEN = "profiles:\n  a: {modell: /m.gguf}\n"


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def file(tmp_path: Path, environ: Mapping[str, str]) -> Path:
    """A file that worked once."""
    path = tmp_path / "hostler.yaml"
    path.write_text(GOOD)
    keep(load(path, environ), environ)
    return path


def names(configuration: Configuration) -> list[str]:
    return [profile.name for profile in configuration.profiles]


def test_a_mistake_is_reported_and_the_last_good_state_used(file: Path, environ: Mapping[str, str]) -> None:
    file.write_text(BROKEN)
    found = load(file, environ)
    assert names(found) == ["a"]
    assert found.errors is not None
    assert found.errors.file == str(file)
    (mistake,) = found.errors.mistakes
    assert mistake.startswith(f"{file}:2: profiles.a.modell: unknown key")
    file.write_text(GOOD.replace("a:", "b:"))
    fixed = load(file, environ)
    assert (names(fixed), fixed.errors) == (["b"], None)


def test_what_keeps_a_valid_file_from_running_is_a_mistake_too(file: Path, environ: Mapping[str, str]) -> None:
    file.write_text(GOOD.replace("a:", "b:"))
    found = load(file, environ, find_mistakes=lambda each: ["no b here"] if names(each) == ["b"] else [])
    assert names(found) == ["a"]
    assert found.errors is not None and found.errors.mistakes == ("no b here",)


def test_without_a_good_state_the_mistakes_are_raised(tmp_path: Path, environ: Mapping[str, str]) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(BROKEN)
    with pytest.raises(ConfigError, match="did you mean model"):
        load(path, environ)


def test_a_state_that_was_good_but_cannot_run_now_is_not_used(file: Path, environ: Mapping[str, str]) -> None:
    file.write_text(BROKEN)
    with pytest.raises(ConfigError, match="did you mean model"):
        load(file, environ, find_mistakes=lambda _: ["the disk is gone"])


def test_a_file_that_became_empty_is_a_failed_save(file: Path, environ: Mapping[str, str]) -> None:
    file.write_text("")
    found = load(file, environ)
    assert names(found) == ["a"]
    assert found.errors is not None and "is empty, but was not before" in found.errors.mistakes[0]
    file.write_text("# nothing\n")
    assert load(file, environ).errors is None


def test_a_broken_manifest_is_replaced_together_with_the_file(tmp_path: Path, environ: Mapping[str, str]) -> None:
    path, manifest = tmp_path / "hostler.yaml", tmp_path / "more.yaml"
    path.write_text(GOOD + "manifest: more.yaml\n")
    manifest.write_text("b: {base: a}\n")
    keep(load(path, environ), environ)
    manifest.write_text("b: {base: gone}\n")
    found = load(path, environ)
    assert names(found) == ["a", "b"]
    assert found.errors is not None and "more.yaml:1" in found.errors.mistakes[0]


def test_models_that_clients_created_since_then_stay(file: Path, environ: Mapping[str, str]) -> None:
    library = file.with_name("hostler.models.yaml")
    library.write_text("profiles:\n  mine: {base: a}\n")
    file.write_text(BROKEN)
    assert names(load(file, environ)) == ["a", "mine"]
    keep_both = file.read_text()
    file.write_text(GOOD)
    keep(load(file, environ), environ)
    file.write_text(keep_both)
    library.write_text("profiles: [\n")
    assert names(load(file, environ)) == ["a", "mine"]


def test_it_is_kept_beside_the_file_and_readable_by_its_owner_only(file: Path, environ: Mapping[str, str]) -> None:
    place = file.with_name("hostler.last-good.json")
    assert place.stat().st_mode & 0o777 == 0o600
    stamp = place.stat().st_mtime_ns
    keep(load(file, environ), environ)
    assert place.stat().st_mtime_ns == stamp
    place.write_text("{")
    file.write_text(BROKEN)
    with pytest.raises(ConfigError):
        load(file, environ)


def test_it_is_kept_in_systemds_state_directory(tmp_path: Path) -> None:
    path, environ = tmp_path / "hostler.yaml", {"STATE_DIRECTORY": str(tmp_path / "var")}
    (tmp_path / "var").mkdir()
    path.write_text(GOOD)
    keep(load(path, environ), environ)
    assert (tmp_path / "var" / "hostler.last-good.json").exists()
    assert not path.with_name("hostler.last-good.json").exists()
    assert kept_texts(path, environ) == load(path, environ).texts


def test_the_copy_of_another_file_is_not_used(file: Path, environ: Mapping[str, str]) -> None:
    folder = file.parent / "elsewhere"
    folder.mkdir()
    file.with_name("hostler.last-good.json").rename(folder / "hostler.last-good.json")
    (folder / "hostler.yaml").write_text(BROKEN)
    with pytest.raises(ConfigError):
        load(folder / "hostler.yaml", environ)


@pytest.mark.parametrize("text", ["", "\n", "  \n\t\n", "\0\0\0"])
def test_a_file_of_white_space_is_a_failed_save_too(file: Path, environ: Mapping[str, str], text: str) -> None:
    file.write_text(text)
    found = load(file, environ)
    assert names(found) == ["a"]
    assert found.errors is not None


def damaged(path: Path, how: str) -> None:
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link to nowhere":
        path.symlink_to(path.with_name("gone"))
    elif how == "link to a device":
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["missing", "folder", "pipe", "link to nowhere", "link to a device"])
def test_a_named_file_that_cannot_be_read_any_more_is_a_mistake_like_others(
    file: Path, environ: Mapping[str, str], how: str
) -> None:
    damaged(file, how)
    for given, named in ((str(file), environ), (None, {**environ, "HOSTLER_CONFIG": str(file)})):
        found = load(find_configuration(given, named), named)
        assert names(found) == ["a"]
        assert found.errors is not None and str(file) in found.errors.mistakes[0]


def test_a_named_file_that_never_was_there_is_an_error(file: Path, environ: Mapping[str, str]) -> None:
    for name in ("none.yaml", "~nobody/hostler.yaml", "\0"):
        with pytest.raises(ConfigError, match="--config names"):
            find_configuration(name if name != "none.yaml" else str(file.with_name(name)), environ)
