"""Commands for what the members of a cluster share: publish profiles and keys, and see which member uses which version."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hostler.gateway.cli.options import ConfigOption, JsonOption, echo, fail, print_json, read_configuration
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE

if TYPE_CHECKING:
    from hostler.gateway.cluster.configuration import SharedDocument
    from hostler.gateway.cluster.configuration_writer import ConfigurationWriter, MemberConfiguration

T = TypeVar("T")

config_app = typer.Typer(
    help="Share profiles and keys with all members of a cluster.", no_args_is_help=True, rich_markup_mode=None
)

#: How often members are asked whether they use a new version, in seconds.
_LOOK_S = 0.25


class Kind(StrEnum):
    profiles = "profiles"
    keys = "keys"


_KindArgument = Annotated[Kind, typer.Argument(metavar="KIND", help="profiles or keys.")]
_WaitOption = Annotated[
    float, typer.Option("--wait", min=0, max=3600, help="Seconds to wait until all members use it or refuse it.")
]
_BaseOption = Annotated[
    int | None, typer.Option("--base", min=0, help="Publish only if the version before it is this one.")
]


@config_app.command("push")
def config_push(
    kind: _KindArgument,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="File to publish. Default for keys: this gateway's key file.")
    ] = None,
    base: _BaseOption = None,
    wait: _WaitOption = 20.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a file as the newest version of what members share."""
    text = _text(kind, file, config)
    _publish(kind, text, base, wait, config, as_json)


@config_app.command("remove")
def config_remove(
    kind: _KindArgument,
    base: _BaseOption = None,
    wait: _WaitOption = 20.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop sharing a kind: members go on with their own files."""
    _publish(kind, "", base, wait, config, as_json)


@config_app.command("show")
def config_show(kind: _KindArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print what is shared: profiles as published, keys as hashes."""
    found = _with_writer(config, lambda writer: writer.current(kind.value))
    if found is None:
        fail(f"no {kind.value} are shared; publish some with `hostler config push {kind.value} FILE`", FAILED)
    if as_json:
        print_json({**_head(found), "text": found.text})
    elif _is_removed(found):
        fail(_shown(found), FAILED)  # not in a file that takes what is printed
    else:
        echo(found.text.rstrip("\n"))


@config_app.command("status")
def config_status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which version each member uses, or why it refuses one."""

    async def look(writer: ConfigurationWriter) -> tuple[list[SharedDocument], list[str], list[MemberConfiguration]]:
        from hostler.gateway.cluster.configuration_writer import UnreadableDocument

        documents, problems = [], []
        for kind in Kind:
            try:
                found = await writer.current(kind.value)
            except UnreadableDocument as error:
                problems.append(str(error))
                continue
            if found is not None:
                documents.append(found)
        return documents, problems, await writer.states()

    documents, problems, members = _with_writer(config, look)
    if as_json:
        print_json({"shared": [_head(each) for each in documents], "problems": problems, "members": members})
        return
    for line in (*map(_shown, documents), *problems):
        echo(line)
    if not documents and not problems:
        echo("Nothing is shared.")
    _print_members(members)


def _publish(kind: Kind, text: str, base: int | None, wait: float, config: str | None, as_json: bool) -> None:
    async def publish(writer: ConfigurationWriter) -> tuple[SharedDocument, list[MemberConfiguration] | None]:
        import anyio

        by = f"{_user()}@{socket.gethostname()}"
        document = await writer.publish(kind.value, text, by=by, base=base)
        members = await _members_with(kind, writer)
        with anyio.move_on_after(wait):
            while members is None or not all(_has_decided(each, document) for each in members):
                await anyio.sleep(_LOOK_S)
                members = await _members_with(kind, writer)
        return document, members

    document, members = _with_writer(config, publish)
    if as_json:
        print_json({**_head(document), "members": members})
    else:
        echo(_shown(document))
        _print_members(members or [])
        if members is None:
            echo(
                f"Version {document.version} is published. Who uses it is not known, since the store does not answer now: "
                "hostler config status"
            )
        elif not members:
            echo(
                f"No member that takes {kind.value} is there now. Those that come use it, unless they know a newer version."
            )
    if members is None or not all(_uses(each, document) for each in members):
        raise typer.Exit(FAILED)


async def _members_with(kind: Kind, writer: ConfigurationWriter) -> list[MemberConfiguration] | None:
    """The members that take this kind, with nothing else of them; `None` if the store does not answer."""
    import msgspec

    from hostler.gateway.cluster.configuration_writer import WriterError

    try:
        found = await writer.states()
    except WriterError:
        return None
    states = [(each, tuple(state for state in each.configuration if state.kind == kind)) for each in found]
    return [msgspec.structs.replace(each, configuration=of_kind) for each, of_kind in states if of_kind]


def _text(kind: Kind, file: str | None, config: str | None) -> str:
    """The text of a file, once it is known to be right for at least some member."""
    from hostler.gateway.auth.bind_policy import key_path
    from hostler.gateway.auth.keys import KeyFileError, parse_keys
    from hostler.profiles.shared_profiles import AnyVariable, parse_shared_profiles
    from hostler.profiles.store import read_text
    from hostler.profiles.yaml_config import DocumentError

    if file is None:
        if kind is Kind.profiles:
            fail("name the file with the profiles: hostler config push profiles FILE", USAGE)
        file = str(key_path(read_configuration(config).settings))
    try:
        text = read_text(Path(file))
        if kind is Kind.profiles:
            parse_shared_profiles(text, file, AnyVariable())
        else:
            parse_keys(text, file)
    except (DocumentError, KeyFileError) as error:
        fail(str(error), USAGE)
    if not text.strip():
        fail(f"{file} is empty; to stop sharing: hostler config remove {kind.value}", USAGE)
    return text


def _with_writer(config: str | None, use: Callable[[ConfigurationWriter], Awaitable[T]]) -> T:
    """What `use` returns with the store of the configured cluster. Exits with a message if that is not possible."""
    import anyio

    from hostler.gateway.cluster_settings import MISSING_CLUSTER_EXTRA
    from hostler.gateway.config import ConfigError, secret

    cluster = read_configuration(config).settings.cluster
    if cluster is None:
        fail(
            "the configuration file has no `cluster:`, whose members share what is published (see docs/cluster.md)",
            USAGE,
        )
    try:
        token = secret(cluster.token, cluster.token_file, "cluster.token_file")
    except ConfigError as error:
        fail(str(error), USAGE)
    if token is None:
        fail("cluster.token is not set: members believe only what the cluster's token has signed", USAGE)
    try:
        from hostler.gateway.cluster.configuration_writer import WriterError, open_writer
    except ModuleNotFoundError:
        fail(MISSING_CLUSTER_EXTRA, USAGE)

    async def main() -> T:
        async with open_writer(cluster, token) as writer:
            return await use(writer)

    try:
        return anyio.run(main)
    except WriterError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _has_decided(member: MemberConfiguration, document: SharedDocument) -> bool:
    """Whether a member that takes this kind has used or refused the document."""
    states = [each for each in member.configuration if each.kind == document.kind]
    return all(each.version >= document.version or each.refused >= document.version for each in states)


def _uses(member: MemberConfiguration, document: SharedDocument) -> bool:
    return all(each.version >= document.version for each in member.configuration if each.kind == document.kind)


def _print_members(members: list[MemberConfiguration]) -> None:
    from hostler.gateway.cli.formatting import Column, print_table

    rows = [
        (
            each.member,
            each.role,
            state.kind,
            str(state.version or "none"),
            f"refuses {state.refused}: {state.reason}" if state.refused else (state.reason or state.note),
        )
        for each in members
        for state in each.configuration
    ]
    columns = [
        Column("MEMBER", named=True), Column("ROLE"), Column("SHARES"), Column("VERSION", right=True),
        Column("", wraps=True),
    ]  # fmt: skip
    if rows:
        print_table(columns, rows)


def _shown(document: SharedDocument) -> str:
    from hostler.gateway.cli.formatting import format_time

    shown = f"{document.kind}: version {document.version}, by {document.by} at {format_time(document.at)}"
    return f"{shown}: nothing is shared any more" if _is_removed(document) else shown


def _is_removed(document: SharedDocument) -> bool:
    return not document.text.strip()


def _head(document: SharedDocument) -> dict[str, Any]:
    return {"kind": document.kind, "version": document.version, "at": document.at, "by": document.by}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in containers
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
