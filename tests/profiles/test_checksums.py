"""Records of verified checksums."""

from __future__ import annotations

from pathlib import Path

from fakes.downloads import TINY

from hostler.profiles.checksums import known_sha256
from hostler.profiles.sources import ModelSource


def test_a_record_that_is_not_text_is_ignored(tmp_path: Path) -> None:
    file = ModelSource.parse(TINY).local_path(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    file.with_name("tiny.gguf.json").write_bytes(b'{"size":4,"mtime_ns":1,"sha256":"\xff"}')
    assert known_sha256(file, cache_dir=tmp_path) is None
