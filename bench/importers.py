"""How much of other servers' configuration `hostler import` takes over: `python -m bench.importers KIND PATH...`.

A path is an example, or a folder of examples; in Markdown files they are the fenced blocks of YAML or INI. A key counts
once, where it has a value of its own, with what the importer's notes say about it, the worst note if there are several.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.llama_server import import_llama_server, read_ini
from hostler.gateway.importing.llama_swap import import_llama_swap
from hostler.gateway.importing.report import Imported, ImportFailed, Note, NoteKind
from hostler.gateway.importing.yaml_source import YamlSource

#: The kinds of notes from the best to the worst, and `unnoted` for keys that the importer says nothing about.
Outcome = NoteKind | Literal["unnoted"]
OUTCOMES: Final[Mapping[Outcome, str]] = {
    "taken": "taken over",
    "changed": "changed",
    "meaningless": "no meaning",
    "missing": "not taken over",
    "unnoted": "unnoted",
}
#: The group of keys that no pattern below matches.
REST: Final = "models, routes, limits, fallbacks, logging"
_Groups = Mapping[str, tuple[str, str]]
#: What else an example may be about: patterns of its keys, and of the importer's notes about them.
GROUPS: Final[Mapping[str, _Groups]] = {
    "litellm": {
        "contents of requests are checked or changed": (
            r"(\w+\.)?(guardrail|polic|presidio|llm_?guard|llamaguard|google_moderation|openai_moderation|banned_|blocked_"
            r"|content_filter|prompt_injection|lakera|aporia|pangea|secret_detection|azure_content_safety|toxic_"
            r"|skip_system_message|compression)",
            r"(presidio|hide_secrets|llmguard_|llamaguard_|lakera|aporia|\w*moderation|banned_keywords"
            r"|blocked_user|detect_prompt_injection|compression|azure_content_safety)",
        ),
        "tools, agents, prompts, files, stores": (
            r"(\w+\.)?(search_tools|mcp|vector_store|prompt|global_prompt|sandbox|agent|a2a|finetune|assistant|skills"
            r"|websearch|code_interpreter|global_bitbucket|global_gitlab|dotprompt|advisor|rag|pass_through|enable_mcp)",
            r".*(tools are run by clients|prompt_management|puts prompts together|are those of clients|no vector stores)",
        ),
        "users, teams, databases, secret managers, mails": (
            r"(\w+\.)?(\w*jwt|\w*oauth|\w*sso|\w*team|\w*internal_user|\w*end_user|\w*customer|default_user|\w*rbac|role_"
            r"|custom_auth|custom_key|custom_ui|ui_|user_|database|store_model_in_db|supported_db|proxy_batch|proxy_budget"
            r"|use_redis_transaction|key_management|key_generation|\w*key_generate|\w*spend_|disable_spend|\w*_routes|alert"
            r"|email|slack|scim|control_plane|worker_registry|UI_|upperbound|enforce|tag_budget|license|\w*error_logs|allow_requests_on_db"
            r"|access_groups|public_model|service_account|budget_alert|disable_prisma|\w*adding_master|disable_reset)",
            r"(smtp_email|resend_email|sendgrid_email|slack)",
        ),
        "logs and bills at services with an interface of their own": (
            r"(\w+\.)?(callback_settings|\w*_callback_params|argilla|langfuse_|datadog_|langsmith_|audit_log_callbacks)",
            r".*(figures are at /metrics, and traces)",
        ),
        "Python code of one's own": (r"(\w+\.)?(custom_provider_map|post_call_rules)", r".*Python code"),
        "answers are cached": (r"(\w+\.)?(cache|enable_redis|redis_cache|\w*caching)", r"cache"),
        "providers with a protocol of their own": (
            r"\w+\.(vertex|default_vertex|bedrock|aws_|sagemaker)",
            r".*(a protocol of its own|sign-in of its own|is no known provider|chooses models by the contents)",
        ),
        "models and addresses that the example does not have": (
            r"$^",
            r".*(needs a name, and a model|there is no model|'<|needs an address)",
        ),
    },
    "llama-swap": {"models and ports that the example does not have": (r"$^", r".*(there is no model|no port)")},
    "llama-server": {},
}
_SUFFIXES: Final = {".yaml", ".yml", ".ini", ".md", ".mdx"}
_FENCE: Final = re.compile(r"^( *)```+[ \t]*(\w*)[^\n]*\n(.*?)^\1```+[ \t]*$", re.MULTILINE | re.DOTALL)
#: The sections by which an example is recognized.
_SECTIONS: Final = {
    "litellm": r"(model_list|(litellm|router|general)_settings|environment_variables|credential_list|guardrails)\s*:",
    "llama-swap": r"(models|macros|groups|matrix|hooks|peers|apiKeys|routing|profiles)\s*:",
    "llama-server": r"\[[^\]]+\]\s*$",
}


class Key(msgspec.Struct, frozen=True):
    """A key of an example, the group that it belongs to, and what became of it."""

    example: str
    line: int | None
    name: str
    group: str
    outcome: Outcome
    text: str = ""


def examples(kind: str, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """The names and texts of the examples in these files and folders."""
    section = re.compile(f"^{_SECTIONS[kind]}", re.MULTILINE)
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix not in _SUFFIXES or not file.is_file():
                continue
            text = file.read_text(encoding="utf-8-sig")
            found = _fenced(text) if file.suffix.startswith(".md") else [(0, text)]
            for line, example in found:
                if section.search(example):
                    yield f"{file}:{line}" if line else str(file), example


def _fenced(text: str) -> Iterator[tuple[int, str]]:
    for block in _FENCE.finditer(text):
        if block[2] not in ("", "yaml", "yml", "ini"):
            continue
        lines = (line.removeprefix(block[1]) for line in block[3].splitlines())
        yield text.count("\n", 0, block.start()) + 1, "\n".join(lines) + "\n"


def keys(kind: str, name: str, text: str) -> list[Key]:
    """All keys of an example. Raises `ImportFailed`."""
    found = _ini_keys(text, name) if kind == "llama-server" else _yaml_keys(YamlSource(text, name))
    notes: dict[str, list[Note]] = defaultdict(list)
    for note in _imported(kind, name, text).notes:
        notes[note.key].append(note)
    result = []
    for key, line in found:
        about = _closest(key, notes)
        worst = max(about, key=lambda note: list(OUTCOMES).index(note.kind), default=None)
        outcome: Outcome = worst.kind if worst else "unnoted"
        said = worst.text if worst else ""
        result.append(Key(name, line, key, _group(GROUPS[kind], key, said), outcome, said))
    return result


def _imported(kind: str, name: str, text: str) -> Imported:
    if kind == "litellm":
        return import_litellm(text, name, prefix="hostler")
    translate = import_llama_swap if kind == "llama-swap" else import_llama_server
    return translate(text, name, prefix="hostler", path_of=str, facts_of=lambda _: None)


def _closest(key: str, notes: Mapping[str, list[Note]]) -> list[Note]:
    """The notes about the key or its parts, else those about the closest section around it."""
    parts = [
        each for name, found in notes.items() if name.startswith((f"{key}.", f"{key}[", f"{key}:")) for each in found
    ]
    while key and key not in notes and not parts:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return notes.get(key, []) + parts


def _group(groups: _Groups, key: str, text: str) -> str:
    for name, (of_keys, of_notes) in groups.items():
        if re.match(of_keys, key) or re.match(of_notes, text):
            return name
    return REST


def _yaml_keys(source: YamlSource) -> Iterator[tuple[str, int | None]]:
    def walk(value: Any, path: tuple[str | int, ...], written: str) -> Iterator[tuple[str, int | None]]:
        if isinstance(value, dict) and value:
            for key, each in value.items():
                yield from walk(each, (*path, key), f"{written}.{key}" if written else key)
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            for index, each in enumerate(value):
                yield from walk(each, (*path, index), f"{written}[{index}]")
        elif value not in (None, {}):
            yield written, source.line(*path)

    return walk(source.value, (), "")


def _ini_keys(text: str, name: str) -> Iterator[tuple[str, int | None]]:
    for section, values in read_ini(text, name).items():
        for key, value in values.items():
            yield f"[{section}].{key}" if section else key, value.line


def table(found: list[Key]) -> str:
    """A Markdown table with a row for each group, and one for all keys."""
    lines = ["| keys about | keys | " + " | ".join(OUTCOMES.values()) + " | share taken over |"]
    lines.append("|" + " --- |" * (len(OUTCOMES) + 3))
    names = sorted({key.group for key in found}, key=lambda name: name != REST)
    for name in (*names, "all"):
        counts = Counter(key.outcome for key in found if name in (key.group, "all"))
        total = counts.total()
        cells = [name, str(total), *(str(counts[outcome]) for outcome in OUTCOMES)]
        lines.append("| " + " | ".join([*cells, f"{(counts['taken'] + counts['changed']) / max(total, 1):.1%}"]) + " |")
    return "\n".join(lines)


def reasons(found: list[Key]) -> Iterator[str]:
    """The keys that are not taken over with the notes about them, the most frequent first."""
    left = (key for key in found if key.outcome not in ("taken", "changed"))
    counts = Counter((key.group, key.outcome, re.sub(r"\[\d+\]", "[]", key.name), key.text) for key in left)
    for (group, outcome, name, text), times in counts.most_common():
        yield f"{times:4} {group}: {name}: {OUTCOMES[outcome]}{f': {text}' if text else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.importers", description=__doc__)
    parser.add_argument("kind", choices=list(GROUPS), help="whose examples they are")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="examples, and folders of examples")
    parser.add_argument("--reasons", action="store_true", help="list what is not taken over, and why")
    options = parser.parse_args()
    found: list[Key] = []
    count = 0
    for name, text in examples(options.kind, options.paths):
        try:
            found += keys(options.kind, name, text)
            count += 1
        except ImportFailed as error:
            print(f"left out: {error}", file=sys.stderr)
    print(f"{count} examples\n\n{table(found)}")
    if options.reasons:
        print("\n".join(["", *reasons(found)]))


if __name__ == "__main__":
    main()
