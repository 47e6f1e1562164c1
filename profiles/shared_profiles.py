"""Profiles that the members of a cluster share, as a document that says which hosts have which."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath

import msgspec

from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import is_hub_name, source_of
from hostler.profiles.yaml_config import Document, DocumentError, parse


class SharedProfiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole document. `hosts` are patterns of the names of hosts that have a profile, by its name; all have the others."""

    profiles: Mapping[str, ProfileEntry] = {}
    hosts: Mapping[str, tuple[str, ...]] = {}

    def of_host(self, *names: str) -> dict[str, ProfileEntry]:
        """The profiles of a host with any of these names."""
        return {
            profile: entry
            for profile, entry in self.profiles.items()
            if profile not in self.hosts
            or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.hosts[profile])
        }


def parse_shared_profiles(text: str, source: str, env: Mapping[str, str]) -> tuple[Document, SharedProfiles]:
    """The document; an empty one has no profiles. Raises `DocumentError` for the first mistake.

    It names no programs and sets no variables: what is executed on a host, its own file says.
    """
    document = parse(text, source, env=env)
    if document.value is None:
        return document, SharedProfiles()
    found = document.to(SharedProfiles)
    for error in _mistakes(document, found):
        raise error
    return document, found


class AnyVariable(Mapping[str, str]):
    """Variables of any name, for the check of a document that is for other machines."""

    def __getitem__(self, name: str) -> str:
        return f"/{name}"  # also where a path is expected

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _mistakes(document: Document, found: SharedProfiles) -> Iterator[DocumentError]:
    for name, entry in found.profiles.items():
        where = ("profiles", name)
        if entry.env:
            yield document.error(
                (*where, "env"), "is not shared; set it in each host's own file, in a profile for `base`"
            )
        if isinstance(entry.engine, str) and any(sign in entry.engine for sign in " /\\\t"):
            message = "is not shared; name a preset, or an entry of `engines` in each host's own file"
            yield document.error((*where, "engine"), message)
        for key in ("model", "mmproj", "draft"):
            text = getattr(entry, key)
            if isinstance(text, str) and text and _is_relative(text):
                message = f"{text} is a relative path; write the whole path on the hosts, or a web address"
                yield document.error((*where, key), message)
    for name in found.hosts:
        if name not in found.profiles:
            yield document.error(("hosts", name), f"is no profile; profiles are: {', '.join(found.profiles) or 'none'}")


def _is_relative(text: str) -> bool:
    if source_of(text).kind != "path" or text.startswith(("~", "${")):
        return False
    if is_hub_name(text) and not text.lower().endswith((".gguf", ".safetensors")):
        return False
    return not (Path(text).is_absolute() or PureWindowsPath(text).is_absolute())
