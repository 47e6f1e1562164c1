"""The hub's address and token, from the places of its own tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.hub_access import hub_credentials, hub_endpoint, hub_home
from hostler.profiles.sources import SourceError


def test_the_address_may_be_that_of_a_mirror() -> None:
    assert hub_endpoint({}) == "https://huggingface.co"
    assert hub_endpoint({"HF_ENDPOINT": "https://hf-mirror.example/"}) == "https://hf-mirror.example"


def test_the_token_is_that_of_the_environment_or_of_a_file(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert hub_home(home) == tmp_path
    assert hub_credentials(home) == {}
    (tmp_path / "token").write_text("hf_stored\n")
    assert hub_credentials(home) == {"Authorization": "Bearer hf_stored"}
    (tmp_path / "other").write_text("hf_other")
    assert hub_credentials({**home, "HF_TOKEN_PATH": str(tmp_path / "other")}) == {"Authorization": "Bearer hf_other"}
    assert hub_credentials({**home, "HF_TOKEN": "hf_env"}) == {"Authorization": "Bearer hf_env"}
    assert hub_credentials({"XDG_CACHE_HOME": str(tmp_path)}) == {}


def test_a_token_that_cannot_be_sent_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_ä")
    with pytest.raises(SourceError, match="contains characters") as caught:
        hub_credentials({"HF_HOME": str(tmp_path)})
    assert "hf_" not in str(caught.value)


@pytest.mark.parametrize("given", ["mirror.lan", "me:secret@mirror.lan", "ftp://mirror.lan", "https://", " "])
def test_an_address_without_a_scheme_is_said(given: str) -> None:
    with pytest.raises(SourceError, match="HF_ENDPOINT is not an address; write it like https:") as caught:
        hub_endpoint({"HF_ENDPOINT": given})
    assert "secret" not in str(caught.value)
