"""What the ids of files and batches say."""

from __future__ import annotations

import pytest

from hostler.gateway.batches.ids import BATCH_PREFIX, FILE_PREFIX, MESSAGE_BATCH_PREFIX, gateway_of, new_id

OWN = "0123456789abcdef"


@pytest.mark.parametrize("prefix", [FILE_PREFIX, BATCH_PREFIX, MESSAGE_BATCH_PREFIX])
def test_an_id_says_which_gateway_has_what_it_names(prefix: str) -> None:
    first, second = new_id(prefix, OWN), new_id(prefix, OWN)
    assert first != second
    assert gateway_of(first) == OWN
    assert gateway_of(new_id(prefix, "")) == ""


def test_so_do_those_of_results() -> None:
    batch = new_id(BATCH_PREFIX, OWN).rpartition("_")[2]
    assert gateway_of(f"file-hst-out{batch}") == gateway_of(f"file-hst-err{batch}") == OWN


@pytest.mark.parametrize(
    "text", ["", "file-hst-", "batch_hst_" + "g" * 40, "other_" + "0" * 40, "batch_hst_" + "0" * 41]
)
def test_other_ids_say_nothing(text: str) -> None:
    assert gateway_of(text) == ""
