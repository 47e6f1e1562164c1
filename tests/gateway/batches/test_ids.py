"""What the ids of files and batches say."""

from __future__ import annotations

import pytest

from hostler.gateway.batches.ids import (
    BATCH_PREFIX,
    FILE_PREFIX,
    MESSAGE_BATCH_PREFIX,
    gateway_of,
    moment_of,
    new_id,
    result_id,
)

OWN = "0123456789abcdef"


@pytest.mark.parametrize("prefix", [FILE_PREFIX, BATCH_PREFIX, MESSAGE_BATCH_PREFIX])
def test_an_id_says_which_gateway_has_what_it_names(prefix: str) -> None:
    first, second = new_id(prefix, OWN, 1.5), new_id(prefix, OWN, 1.5)
    assert first != second
    assert gateway_of(first) == OWN
    assert gateway_of(new_id(prefix, "", 1.5)) == ""
    assert moment_of(first) == moment_of(new_id(prefix, "", 1.5)) == 1_500_000


def test_so_do_those_of_results() -> None:
    results = result_id("out", new_id(BATCH_PREFIX, OWN, 1.0), 2.0)
    assert (gateway_of(results), moment_of(results)) == (OWN, 2_000_000)


def test_those_of_earlier_releases_say_no_moment() -> None:
    assert gateway_of(BATCH_PREFIX + OWN + "a" * 24) == OWN
    assert moment_of(BATCH_PREFIX + OWN + "a" * 24) is moment_of(BATCH_PREFIX + "a" * 24) is None


@pytest.mark.parametrize(
    "text", ["", "file-hst-", "batch_hst_" + "g" * 40, "other_" + "0" * 40, "batch_hst_" + "0" * 41]
)
def test_other_ids_say_nothing(text: str) -> None:
    assert gateway_of(text) == ""
