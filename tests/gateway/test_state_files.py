"""Where files are kept that no setting names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.state_files import service_directory, state_file, user_directory


@pytest.mark.parametrize(
    ("environ", "file"),
    [
        ({"STATE_DIRECTORY": "/var/lib/hostler", "XDG_STATE_HOME": "/x"}, "/var/lib/hostler/a.json"),
        ({"STATE_DIRECTORY": "/first:/second"}, "/first/a.json"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/x"}, "/x/hostler/a.json"),
        ({"XDG_STATE_HOME": ""}, "~/.local/state/hostler/a.json"),
        ({}, "~/.local/state/hostler/a.json"),
    ],
)
def test_a_file_is_in_the_directory_of_the_service_or_else_of_the_user(environ: dict[str, str], file: str) -> None:
    assert state_file("a.json", environ) == Path(file).expanduser()


def test_only_services_have_a_directory_of_their_own() -> None:
    assert service_directory({"XDG_STATE_HOME": "/x"}) is None
    assert user_directory({"STATE_DIRECTORY": "/a", "XDG_STATE_HOME": "/x"}) == Path("/x/hostler")
