"""The configuration file: where it is found, what it means, and what its errors say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.config import ConfigError, Overrides, find_file, library_file, read, secret
from hostler.gateway.settings import Settings, parse_address
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.yaml_config import schema
from hostler.supervisor.config import HostLimits


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match=r"--config names .*mine\.yaml, but there is no such file"):
        find_file(str(file), {})
    with pytest.raises(ConfigError, match=r"HOSTLER_CONFIG names .*that is a folder"):
        find_file(None, {"HOSTLER_CONFIG": str(tmp_path)})
    file.write_text("")
    assert find_file(str(file), {"HOSTLER_CONFIG": "/none"}) == file


def test_without_a_name_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostler.yaml").write_text("")
    assert find_file(None, {}) == Path("hostler.yaml")


def test_without_a_file_the_defaults_and_the_shipped_profiles_apply(tmp_path: Path) -> None:
    configuration = read(None, {"XDG_STATE_HOME": str(tmp_path)})
    assert configuration.shipped
    assert configuration.settings.gateway.listen == ("127.0.0.1:8000",)
    assert [profile.name for profile in configuration.profiles] == ["smollm2", "smollm2-long"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway: {switching: {loaded_only: ['(']}}", "is no regular expression: missing \\)"),
        ("gateway: {chain: [box]}", r"'box' is not a backend; backends are: local"),
        ("backends: {local: {kind: supervisor, url: 'http://x'}}", "reserved for the supervisor of `hostler up`"),
        ("backends: {b: {kind: supervisor, url: 'ftp://x'}}", "must start with http:// or https://"),
        (
            "backends: {b: {kind: openai, url: 'http://x', models: {'*': m}, title: \"a\\nb\"}}",
            "one line of plain text",
        ),
        ("supervisor: {sleep: {after_s: 60}}", "set either `command` or `suspend: true`"),
        ("supervisor: {sleep: {after_s: 60, suspend: true, command: x}}", "set either `command` or `suspend: true`"),
        ('supervisor: {sleep: {after_s: 60, command: "sh \'x"}}', "No closing quotation"),
        ("supervisor: {sleep: {after_s: 60, command: ' '}}", "the command is empty"),
        ("backends: {b: {kind: supervisor, url: 'http://x', wake: {mac: nonsense}}}", "is not a MAC address"),
        (
            "backends: {b: {kind: supervisor, url: 'http://x', wake: {mac: '01:23:45:67:89:ab', broadcast: x}}}",
            "is not an address",
        ),
        ("variants: {a: {model: m}, b: {model: a}}", "a is a variant itself; name its model"),
        ("variants: {a: {model: m, request: {force: {model: x}}}}", "model cannot be changed"),
        ("profiles: {m: {model: /m.gguf, request: {when: {x: {}}}}}", "applies to no client"),
        ("backends: {b: {kind: openai, url: 'http://x', request: {dorp: []}}}", "did you mean drop"),
        ("gateway: {tracing: {endpoint: collector}}", "must be the full URL"),
        ("gateway: {listen: [8000]}", "listen"),
        ("gateway: {listen: ['localhost']}", "write host:port"),
        ("gateway: {allowed_hosts: ['*']}", "would allow any domain"),
        ("gateway: {cors_origins: ['*']}", "is not an origin"),
        ("gateway: {trusted_proxies: ['0.0.0.0/0']}", "let every client choose"),
        ("gateway: {root_path: llm}", "is not a path"),
        (
            "backends: {b: {kind: supervisor, url: 'http://x'}}\nprofiles: {m: {model: /m.gguf, chain: [c]}}",
            "'c' is not a backend; backends are: b, local",
        ),
    ],
)
def test_an_invalid_file_is_an_error_that_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read(file, {})
    assert str(error.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        (":8000", ("0.0.0.0", 8000)),
        ("unix:/run/h:1.sock", ("/run/h:1.sock", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["unix:", "unix:here.sock"])
def test_a_socket_is_named_by_its_full_path(text: str) -> None:
    with pytest.raises(ValueError, match="write it in full"):
        parse_address(text)


@pytest.mark.parametrize("text", ["localhost", "::1:80", "host:70000", "host:", "host:x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        parse_address(text)


def test_a_secret_is_given_in_place_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" hidden \n")
    assert secret("open", str(file), "a.b") == "open"
    assert secret(None, str(file), "a.b") == "hidden"
    assert secret(None, None, "a.b") is None
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"a\.b: .*key is empty"):
        secret(None, str(file), "a.b")
    with pytest.raises(ConfigError, match=r"a\.b: .*none: cannot be read"):
        secret(None, str(tmp_path / "none"), "a.b")


@pytest.mark.parametrize("text", ["sk-12…", "ключ-ключ", "schlüssel"])
def test_a_secret_that_no_header_can_carry_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"^a\.b contains .*copy the key once more"):
        secret(text, None, "a.b_file")
    with pytest.raises(ConfigError, match=r"^a\.b_file: .*key contains .*copy the key once more"):
        secret(None, str(file), "a.b_file")


def test_the_library_is_beside_the_configuration_or_in_the_state_directory(tmp_path: Path) -> None:
    settings = read(None, {"XDG_STATE_HOME": str(tmp_path)}).settings.gateway.library
    assert library_file(settings, tmp_path / "my.yaml", {}) == tmp_path / "my.models.yaml"
    assert library_file(settings, tmp_path / "my.yaml", {"STATE_DIRECTORY": "/a:/b"}) == Path("/a/models.yaml")
    assert library_file(settings, None, {"XDG_STATE_HOME": "/s"}) == Path("/s/hostler/models.yaml")


def test_the_limits_of_a_host_are_those_that_the_file_sets(tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text("gateway:\n  queue: {max_waiting: 10}\n  switching:\n    progress: quiet\n    patience_s: 0\n")
    assert read(file, {}).host_limits == HostLimits(max_waiting=10, patience_s=0.0)
    file.write_text("gateway:\n  queue:\n")
    assert read(file, {}).host_limits == read(None, {}).host_limits == HostLimits()


LAN = "backends: {lan: {kind: openai, url: http://lan, %s}}"
WRONG_SECRETS = (
    *(('supervisor: {token: "a\\u200bbcdefgh"}', "supervisor.token"), ("supervisor: {token: 'ab${env:E}'}", "token")),
    *((LAN % 'api_key: "ab\\ncd"', "lan.api_key"), (LAN % "api_key: 'sk-${env:E}'", "lan.api_key")),
    *((LAN % "api_key: '${env:K}${env:E}'", "lan.api_key"), (LAN % "token: '${env:CONTROL}'", "lan.token")),
    (LAN % "headers: {Authorization: 'Bearer x${env:E}'}", "lan.headers.Authorization"),
    *((LAN % "api_key: schlüssel", "lan.api_key"), (LAN % "api_key: '${env:UMLAUT}'", "lan.api_key")),
    *(
        ("supervisor: {token: 'ключ'}", "token"),
        (LAN % "headers: {Authorization: 'Bearer ü'}", "headers.Authorization"),
    ),
    (LAN % "api_key_file: 'keys/${env:E}'", "lan.api_key_file"),
    ("profiles: {m: {model: m.gguf, env: {HF_TOKEN: '${env:E}'}}}", "m.env.HF_TOKEN"),
    ('profiles: {m: {model: m.gguf, env: {HF_TOKEN: "hf_\\u200b"}}}', "m.env.HF_TOKEN"),
)


@pytest.mark.parametrize(("text", "key"), WRONG_SECRETS)
def test_a_secret_in_place_is_checked_like_one_in_a_file(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"{key}: .*(is empty|invisible|no header can carry)") as refused:
        read(path, {"E": "", "K": "key", "CONTROL": "ab\x1bcd", "UMLAUT": "schlüssel"})
    assert "schl" not in str(refused.value)


@pytest.mark.parametrize("text", [LAN % "api_key_file: schlüssel", LAN % "title: Tür"])
def test_files_of_secrets_and_other_headers_may_have_other_letters(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(text, encoding="utf-8")
    assert read(path, {}).settings.backends


@pytest.mark.parametrize("value", ["''", "'a b'", '"line\\nline"', "'${env:K}'"])
def test_the_environment_of_an_engine_may_hold_anything_else(tmp_path: Path, value: str) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(f"profiles: {{m: {{model: m.gguf, env: {{SSL_KEY: {value}}}}}}}")
    assert read(path, {"K": "key"}).profiles[0].env


def test_folders_to_scan_are_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text("profiles: {scan: [models, /srv/models], a: {model: x.gguf}}\n")
    scanned: list[Path] = []
    found = read(path, {}, find_models=lambda folders, engine: scanned.extend(folders))
    assert scanned == [tmp_path / "models", Path("/srv/models")]
    assert [profile.name for profile in found.profiles] == ["a"]
    path.write_text("profiles: {scan: [models]}\n")
    assert (read(path, {}).profiles, read(path, {}).shipped) == ((), False)
    path.write_text("profiles: {scan: {model: x.gguf}}\n")
    assert [profile.name for profile in read(path, {}).profiles] == ["scan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: {scan: models}", "profiles.scan: expected a list of folders, such as [~/models]"),
        ("profiles: {scan: [5]}", "profiles.scan[0]: expected the path of a folder"),
        (
            "gateway: {api_keys: ['a b']}",
            "gateway.api_keys[0]: is no key; a key is one word of letters, digits and signs",
        ),
        ("gateway: {api_keys: ['']}", "gateway.api_keys[0]: is no key; a key is one word of letters, digits and signs"),
    ],
)
def test_mistakes_in_folders_and_keys_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path, {})
    assert caught.value.mistakes == (f"{path}:1: {message}",)


def test_found_models_are_profiles_unless_the_file_has_their_name_or_file(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text("profiles: {a: {model: x.gguf, aliases: [B]}, long: {base: d, context: 9}, scan: [m]}\n")
    models = {name: ProfileEntry(model=f"/m/{name}.gguf") for name in ("b", "d")}
    models["c"] = ProfileEntry(model=str(tmp_path / "x.gguf"))
    found = read(path, {}, find_models=lambda folders, engine: models if folders == (tmp_path / "m",) else None)
    assert [profile.name for profile in found.profiles] == ["a", "long", "d"]
    assert found.profiles[1].model == "/m/d.gguf"


def test_the_schema_has_folders_to_scan() -> None:
    profiles = schema(Settings)["$defs"]["Settings"]["properties"]["profiles"]
    assert profiles["properties"]["scan"]["type"] == "array"


def test_the_command_line_takes_precedence() -> None:
    found = Overrides(listen="127.0.0.1:9", key="k").apply(read(None, {}))
    assert (found.settings.gateway.listen, found.settings.gateway.api_keys) == (("127.0.0.1:9",), ("k",))
    with pytest.raises(ConfigError, match="--listen: 'x' is not an address"):
        Overrides(listen="x").apply(read(None, {}))
    with pytest.raises(ConfigError, match="--key: is no key"):
        Overrides(key="a b").apply(read(None, {}))
