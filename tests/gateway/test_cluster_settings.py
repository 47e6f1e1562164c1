"""The addresses of stores, and what is wrong with them."""

from __future__ import annotations

import pytest

from hostler.gateway.cluster_settings import (
    ClusterSettings,
    StoreAddress,
    cluster_mistakes,
    store_address,
    without_secrets,
)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://anna:secret@store.lan:7000/2",
        "rediss://:secret@store.lan?ssl_ca_certs=/etc/ca.pem",
        "redis://[::1]:6379",
        "unix:///run/valkey/valkey.sock?db=1",
    ],
)
def test_the_url_of_one_server_goes_to_the_library_as_it_is(url: str) -> None:
    assert store_address(url) == StoreAddress(url=url)


def test_sentinels_are_listed_before_the_service_that_they_watch() -> None:
    assert store_address(
        "redis+sentinel://anna:p%40ss@a,b.lan:5000,[::1]/main/3?sentinel_password=other"
    ) == StoreAddress(
        sentinels=(("a", 26379), ("b.lan", 5000), ("::1", 26379)),
        service="main",
        database=3,
        username="anna",
        password="p@ss",
        sentinel_password="other",
    )
    assert store_address("rediss+sentinel://a/main?ssl_ca_certs=/etc/ca.pem") == StoreAddress(
        sentinels=(("a", 26379),), service="main", tls=True, ca_file="/etc/ca.pem"
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is not the URL of a store"),
        ("127.0.0.1:6379", "is not the URL of a store"),
        ("http://store", "is not the URL of a store"),
        ("redis://", "names no host"),
        ("redis://:secret@", "names no host"),
        ("redis://store:port", "has no valid port"),
        ("redis://store:70000", "has no valid port"),
        ("redis://:secret/word@store", "write `/` as %2F"),
        ("redis://:secret?word@store", "`?` as %3F"),
        ("redis+sentinel://:secret/word@a,b/main", "write `/` as %2F"),
        ("redis://anna/secret@store", "databases are numbers"),
        ("redis://store/main", "databases are numbers"),
        ("redis://:a#b@store", "write it as %23"),
        ("redis://[::1", "is not a URL"),
        ("unix:socket", "does not name a socket"),
        ("redis+sentinel://a,b", "names no service"),
        ("redis+sentinel://a,,b/main", "names no host"),
        ("redis+sentinel://a/main/x", "databases are numbers"),
        ("redis+sentinel://a/main?db=1", "unknown option, db"),
        ("redis://store?timeout=1", "unknown option, timeout"),
        ("redis://store?timeout", "unknown option, timeout"),
        ("redis://store?ssl_ca_certs=/etc/ca.pem", "unknown option, ssl_ca_certs"),
        ("rediss://store?socket_timeout=9", "unknown option, socket_timeout"),
        ("redis://store?db=main", "databases are numbers"),
        ("unix:///run/valkey.sock?db=main", "databases are numbers"),
        ("unix:///run/valkey.sock?timeout=1", "unknown option, timeout"),
    ],
)
def test_a_store_that_cannot_be_found_is_a_mistake_without_its_password(url: str, words: str) -> None:
    [(key, mistake)] = cluster_mistakes(ClusterSettings(store=url))
    assert key == "store"
    assert words in mistake
    assert "secret" not in mistake


def test_a_cluster_and_its_members_have_plain_names() -> None:
    settings = ClusterSettings(store="redis://a", name="at home", member="\n")
    assert [key for key, _ in cluster_mistakes(settings)] == ["name", "member"]
    assert not list(cluster_mistakes(ClusterSettings(store="redis://a", name="home-1.lan", member="Anna's box")))


def test_the_store_is_shown_without_its_password() -> None:
    assert ClusterSettings(store="redis://a:b@store:1/2").shown_store == "redis://store:1/2"
    assert ClusterSettings(store="unix:///run/valkey.sock?password=b").shown_store == "unix:///run/valkey.sock"
    assert (
        ClusterSettings(store="redis+sentinel://:b@a,c/main?sentinel_password=d").shown_store
        == "redis+sentinel://a,c/main"
    )


@pytest.mark.parametrize(
    "store",
    [
        "redis://store.lan?password=p%40ss",
        "redis://:p%40ss@store.lan",
        "redis://anna:p%40ss@store.lan/1",
        "redis+sentinel://:x@a,b/main?sentinel_password=p%40ss",
    ],
)
def test_engines_get_no_secret_of_the_cluster_whatever_its_variable_is_called(store: str) -> None:
    environ = {"HOUSE": "t", "WORD": "p@ss", "STORE": store, "HOME": "/h", "EMPTY": ""}
    kept = without_secrets(environ, ClusterSettings(store=store, token="t"))
    assert kept == {"HOME": "/h", "EMPTY": ""}
    assert without_secrets(environ, None) == environ


def test_a_store_without_a_password_is_no_secret() -> None:
    environ = {"STORE": "redis://store.lan", "EMPTY": ""}
    assert without_secrets(environ, ClusterSettings(store="redis://store.lan")) == environ
