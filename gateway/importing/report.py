"""What an import takes over: the sections of a configuration file, files for secrets, and notes about every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from hostler.gateway.auth.keys import KeyRecord, digest
from hostler.profiles.schema import ModelFacts, name_key
from hostler.profiles.store import Written

NoteKind = Literal["taken", "changed", "missing", "meaningless"]

#: What is known about a model file on this machine: `None` if it is not there, or is not one.
FactsOf = Callable[[str], ModelFacts | None]

_REFERENCE = re.compile("\0([A-Za-z_][A-Za-z0-9_]*)\0")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._/@:-]+")


class ImportFailed(Exception):
    """The source cannot be read; the message names it and, where known, the line."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a key of the source. `line` is `None` where it has none, `text` says what it is now, or why not."""

    kind: NoteKind
    file: str
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}" + (f": {self.text}" if self.text else "")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The result. `secret_files` are the texts of files that only their owner may read, by their names beside the
    configuration file."""

    sections: Mapping[str, Any]
    secret_files: Mapping[str, str]
    notes: tuple[Note, ...]


class ImportReport:
    """Collects the sections, the secrets and the notes of an import. `file` is what notes call the source."""

    def __init__(self, file: str, prefix: str = "hostler") -> None:
        self.file = file
        self.sections: dict[str, Any] = {}
        self._prefix = prefix
        self._secrets: dict[str, str] = {}
        self._variables: dict[str, str] = {}
        self._keys: list[KeyRecord] = []
        self._notes: list[Note] = []

    def taken(self, line: int | None, key: str, text: str = "", *, file: str | None = None) -> None:
        """The key has the same effect as before."""
        self._note("taken", line, key, text, file)

    def changed(self, line: int | None, key: str, text: str, *, file: str | None = None) -> None:
        """The key was taken over with another effect, as `text` says."""
        self._note("changed", line, key, text, file)

    def missing(self, line: int | None, key: str, text: str, *, file: str | None = None) -> None:
        """The key was not taken over; `text` says why, or what to do instead."""
        self._note("missing", line, key, text, file)

    def note(self, kind: NoteKind, line: int | None, key: str, text: str = "", *, file: str | None = None) -> None:
        """Note a key as the method of this kind does. `meaningless`: it is about a part of the other program that does not exist
        here; without it nothing behaves differently."""
        self._note(kind, line, key, text, file)

    def _note(self, kind: NoteKind, line: int | None, key: str, text: str, file: str | None) -> None:
        key, text = (_REFERENCE.sub(r"${\1}", each) for each in (key, text))
        self._notes.append(Note(kind=kind, file=file or self.file, line=line, key=key, text=text))

    def set(self, *path: str, value: Any) -> None:
        """Set the value of a key, such as `gateway`, `logging`, `level`."""
        section = self.sections
        for step in path[:-1]:
            section = section.setdefault(step, {})
        section[path[-1]] = value

    def secret_file(self, name: str, secret: str) -> str:
        """The name of a new file for a secret, beside the configuration file."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "secret"
        file = f"{self._prefix}.{plain}.key"
        number = 2
        while self._secrets.get(file, secret) != secret:
            file, number = f"{self._prefix}.{plain}-{number}.key", number + 1
        self._secrets[file] = secret
        return file

    def environment_file(self, variable: str, value: str) -> str:
        """The name of a file beside the configuration file that sets the variable, as systemd and shells read it.

        Raises `ValueError` if no such file can set it.
        """
        if not _VARIABLE.fullmatch(variable) or not value.isprintable() or has_reference(value) or "'" in value:
            raise ValueError("set it where Hostler is started: a file cannot hold this name or value")
        self._variables[variable] = value
        return f"{self._prefix}.env"

    def add_client_key(self, line: int | None, key: str, value: str) -> None:
        """Let clients use this key: as a reference, else as its hash in a file of keys."""
        if _REFERENCE.fullmatch(value):
            self.sections.setdefault("gateway", {}).setdefault("api_keys", []).append(value)
            self.taken(line, key, "gateway.api_keys, as a reference to the variable")
            return
        if not value.strip() or "\0" in value:
            self.missing(line, key, "is empty or partly a variable; create a key with `hostler keys add`")
            return
        name = f"imported-{len(self._keys) + 1}"
        self._keys.append(KeyRecord(name=name, hash=digest(value), scopes=("infer", "read"), created=0))
        self.set("gateway", "api_keys_file", value=f"{self._prefix}.keys")
        self.changed(line, key, f"its hash is in {self._prefix}.keys under the name {name}, for inference and reading")

    def result(self) -> Imported:
        """What was collected."""
        files = {name: text + "\n" for name, text in self._secrets.items()}
        if self._variables:
            lines = (f"{name}='{value}'\n" for name, value in self._variables.items())
            files[f"{self._prefix}.env"] = "".join(lines)
        if self._keys:
            files[f"{self._prefix}.keys"] = "".join(msgspec.json.encode(each).decode() + "\n" for each in self._keys)
        notes = sorted(dict.fromkeys(self._notes), key=lambda note: (note.file, note.line or 0))
        return Imported(sections=as_written(self.sections), secret_files=files, notes=tuple(notes))


def reference(variable: str) -> str:
    """An environment variable in a text of the sections. Raises `ValueError` if it is not the name of one."""
    if not _VARIABLE.fullmatch(variable):
        raise ValueError(f"{variable!r} is not the name of an environment variable")
    return f"\0{variable}\0"


def has_reference(text: str) -> bool:
    """Whether an environment variable is part of the text."""
    return _REFERENCE.search(text) is not None


def as_written(value: Any) -> Any:
    """The value with references as a configuration file has them, and dollar signs that stand for themselves."""
    match value:
        case Written():
            return value
        case str() if has_reference(value):
            return Written(_REFERENCE.sub(r"${env:\1}", value.replace("$", "$$")))
        case list() | tuple():
            return [as_written(each) for each in value]
        case dict():
            return {_REFERENCE.sub(r"${\1}", key): as_written(each) for key, each in value.items()}
    return value


def as_template(word: str) -> Written:
    """A word of an engine's command, in which `${host}` and `${port}` are the variables of these names."""
    plain = re.sub(r"\$\$\{(host|port)\}", r"${\1}", word.replace("$", "$$"))
    return Written(_REFERENCE.sub(r"${env:\1}", plain))


class ProfileNames:
    """Names for profiles: valid ones, each given once."""

    def __init__(self, report: ImportReport) -> None:
        self._report = report
        self._owners: dict[str, str] = {}

    def claim(self, line: int | None, key: str, wanted: str) -> str:
        """The name, or a valid and free one like it, with a note."""
        name = plain_name(wanted)
        number = 2
        while name_key(name) in self._owners:
            name, number = f"{plain_name(wanted)}-{number}", number + 1
        self._owners[name_key(name)] = key
        if name != wanted:
            self._report.changed(line, key, f"is called {name} here")
        return name

    def claim_alias(self, line: int | None, key: str, wanted: str) -> str | None:
        """The name, if it is free; else `None` and a note."""
        name = plain_name(wanted)
        if (owner := self._owners.get(name_key(name))) is not None:
            self._report.missing(line, key, f"the name {name} is taken by {owner}")
            return None
        self._owners[name_key(name)] = key
        if name != wanted:
            self._report.changed(line, key, f"the name {wanted!r} is {name} here")
        return name


def plain_name(text: str) -> str:
    """The text as a name that profiles may have."""
    head, colon, tag = _NOT_IN_NAMES.sub("-", text).partition(":")
    segments = [segment.lstrip(".-") for segment in head.split("/")]
    head = "/".join(segment for segment in segments if segment)[:128] or "model"
    tag = tag.replace(":", "-").replace("/", "-").replace("@", "-").lstrip(".-")[:80]
    return head + (f":{tag}" if colon and tag else "")
