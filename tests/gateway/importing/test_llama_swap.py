"""llama-swap's configuration: every documented key, and what becomes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hostler.gateway.importing.llama_swap import import_llama_swap
from hostler.gateway.importing.report import Imported, ImportFailed
from hostler.profiles.profile_edits import sections_text
from hostler.profiles.schema import ModelFacts
from hostler.profiles.yaml_config import parse

#: Every key of llama-swap's documentation.
EVERYTHING = """\
healthCheckTimeout: 240
logLevel: warn
logTimeFormat: ""
logToStdout: proxy
metricsMaxInMemory: 500
captureBuffer: 15
startPort: 9100
sendLoadingState: true
includeAliasesInList: false
globalTTL: 600
macros:
  server: >
    llama-server
    --port ${PORT}
  window: 8192
apiKeys:
  - plain-secret-key
  - ${env.CLIENT_KEY}
models:
  chat:
    macros:
      window: 16384
    cmd: |
      # the macro is above
      ${server} --model chat.gguf --ctx-size ${window} -ngl 99 --temp 0.6
    name: Chat
    description: everyday questions
    env:
      - CUDA_VISIBLE_DEVICES=0
    ttl: 120
    filters:
      stripParams: "temperature, model, top_p"
      setParams:
        seed: 7
      setParamsByID:
        "${MODEL_ID}:long":
          chat_template_kwargs: {reasoning_effort: high}
    aliases:
      - id: gpt-4o
        name: gpt-4o
        unlisted: false
      - everyday
    metadata:
      port: ${PORT}
    concurrencyLimit: 3
    sendLoadingState: false
    timeouts:
      connect: 20
      responseHeader: 90
      keepalive: 30
      tlsHandshake: 10
      idleConn: 90
    unlisted: true
  speech:
    cmd: docker run --name ${MODEL_ID} -p ${PORT}:8000 speech-image
    cmdStop: docker stop ${MODEL_ID}
    proxy: http://127.0.0.1:${PORT}
    checkEndpoint: /ready
    useModelName: vendor/speech
matrix:
  vars: {c: chat, s: speech}
  evict_costs: {s: 40}
  sets:
    both: c & s
hooks:
  on_startup:
    preload: [chat]
peers:
  other:
    proxy: https://other.example
    models: [big]
    apiKey: peer-secret-key
    filters:
      stripParams: top_k
      setParams: {store: false}
    timeouts: {connect: 30, keepalive: 30, responseHeader: 60, tlsHandshake: 10, idleConn: 90}
"""


def translate(text: str, facts: ModelFacts | None = None) -> Imported:
    return import_llama_swap(
        text, "config.yaml", prefix="hostler", path_of=lambda path: f"/srv/{path}", facts_of=lambda _: facts
    )


def texts(imported: Imported, kind: str) -> list[str]:
    return [str(note) for note in imported.notes if note.kind == kind]


def profile(text: str, name: str = "m") -> Any:
    return translate(text).sections["profiles"][name]


def test_a_command_of_llama_server_becomes_a_profile() -> None:
    chat = profile(EVERYTHING, "chat")
    assert chat["model"] == "/srv/chat.gguf" and chat["context"] == 16384 and chat["gpu_layers"] == 99
    assert chat["args"] == ["--temp", "0.6"] and chat["env"] == {"CUDA_VISIBLE_DEVICES": "0"}
    assert chat["ttl_s"] == 120 and chat["max_concurrent"] == 3 and chat["listed"] is False and chat["preload"] is True
    assert chat["description"] == "Chat: everyday questions" and chat["aliases"] == ["gpt-4o", "everyday"]
    assert chat["request"] == {"drop": ["temperature", "top_p"], "force": {"seed": 7}} and chat["first_byte_s"] == 90


def test_parameters_of_an_id_become_a_variant() -> None:
    variant = translate(EVERYTHING).sections["variants"]["chat:long"]
    assert variant["model"] == "chat"
    assert variant["request"] == {"force": {"chat_template_kwargs": {"reasoning_effort": "high"}}}


def test_another_command_becomes_an_engine() -> None:
    imported = translate(EVERYTHING)
    engine = imported.sections["engines"]["speech"]
    assert engine["command"] == ["docker", "run", "--name", "speech", "-p", "${port}:8000", "speech-image"]
    assert engine["stop"] == {"command": ["docker", "stop", "speech"]} and engine["listens"] == "anywhere"
    assert engine["ready"] == {"path": "/ready", "status": 200} and engine["model_name"] == "vendor/speech"
    assert imported.sections["profiles"]["speech"] == {"engine": "speech", "ttl_s": 600, "evict_cost": 40.0}


def test_a_fixed_port_is_replaced() -> None:
    text = "models:\n  m:\n    cmd: serve --listen 127.0.0.1:9000 --limit 90001\n    proxy: http://localhost:9000/api\n"
    engine = translate(text).sections["engines"]["m"]
    assert engine["command"] == ["serve", "--listen", "127.0.0.1:${port}", "--limit", "90001"]
    assert engine["prefix"] == "/api"


def test_a_command_without_a_port_is_not_taken_over() -> None:
    imported = translate("models:\n  m:\n    cmd: serve\n")
    assert "profiles" not in imported.sections
    assert texts(imported, "missing") == [
        "config.yaml:3: models.m.cmd: passes no port on, so that the engine would not be found; the model is not taken over"
    ]


def test_a_server_of_its_own_is_one_engine_for_all_of_its_models() -> None:
    command = "/opt/llama/llama-server-b9 --port ${PORT} -m"
    imported = translate(f"models:\n  a: {{cmd: '{command} a.gguf'}}\n  b: {{cmd: '{command} b.gguf'}}\n")
    assert imported.sections["engines"] == {
        "llama-server-b9": {"base": "llama-server", "command": ["/opt/llama/llama-server-b9"]}
    }


def test_settings_of_the_server_have_their_places() -> None:
    sections = translate(EVERYTHING).sections
    assert sections["supervisor"] == {
        "start_timeout_s": 240.0, "engine_ports": "9100-10099", "sets": [["chat", "speech"]]
    }  # fmt: skip
    assert sections["gateway"]["logging"] == {"level": "warning"} and sections["gateway"]["timeouts"]["connect_s"] == 20
    assert sections["gateway"]["switching"] == {"progress": "thinking"}


def test_secrets_are_references_or_in_files_of_their_own() -> None:
    imported = translate(EVERYTHING)
    text = sections_text(imported.sections)
    assert "plain-secret-key" not in text and "peer-secret-key" not in text
    assert "plain-secret-key" not in "".join(imported.secret_files.values())
    assert imported.secret_files["hostler.other.key"] == "peer-secret-key\n"
    assert "- ${env:CLIENT_KEY}" in text
    assert not [note for note in imported.notes if "secret" in str(note)]


def test_a_peer_becomes_a_backend() -> None:
    other = translate(EVERYTHING).sections["backends"]["other"]
    assert other["url"] == "https://other.example/v1" and other["models"] == {"big": "big"}
    assert other["request"] == {"drop": ["top_k"], "force": {"store": False}}
    assert other["timeouts"] == {"connect_s": 30, "first_byte_s": 60}


def test_metadata_and_progress_are_those_of_the_profile() -> None:
    metadata = "{port: '${PORT}', size: 7, tags: [a, 'at ${PORT}'], deep: {url: 'http://h:${PORT}', fast: true}}"
    model = f"{{cmd: llama-server -m x.gguf, sendLoadingState: true, metadata: {metadata}}}"
    imported = translate(f"models: {{m: {model}}}")
    found = imported.sections["profiles"]["m"]
    assert found["metadata"] == {"size": 7, "tags": ["a"], "deep": {"fast": True}} and found["progress"] == "thinking"
    assert "another port at each start" in "".join(texts(imported, "changed"))


def test_groups_and_peers_whose_names_are_alike_stay_apart() -> None:
    models = "".join(f"  {name}: {{cmd: 'llama-server -m {name}.gguf'}}\n" for name in "abcd")
    groups = "groups:\n  g x: {persistent: true, members: [a, b]}\n  g-x: {persistent: true, members: [c, d]}\n"
    peers = "peers: {p x: {proxy: 'http://one', models: [m]}, p-x: {proxy: 'http://two', models: [n]}}\n"
    sections = translate(f"models:\n{models}{groups}{peers}").sections
    assert sections["supervisor"]["groups"] == {"g-x": ["a", "b"], "g-x-2": ["c", "d"]}
    assert {name: each["url"] for name, each in sections["backends"].items()} == {
        "p-x": "http://one/v1", "p-x-2": "http://two/v1"
    }  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), [("true", "taken"), ("false", "changed")])
def test_aliases_are_listed_in_any_case(value: str, kind: str) -> None:
    notes = texts(translate(f"includeAliasesInList: {value}\nmodels: {{}}\n"), kind)
    assert any("has entries for aliases" in note for note in notes)


def test_the_documented_keys_that_have_no_counterpart_are_these() -> None:
    kinds: dict[str, set[str]] = {}
    for note in translate(EVERYTHING).notes:
        kinds.setdefault(re.sub(r"\[\d+\]", "", note.key), set()).add(note.kind)
    assert kinds.pop("models.chat.filters") == {"missing"}  # stripParams names the model, which nothing removes
    missing = {key for key, each in kinds.items() if each == {"missing"}}
    assert missing == set()


@pytest.mark.parametrize(
    "settings",
    [
        "models: {m: {cmd: 'llama-server -m x.gguf', filters: {setParamsByID: {'m:x': {stream: true}}}}}",
        "peers: {p: {proxy: 'https://p.example', filters: {setParams: {stream: true}}}}",
    ],
)
def test_a_parameter_that_no_rule_can_set_is_reported(settings: str) -> None:
    assert "stream cannot be changed by a rule" in "\n".join(texts(translate(settings), "missing"))


def test_an_unknown_model_of_a_set_is_reported() -> None:
    imported = translate("models: {a: {cmd: llama-server -m a.gguf}}\nmatrix: {sets: {s: a & gone}}")
    assert imported.sections["supervisor"]["sets"] == [["a"]]
    assert texts(imported, "missing") == ["config.yaml:2: matrix.sets: not taken over: gone"]


def test_every_note_has_a_line() -> None:
    assert all(note.line for note in translate(EVERYTHING).notes)


def test_an_unknown_key_is_reported() -> None:
    imported = translate("models: {m: {cmd: llama-server -m x.gguf, colour: red}}\nshape: round\n")
    assert [note.key for note in imported.notes if note.kind == "missing"] == ["models.m.colour", "shape"]


def test_groups_become_sets() -> None:
    models = "".join(f"  {name}: {{cmd: 'llama-server -m {name}.gguf'}}\n" for name in "abcde")
    groups = "groups:\n  g: {swap: false, exclusive: true, members: [a, b]}\n  p: {persistent: true, swap: false, members: [c]}\n"
    supervisor = translate(f"models:\n{models}{groups}").sections["supervisor"]
    assert supervisor["sets"] == [["a", "b", "c"], ["d", "c"], ["e", "c"]]


@pytest.mark.parametrize(
    ("groups", "note"),
    [
        (
            "{e: {members: [a]}, n: {exclusive: false, members: [b, c]}}",
            "groups.n: its models stay loaded beside|groups.e: its models do not unload those of n",
        ),
        ("{n: {exclusive: false, members: [a, b]}}", "groups.n: its models stay loaded beside"),  # c is in no group
        ("{p: {persistent: true, members: [a]}}", "groups.p: its models do not unload those of other groups"),
        ("{n: {exclusive: false, members: [a, b, c]}}", ""),
        ("{e: {members: [a]}, p: {persistent: true, exclusive: false, members: [b, c]}}", ""),
    ],
)
def test_what_stays_loaded_beside_an_exclusive_group_is_reported(groups: str, note: str) -> None:
    models = "".join(f"  {name}: {{cmd: 'llama-server -m {name}.gguf'}}\n" for name in "abc")
    imported = translate(f"models:\n{models}groups: {groups}\n")
    changed = [each for each in texts(imported, "changed") if "groups." in each]
    expected = note.split("|") if note else []
    assert len(changed) == len(expected)
    assert all(any(one in each for each in changed) for one in expected)


@pytest.mark.parametrize(
    ("macros", "reason"),
    [("a: ${b}\n  b: ${a}", "contain themselves"), ("c: 1", "the macro a is not defined")],
)
def test_a_model_with_bad_macros_is_not_taken_over(macros: str, reason: str) -> None:
    imported = translate(f"macros:\n  {macros}\nmodels:\n  m: {{cmd: '${{a}} -m x.gguf'}}\n")
    assert "profiles" not in imported.sections and reason in "\n".join(texts(imported, "missing"))


@pytest.mark.parametrize(
    "model",
    [
        "{cmd: \"sh -c 'exec serve --port ${PORT} --name ${NAME:-x}'\"}",
        "{cmd: 'llama-server -m x.gguf --chat-template ${a b}'}",
        "{cmd: 'llama-server -m x.gguf', env: ['A=${#B}']}",
    ],
)
def test_a_command_with_variables_of_a_shell_is_not_taken_over(model: str) -> None:
    imported = translate(f"models: {{m: {model}}}")
    assert "profiles" not in imported.sections and "engines" not in imported.sections
    assert "put it into a script" in "\n".join(texts(imported, "missing"))


def test_words_that_a_shell_would_understand_stay_words() -> None:
    command = "serve --port ${PORT} a;b 'x | y' $HOME `id` $(id) > log"
    text = sections_text(translate(f'models: {{m: {{cmd: "{command}"}}}}').sections)
    assert parse(text, "x", env={}).value["engines"]["m"]["command"] == [
        "serve", "--port", "${port}", "a;b", "x | y", "$HOME", "`id`", "$(id)", ">", "log",
    ]  # fmt: skip


def test_a_macro_in_a_comment_is_none() -> None:
    text = "macros:\n  bin: |\n    llama-server\n    --jinja\nmodels:\n  m:\n    cmd: |\n      # ${bin} is above, and ${gone}\n      ${bin} -m x.gguf\n"
    assert profile(text) == {"model": "/srv/x.gguf", "args": ["--jinja"]}


def test_macros_that_multiply_end_early() -> None:
    macros = "".join(f"  m{n}: '{f'${{m{n + 1}}}' * 10}'\n" for n in range(14)) + "  m14: x\n"
    imported = translate(f"macros:\n{macros}models:\n  m: {{cmd: '${{m0}}'}}\n")
    assert "too much text" in "\n".join(texts(imported, "missing"))


def test_variables_stay_references() -> None:
    imported = translate("models: {m: {cmd: 'llama-server -m ${env.MODELS}/x.gguf --temp ${env.T}'}}")
    text = sections_text(imported.sections)
    assert "model: /srv/${env:MODELS}/x.gguf" in text and "${env:T}" in text and "\0" not in str(imported.notes)


@pytest.mark.parametrize(
    "setting",
    [
        "healthCheckTimeout: .inf", "globalTTL: .nan", "startPort: 99999", "logLevel: [a]", "apiKeys: [{a: 1}]",
        "groups: {g: {members: [{a: 1}]}}", "peers: {p: {proxy: 7}}", "hooks: {on_startup: {preload: [[1]]}}",
        "matrix: {vars: {a: [1]}, evict_costs: {a: .inf}, sets: {s: 7}}",
    ],
)  # fmt: skip
def test_odd_values_are_reported(setting: str) -> None:
    assert translate(f"{setting}\nmodels: {{m: {{cmd: llama-server -m x.gguf}}}}").sections["profiles"]["m"]


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "models: [", "models: 7", "models: {m: 7}", "models: !!python/object:os.system {}", "a: &a [*a]", "\0"],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ImportFailed, match=r"config\.yaml"):
        translate(text)


NEWER = """\
unloadTimeout: 20
ui: {activity: {session_id: [X-Session-ID]}}
performance: {disabled: false}
upstream: {ignorePaths: ['\\.js$']}
profiles: {coding: {pins: {code: a}}}
selectors:
  fast: {strategy: pin, targets: [a, b], name: Fast}
  warm-one: {strategy: warm, targets: [b, a]}
  nothing: {strategy: pin, targets: [far/x]}
models:
  a:
    cmd: llama-server --port ${PORT} -m a.gguf
    unloadTimeout: 5
    compat: {ignoreWebsockets: true}
    capabilities: {tools: true, context: 32000}
  b:
    cmd: my-server --listen ${PORT}
    unloadTimeout: 0
    capabilities: {in: [text, image, audio], tools: true, reranker: true, context: 8192}
routing:
  router:
    use: USED
    settings:
      groups: {all: {swap: false, members: [a, b]}}
      matrix: {vars: {x: a}, evict_costs: {b: 9}, sets: {one: x & b}}
  scheduler: {use: fifo, settings: {fifo: {priority: {a: 10}}}}
"""


def test_newer_settings_are_taken_over_or_said() -> None:
    imported = translate(NEWER.replace("USED", "group"))
    sections = imported.sections
    assert sections["supervisor"]["stop_grace_s"] == 20.0
    assert sections["supervisor"]["sets"] == [["a", "b"]]
    assert sections["profiles"]["a"]["stop_grace_s"] == 5.0 and "stop_grace_s" not in sections["profiles"]["b"]
    assert sections["profiles"]["b"]["context"] == 8192
    engine = sections["engines"]["b"]
    assert (engine["capabilities"], engine["serves"]) == (["vision", "audio", "tools"], ["rerank"])
    assert sections["variants"] == {"fast": {"model": "a", "description": "Fast"}, "warm-one": {"model": "b"}}
    changed, missing = texts(imported, "changed"), texts(imported, "missing")
    assert any("selectors.warm-one: variants.warm-one stands for b alone" in each for each in changed)
    assert any("matrix: is not in use: routing.router.use is group" in each for each in changed)
    keys = (
        "ui.activity.session_id",
        "profiles.coding",
        "selectors.nothing",
        "models.a.compat",
    )
    assert sections["profiles"]["a"]["priority"] == 10
    assert sections["gateway"]["switching"]["loaded_only"] == ["\\.js$"]
    assert len(missing) == len(keys) and all(any(f"{key}: " in each for each in missing) for key in keys)
    assert not any("is unknown" in each for each in missing)


def test_an_expression_that_python_lacks_is_said() -> None:
    imported = translate("upstream: {ignorePaths: ['a', '\\z(']}\nmodels: {m: {cmd: llama-server -m a.gguf}}\n")
    assert "is no regular expression of Python" in texts(imported, "missing")[0]
    assert "gateway" not in imported.sections


def test_a_priority_that_cannot_be_is_said() -> None:
    priorities = "routing: {scheduler: {settings: {fifo: {priority: {m: high, gone: 1}}}}}"
    imported = translate(f"{priorities}\nmodels: {{m: {{cmd: llama-server -m a.gguf}}}}\n")
    key = "config.yaml:1: routing.scheduler.settings.fifo.priority"
    assert texts(imported, "missing") == [
        f"{key}.m: is no whole number of at most a million", f"{key}.gone: there is no model gone"
    ]  # fmt: skip
    assert "priority" not in imported.sections["profiles"]["m"]


OLDER = """\
logRequests: true
profiles: {coding: [a, b], broken: [a, gone]}
models:
  a: {cmd: llama-server -m a.gguf}
  b: {cmd: llama-server -m b.gguf}
  c: {cmd: llama-server -m c.gguf}
"""


def test_the_profiles_of_older_files_run_together() -> None:
    imported = translate(OLDER)
    assert imported.sections["supervisor"]["sets"] == [["a", "b"], ["a"], ["c"]]
    assert texts(imported, "missing") == ["config.yaml:2: profiles.broken: there is no model gone"]
    assert any("logRequests: every request has a line" in each for each in texts(imported, "taken"))


def test_groups_decide_before_the_profiles_of_older_files() -> None:
    imported = translate(OLDER + "groups: {one: {members: [a, b]}}\n")
    assert [each for each in texts(imported, "missing") if "profiles.coding: groups says" in each]
    assert ["a", "b"] not in imported.sections["supervisor"].get("sets", [])


def test_the_matrix_of_newer_files_is_taken_over() -> None:
    imported = translate(NEWER.replace("USED", "matrix"))
    assert imported.sections["supervisor"]["sets"] == [["a", "b"]]
    assert imported.sections["profiles"]["b"]["evict_cost"] == 9.0
    assert any("groups: is not in use" in each for each in texts(imported, "changed"))


def test_members_that_are_no_models_are_named_once() -> None:
    text = """\
models: {a: {cmd: llama-server -m /a.gguf}}
groups: {some: {members: [a, gone]}, none: {members: [lost]}}
ui: {title: x, activity: {other: 1}}
"""
    imported = import_llama_swap(text, "a.yaml", prefix="hostler", path_of=str, facts_of=lambda _: None)
    found = {each.key: (each.kind, each.text) for each in imported.notes}
    assert found["groups.some.members"] == ("changed", "there is no model gone among those taken over")
    assert found["groups.none.members"] == ("missing", "there is no model lost among those taken over")
    assert found["ui.activity.other"] == ("missing", "is unknown")
    assert found["ui.title"] == ("missing", "the dashboard has no settings of its own in the file")
