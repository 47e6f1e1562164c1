"""The settings that name files: all of them are checked, and relative ones start at the configuration file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hostler.gateway.file_settings import BACKEND_FILES, path_mistakes, with_absolute_paths
from hostler.gateway.settings import Settings


def settings(file: str) -> Settings:
    document = {
        "manifest": file,
        "gateway": {
            "tls": {"cert": file, "key": file},
            "api_keys_file": file,
            "key_usage_file": file,
            **{name: {"file": file} for name in ("spending", "recording", "responses", "library")},
        },
        "supervisor": {"tls": {"cert": file, "key": file}, "token_file": file, "slots_dir": file},
        "backends": {"lan": {"kind": "openai", "url": "http://lan", **dict.fromkeys(BACKEND_FILES, file)}},
    }
    return msgspec.convert(document, Settings)


@pytest.mark.parametrize("file", ["~nosuchuser/x", "a\0b", "a" * 256, "a/" * 3000, "\ud800"])
def test_every_path_that_cannot_name_a_file_is_a_mistake(file: str) -> None:
    keys = [key for key, _ in path_mistakes(settings(file))]
    assert len(keys) == len(set(keys)) == 13 + len(BACKEND_FILES)


def test_relative_paths_start_at_the_folder(tmp_path: Path) -> None:
    assert not list(path_mistakes(settings("x")))
    found = msgspec.to_builtins(with_absolute_paths(settings("x"), tmp_path), enc_hook=int)
    here = str(tmp_path / "x")
    assert found["gateway"]["tls"] == found["supervisor"]["tls"] == {"cert": here, "key": here}
    assert {found["gateway"][key] for key in ("api_keys_file", "key_usage_file")} == {here}
    assert {found["gateway"][key]["file"] for key in ("spending", "recording", "responses")} == {here}
    assert {found["backends"]["lan"][key] for key in BACKEND_FILES} == {here}
    assert found["supervisor"]["token_file"] == found["supervisor"]["slots_dir"] == here
