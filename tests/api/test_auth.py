"""Keys, what they may do, and how often."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest

from app.api import auth
from app.api.auth import Caller, KeyRing
from app.config import AuthSettings
from app.domain.errors import Unauthenticated
from tests.api.world import api_key, bearer

GUARDED = [
    ("POST", "/moderate"),
    ("POST", "/v1/moderations"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/p/default/moderate"),
    ("POST", "/p/default/v1/moderations"),
    ("POST", "/p/default/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/p/default/v1/models"),
    ("GET", "/info"),
    ("POST", "/admin/policies/reload"),
]


def ring(*names: str) -> KeyRing:
    return KeyRing(tuple((sha256(name.encode()).hexdigest(), Caller(name)) for name in names))


def test_a_key_finds_its_owner():
    assert [ring("a", "b", "c").caller(key, None).id for key in "abc"] == ["a", "b", "c"]


@pytest.mark.parametrize("key", [None, "", "d", "ab", "a ", sha256(b"a").hexdigest(), "ключ"])
def test_other_keys_find_nobody(key):
    with pytest.raises(Unauthenticated):
        ring("a", "b").caller(key, "127.0.0.1")


@pytest.mark.parametrize("key", ["a", "b", "c", "wrong", None])
def test_every_key_is_compared_in_constant_time(monkeypatch, key):
    compared: list[str] = []

    def recorded(known: str, given: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, given)

    keys = ring("a", "b", "c")
    monkeypatch.setattr(auth, "hmac", type("Hmac", (), {"compare_digest": staticmethod(recorded)}))
    try:
        keys.caller(key, None)
    except Unauthenticated:
        assert key in {"wrong", None}
    assert compared == [digest for digest, _ in keys.keys]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), {"authorization": "Basic cmlnaHQ="}, {"authorization": "x"}]
)
def test_without_a_key_nothing_is_served(world, method, path, headers):
    world.auth = AuthSettings(keys=(api_key("right"),))
    with world.client("127.0.0.1") as client:
        reply = client.request(method, path, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert world.proxy.calls == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/startupz", "/metrics"])
def test_probes_and_metrics_need_no_key(world, path):
    world.auth = AuthSettings(keys=(api_key("right"),))
    with world.client() as client:
        assert client.get(path).status_code == 200


def test_the_right_key_is_served(world):
    world.auth = AuthSettings(keys=(api_key("other"), api_key("right")))
    with world.client() as client:
        reply = client.post("/moderate", json={"input": "x"}, headers=bearer("right"))
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("192.0.2.7", 403), ("testclient", 403)],
)
def test_without_keys_only_the_same_machine_administers(world, address, status):
    with world.client(address) as client:
        assert client.post("/admin/policies/reload").status_code == status


def test_with_keys_only_administrators_administer(world):
    world.auth = AuthSettings(keys=(api_key("plain"), api_key("admin", may_administer=True)))
    with world.client("127.0.0.1") as client:
        replies = [
            client.post("/admin/policies/reload", headers=bearer(name))
            for name in ("plain", "admin")
        ]
    assert [reply.status_code for reply in replies] == [403, 200]
    assert replies[0].json()["error"]["code"] == "permission_denied"
