"""What importers collect: names, references, secrets."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.report import ImportReport, ProfileNames, plain_name, reference
from hostler.profiles.profile_edits import sections_text
from hostler.profiles.yaml_config import parse


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("qwen3:8b", "qwen3:8b"),
        ("My model (v2)", "My-model-v2-"),
        ("../../etc/passwd", "etc/passwd"),
        ("a:b:c", "a:b-c"),
        ("", "model"),
    ],
)
def test_every_text_has_a_valid_name(given: str, name: str) -> None:
    assert plain_name(given) == name


def test_a_name_is_given_once() -> None:
    report = ImportReport("x")
    names = ProfileNames(report)
    assert [names.claim(1, "a", "A"), names.claim(2, "b", "a"), names.claim_alias(3, "c", "a")] == ["A", "a-2", None]
    assert [note.kind for note in report.result().notes] == ["changed", "missing"]


def test_references_are_variables_and_dollar_signs_are_text() -> None:
    report = ImportReport("x")
    report.set("macros", "a", value=f"$5 ${{env:X}} {reference('KEY')}")
    text = sections_text(report.result().sections)
    assert parse(text, "x", env={"KEY": "value"}).value == {"macros": {"a": "$5 ${env:X} value"}}


def test_secrets_of_the_same_name_have_files_of_their_own() -> None:
    report = ImportReport("x")
    names = [report.secret_file("a/b", secret) for secret in ("1", "2", "1")]
    assert names == ["hostler.a-b.key", "hostler.a-b-2.key", "hostler.a-b.key"]


def test_a_client_key_is_kept_as_its_hash() -> None:
    report = ImportReport("x", "site")
    report.add_client_key(1, "key", "plain")
    assert "plain" not in report.result().secret_files["site.keys"]
    assert report.sections == {"gateway": {"api_keys_file": "site.keys"}}


def test_an_invalid_variable_is_refused() -> None:
    with pytest.raises(ValueError, match="is not the name"):
        reference("A-B")
