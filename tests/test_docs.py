"""The documents are true: every setting has its row, every example loads, every link and file that is named exists.

Blocks marked `yaml` in Markdown are configuration files of ours; other programs' files are marked otherwise (`yml`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer
from msgspec import inspect

from hostler.gateway import config as settings
from hostler.gateway.admin.mcp_tools import TOOLS
from hostler.gateway.app import Gateway
from hostler.gateway.backends.failure_policy import AttemptResult, SkipReason
from hostler.gateway.cli.keys import keys_app
from hostler.gateway.cli.main import app
from hostler.gateway.cluster.ledger_layout import GONE_S, SILENT_S
from hostler.gateway.cluster.membership import HEARTBEAT_S, LIFETIME_S
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S
from hostler.gateway.context import RequestOutcome
from hostler.gateway.events import RequestFinished
from hostler.gateway.routing import Router
from hostler.gateway.settings import Settings
from hostler.profiles.engines import Engine, EngineEntry
from hostler.profiles.json_schema import field_descriptions
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.schema import Profile, ProfileEntry
from hostler.profiles.store import load_profiles
from hostler.profiles.yaml_config import Size, parse
from hostler.supervisor.lease_frames import EventFrame, RequestFrame

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "deploy/*.md", "bench/*.md") for path in ROOT.glob(pattern))
NOTHING = "–"


class Row(msgspec.Struct, frozen=True):
    """A line of the tables in docs/configuration.md."""

    key: str
    type: str
    default: str
    unit: str
    meaning: str
    example: str


def rows() -> dict[str, Row]:
    found = {}
    for line in CONFIGURATION.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            row = Row(cells[0].strip("`"), *cells[1:])
            assert row.key not in found, f"{row.key} has two rows"
            found[row.key] = row
    return found


def fields_of(shape: Any) -> tuple[inspect.Field, ...]:
    kind = inspect.type_info(shape)
    assert isinstance(kind, inspect.StructType)
    return kind.fields


def keys(shape: Any = Settings, prefix: str = "") -> Iterator[tuple[str, Any, inspect.Field]]:
    """Every key that a file can have, with the type that holds it; `NAME` stands for names that people choose."""
    for field in fields_of(shape):
        key = prefix + field.encode_name
        match _given(field.type):
            case [inspect.StructType(cls=inner)] if inner is RequestRules:
                yield from keys(inner, "request.")  # the same in several places, so documented once
            case [inspect.StructType(cls=inner)]:
                yield from keys(inner, f"{key}.")
            case [inspect.DictType(value_type=inspect.StructType(cls=inner))]:
                yield from keys(inner, f"{key}.NAME.")
            case [*_, inspect.StructType(cls=inner)]:  # or a short form of it
                yield key, shape, field
                yield from keys(inner, f"{key}.")
            case _:
                yield key, shape, field


def _given(kind: inspect.Type) -> list[inspect.Type]:
    """What a value can be when there is one."""
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    kinds = [member.type if isinstance(member, inspect.Metadata) else member for member in members]
    return [member for member in kinds if not isinstance(member, inspect.NoneType)]


def words(kind: inspect.Type) -> str:
    """A type as the document calls it."""
    return " or ".join(sorted((_word(each) for each in _given(kind)), key=lambda word: word.startswith("one of")))


def _word(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "whole number"
        case inspect.FloatType():
            return "number"
        case inspect.CustomType(cls=cls) if cls is Size:
            return "size"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(f"`{value}`" for value in sorted(values))
        case inspect.AnyType():
            return "anything"
        case inspect.VarTupleType(item_type=item):
            return f"list of {words(item)}"
        case inspect.DictType(value_type=value):
            return f"mapping of {words(value)}"
        case inspect.StructType():
            return "mapping"
    raise AssertionError(f"no word for {kind}")


def default_of(shape: Any, field: inspect.Field) -> Any:
    """What holds when the key is left out: of a profile's entry, what the profile itself says."""
    if shape is ProfileEntry:
        complete = {each.name: each for each in fields_of(Profile)}
        field = complete[field.name]
    elif shape is EngineEntry and field.name not in ("base", "macros"):
        complete = {each.name: each for each in fields_of(Engine)}
        field = complete[field.name]
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


KEYS = {key: (shape, field) for key, shape, field in keys()}
ROWS = rows()
each_key = pytest.mark.parametrize("key", KEYS)


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    assert sorted(ROWS) == sorted(KEYS)


@each_key
def test_the_type_of_a_key_is_as_documented(key: str) -> None:
    assert ROWS[key].type == words(KEYS[key][1].type)


@each_key
def test_the_default_of_a_key_is_as_documented(key: str) -> None:
    shape, field = KEYS[key]
    written = ROWS[key].default
    if (shape is ProfileEntry and field.name in ("model", "base")) or (shape is EngineEntry and field.name == "base"):
        assert written == NOTHING
        return
    default = default_of(shape, field)
    if shape is EngineEntry and field.name == "macros":
        default = {}
    if default is msgspec.NODEFAULT:
        assert written == "required"
    elif default is None:
        assert written == NOTHING
    else:
        value = parse(f"value: {written.strip('`')}".replace("$", "$$"), "the table", env={}).value["value"]
        plain = msgspec.json.decode(msgspec.json.encode(default, enc_hook=int))
        assert (Size.parse(value) if isinstance(default, Size) else value) == plain


@each_key
def test_the_unit_of_a_key_is_documented(key: str) -> None:
    row = ROWS[key]
    if key.endswith("_s"):
        assert row.unit == "seconds"
    elif row.type == "size":
        assert row.unit == "bytes"
    else:
        assert (row.unit != NOTHING) == ("number" in row.type)


@each_key
def test_the_meaning_of_a_key_is_the_description_of_its_field(key: str) -> None:
    shape, field = KEYS[key]
    text = re.sub(r"\[((?:[^\]`]|`[^`]*`)*)\]\([^)]*\)", r"\1", ROWS[key].meaning)  # without links
    assert text == field_descriptions(shape)[field.name]


@each_key
def test_the_example_of_a_key_is_a_valid_file(key: str, tmp_path: Path) -> None:
    *sections, name = key.split(".")
    lines = {f"{name}: {ROWS[key].example.strip('`')}"}
    url = "url: https://h:1" if name == "certificate" else "url: http://h:1"
    beside = {line for line in ("kind: supervisor", url) if not line.startswith(f"{name}:")}
    if sections and sections[0] == "request":
        inner = lines.pop()
        for section in reversed(sections):
            inner = f"{section}: {{{inner}}}"
        if sections[-1] == "NAME" and name not in ("keys", "clients"):
            inner = inner.replace("NAME: {", "NAME: {keys: [k], ")
        lines, sections = {"model: m", inner}, ["variants", "NAME"]
    if sections and sections[0] == "variants":
        lines.add("model: m") if name != "model" else None
    if sections and sections[-1] == "wake":
        lines |= {line for line in ('mac: "01:23:45:67:89:ab"',) if not line.startswith(f"{name}:")}
        sections[-1:] = []
        lines = {
            f"wake: {{{', '.join(sorted(lines))}}}",
            *(beside if sections != ["cluster"] else ("store: redis://h",)),
        }
    elif sections == ["supervisor", "sleep"]:
        lines |= {"after_s": {"suspend: true"}, "command": {"after_s: 60"}, "suspend": {"after_s: 60"}}[name]
    elif sections[-1:] == ["tls"]:
        lines |= {line for line in ("cert: a.crt", "key: a.key") if not line.startswith(f"{name}:")}
    elif sections[:2] == ["backends", "NAME"] and sections[2:] in (["limits"], ["timeouts"]):
        lines = {f"{sections.pop()}: {{{lines.pop()}}}", *(line.replace("supervisor", "openai") for line in beside)}
    elif sections[-2:] in (["prices", "NAME"], ["describe", "NAME"]):
        inner = sections[-2]
        sections[-2:] = []
        plain = {line.replace("supervisor", "openai") for line in beside}
        lines = {f"{inner}: {{NAME: {{{lines.pop()}}}}}", *plain}
    elif sections == ["cluster"]:
        lines |= {line for line in ("store: redis://h",) if not line.startswith(f"{name}:")}
    elif sections and sections[0] == "backends":
        if "supervisor" not in ROWS[key].meaning.lower() or ROWS[key].meaning.startswith("All kinds but"):
            beside = {line.replace("supervisor", "openai") for line in beside}
        if name == "client_key_file":
            beside.add("client_cert_file: /etc/hostler/client.pem")
        lines |= beside
    if sections and sections[0] == "profiles" and name not in ("model", "base"):
        lines.add("model: /models/some.gguf")
    if key == "engines.NAME.ready.status":
        lines.add("path: /health")
    indent = "  " * len(sections)
    text = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    text += "".join(f"{indent}{line}\n" for line in lines)
    if sections and sections[0] == "engines" and (len(sections) > 2 or name not in ("base", "command")):
        text += "    base: vllm\n"
    if key == "profiles.NAME.base":
        text += "  smollm2: {model: /models/some.gguf}\n"
    (tmp_path / "profiles.yaml").write_text("other: {model: /models/other.gguf}\n", encoding="utf-8")
    file = tmp_path / "hostler.yaml"
    file.write_text(text, encoding="utf-8")
    settings.read(file, environ={"HOME": "/root"})


def examples() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 2
            yield pytest.param(found[1], id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("text", [*examples()])
def test_an_example_in_a_document_loads(text: str, tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(text, encoding="utf-8")
    # A manifest that an example names belongs to the reader; it need not be here.
    if named := re.search(r"^manifest: (\S+)", text, re.MULTILINE):
        file.write_text(text.replace(named[0], "manifest: profiles.yaml"), encoding="utf-8")
        (tmp_path / "profiles.yaml").write_text("other: {model: /models/other.gguf}\n", encoding="utf-8")
    settings.read(file, environ=dict.fromkeys(re.findall(r"\$\{env:(\w+)\}", text), "secret"))


def shipped() -> Iterator[Any]:
    for path in [
        *ROOT.glob("profiles/*.yaml"),
        *ROOT.glob("deploy/*manifest*.yaml"),
        *ROOT.glob("deploy/hostler*.yaml"),
    ]:
        yield pytest.param(path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("file", [*shipped()])
def test_a_shipped_file_loads(file: Path) -> None:
    variables = dict.fromkeys(re.findall(r"\$\{env:(\w+)\}", file.read_text(encoding="utf-8")), "secret")
    if file.name.startswith("hostler"):
        settings.read(file, environ=variables)
    else:
        assert load_profiles(None, {}, file, env=variables)


def commands(command: Any, name: str) -> Iterator[str]:
    # By attribute: typer's groups are click's in some versions, its own in others.
    if hasattr(command, "commands"):
        for inner, each in command.commands.items():
            yield from commands(each, f"{name} {inner}")
    else:
        yield name


@pytest.mark.parametrize("command", [*commands(typer.main.get_command(app), "hostler")])
def test_a_command_is_documented(command: str) -> None:
    assert re.search(rf"^\|.*`{command}[ `]", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[Any]:
    for page in PAGES:
        for target in sorted(set(re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")))):
            if not re.match(r"[a-z]+:", target):
                yield pytest.param(page, target, id=f"{page.relative_to(ROOT)} -> {target}")


@pytest.mark.parametrize(("page", "target"), [*links()])
def test_a_link_in_a_document_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


def files_named() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        pattern = r"`((?:gateway|adapters|supervisor|profiles|tests|docs|deploy)/[\w./-]*)`"
        for name in sorted(set(re.findall(pattern, text))):
            yield pytest.param(name, id=f"{page.relative_to(ROOT)}: {name}")


@pytest.mark.parametrize("name", [*files_named()])
def test_a_file_that_a_document_names_exists(name: str) -> None:
    assert (ROOT / name).exists()


def section(title: str, page: Path = OPERATIONS) -> list[list[str]]:
    """The rows of the tables below a heading, as cells."""
    text = re.split(rf"^##+ {title}$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1].partition("\n##")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]


def test_fields_of_a_request_are_documented() -> None:
    fields = [name for row in section("Fields of a request") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(fields) == sorted(RequestFinished.__struct_fields__)


def test_headers_of_a_request_are_documented() -> None:
    source = (ROOT / "gateway" / "serving_headers.py").read_text(encoding="utf-8")
    sent = set(re.findall(r'\bb"(x-(?:request-id|hostler-[a-z-]+))"', source))
    assert sent == {row[1].strip("`").lower() for row in section("Fields of a request")} - {""}


def words_of(kind: str) -> set[str]:
    """The words of one kind in the table "Outcomes and reasons"."""
    return {row[0].strip("`") for row in section("Outcomes and reasons") if kind in row[1].split(", ")}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("request", set(get_args(RequestOutcome))),
        ("attempt", {*get_args(AttemptResult), "moved", "cancelled", "stopped", "gateway_failed"}),
        ("skipped", set(get_args(SkipReason))),
    ],
)
def test_outcomes_and_reasons_are_documented(kind: str, words: set[str]) -> None:
    assert words_of(kind) == words


def test_the_routes_of_the_gateway_itself_are_documented() -> None:
    shown = {}
    for paths, scope, _ in section("HTTP routes"):
        method = "any"
        for found in re.finditer(r"`(?:([A-Z]+) )?(/[a-z_./{}]+)", paths):
            method = found[1] or method
            shown[found[2]] = method, "open" if scope == "none" else scope.partition(",")[0]
    router = Gateway(Settings()).app.routes[0]
    assert isinstance(router, Router)
    operations = [each.operation for each in router.routes() if each.adapter is None]
    served = {
        each.path.rstrip("/"): ("any" if len(each.methods) > 1 else each.methods[0], each.scope)
        for each in operations
        if each.path.strip("/") and not each.path.startswith("/ui")
    }
    assert shown == served


def test_the_tools_of_agents_are_documented() -> None:
    shown = {}
    for names, scope, _ in section("Agents", CONFIGURATION):
        shown |= dict.fromkeys(re.findall(r"`(\w+)`", names), scope)
    assert shown == {tool.name: tool.scope for tool in TOOLS}


def test_the_frames_between_gateways_and_supervisors_are_documented() -> None:
    shown = {}
    for names, fields, _ in section("The connection of a gateway"):
        for name, each in zip(re.findall(r"`(\w+)`", names), fields.split(";"), strict=True):
            shown[name] = len(each.split(",")) if each else 0
    frames = {*get_args(RequestFrame), *get_args(EventFrame)}
    assert shown == {frame.__struct_config__.tag: len(frame.__struct_fields__) for frame in frames}


def test_the_times_of_a_cluster_are_documented() -> None:
    text = " ".join((ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").split())
    assert f"every {HEARTBEAT_S:g} seconds" in text
    assert f"after {LIFETIME_S:g} seconds of silence" in text
    request_ms, background_ms = 1000 * REQUEST_LIMIT_S, 1000 * BACKGROUND_LIMIT_S
    assert f"{request_ms:g} ms within a request, {background_ms:g} ms in the background" in text
    assert f"writes in a row within {request_ms:g} ms each" in text
    assert f"not heard of for {SILENT_S:g} seconds" in text
    assert f"or for {GONE_S:g} seconds" in text


def test_the_options_of_keys_are_documented() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8").partition("\n## Keys and scopes\n")[2].partition("\n## ")[0]
    shown = set(re.findall(r"`(--[a-z-]+)[` ]", text))
    group: Any = typer.main.get_command(keys_app)
    options = {parameter.opts[0] for each in group.commands.values() for parameter in each.params}
    assert shown == options - {"name", "--config", "--json"}


def sessions_named() -> Iterator[Any]:
    for page in PAGES:
        for found in re.finditer(r'nox -s "?([a-z]+(?: [a-z]+)*)', page.read_text(encoding="utf-8")):
            for name in found[1].split():
                yield pytest.param(name, id=f"{page.relative_to(ROOT)}: {name}")


@pytest.mark.parametrize("name", [*sessions_named()])
def test_a_nox_session_that_a_document_names_exists(name: str) -> None:
    assert f"\ndef {name}(session: nox.Session" in (ROOT / "noxfile.py").read_text(encoding="utf-8")


def test_the_map_of_imports_is_that_of_the_contract() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = " ".join(text.partition("inside the gateway:\n")[2].partition("```")[0].split())
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == ["hostler.gateway"])
    assert shown.split(" > ") == layers
