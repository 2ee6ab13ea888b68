"""Which policy judges, and what a caller may change."""

from __future__ import annotations

import pytest

from app.config import AuthSettings
from app.domain.policy import RectificationMode, StreamMode
from tests.api.world import api_key, bearer, policy_yaml

MAIL = "write to jane@example.com"


def used(reply) -> str:
    return reply.headers["x-guard-policy"].partition(" ")[0]


def test_precedence(world):
    """Each way of choosing beats those after it."""
    names = ["by-url", "by-header", "by-body", "by-guardrails", "by-key", "default"]
    for name in names:
        world.policies[name] = policy_yaml()
    world.auth = AuthSettings(
        keys=(api_key("with-default", default_policy="by-key"), api_key("without"))
    )
    ways = [
        {"url": "/p/by-url"},
        {"header": "by-header"},
        {"body": {"policy": "by-body"}},
        {"body": {"guardrails": {"policy": "by-guardrails"}}},
        {"key": "with-default"},
        {},
    ]
    with world.client() as client:
        for i in range(len(ways)):
            url, headers, body, key = "", {}, {}, "without"
            for way in ways[i:]:
                url = url or way.get("url", "")
                key = way.get("key", key)
                body = {**way.get("body", {}), **body}
                if "header" in way:
                    headers["x-guard-policy"] = way["header"]
            reply = client.post(
                f"{url}/moderate", json={"input": "x", **body}, headers=headers | bearer(key)
            )
            assert used(reply) == names[i]


@pytest.mark.parametrize("path", ["moderate", "v1/moderations"])
@pytest.mark.parametrize("wish", ["strict", ["strict"], {"policy": "strict"}])
def test_guardrails_may_be_a_name(client, path, wish):
    reply = client.post(f"/{path}", json={"input": "x", "guardrails": wish})
    assert used(reply) == "strict"


def test_chat_chooses_in_the_same_ways(world, client):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    client.post("/p/strict/v1/chat/completions", json=body)
    client.post("/v1/chat/completions", json=body, headers={"x-guard-policy": "monitor"})
    client.post("/v1/chat/completions", json=body | {"guardrails": {"policy": "open"}})
    client.post("/v1/chat/completions", json=body)
    assert [name for _, name in world.proxy.calls] == ["strict", "monitor", "open", "default"]


@pytest.mark.parametrize(
    ("url", "headers", "body"),
    [
        ("/p/nowhere", {}, {}),
        ("", {"x-guard-policy": "nowhere"}, {}),
        ("", {"x-guard-policy": ""}, {}),
        ("", {"x-guard-policy": "x" * 5_000}, {}),
        ("", {}, {"guardrails": {"policy": "nowhere"}}),
        ("/p/nowhere", {"x-guard-policy": "strict"}, {"guardrails": {"policy": "strict"}}),
    ],
)
@pytest.mark.parametrize("path", ["/moderate", "/v1/moderations", "/v1/chat/completions"])
def test_an_unknown_policy_is_refused_everywhere(client, url, headers, body, path):
    subject = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"input": ""}
    reply = client.post(url + path, json=subject | body, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unknown_policy"
    assert "nowhere" not in reply.text


def test_a_policy_of_others_is_as_unknown_as_one_that_is_not_there(world):
    world.auth = AuthSettings(
        keys=(api_key("narrow", policies=("strict", "monitor"), default_policy="strict"),)
    )
    with world.client() as client:
        replies = [
            client.post("/moderate", json={"input": "x", "policy": name}, headers=bearer("narrow"))
            for name in ("default", "nowhere")
        ]
        allowed = client.post(
            "/moderate", json={"input": "x", "policy": "monitor"}, headers=bearer("narrow")
        )
    assert [reply.status_code for reply in replies] == [400, 400]
    assert replies[0].content == replies[1].content
    assert used(allowed) == "monitor"


def test_a_narrow_key_without_default_must_name_a_policy(world):
    world.auth = AuthSettings(keys=(api_key("narrow", policies=("strict",)),))
    with world.client() as client:
        reply = client.post("/moderate", json={"input": "x"}, headers=bearer("narrow"))
    assert reply.status_code == 400


def test_a_threshold_may_be_lowered(world):
    world.detectors["keywords"].score = 0.4
    with world.client() as client:
        plain = client.post("/moderate", json={"input": "forbidden"}).json()
        lowered = client.post(
            "/moderate", json={"input": "forbidden", "thresholds": {"blocklist": 0.3}}
        ).json()
        by_guardrails = client.post(
            "/moderate",
            json={"input": "forbidden", "guardrails": {"thresholds": {"blocklist": 0.3}}},
        ).json()
    assert [b["verdict"] for b in (plain, lowered, by_guardrails)] == ["allow", "block", "block"]


def test_a_threshold_may_not_be_raised(world):
    world.auth = AuthSettings(keys=(api_key("plain"), api_key("trusted", may_loosen=True)))
    world.detectors["keywords"].score = 0.7
    body = {"input": "forbidden", "thresholds": {"blocklist": 0.9}}
    with world.client() as client:
        refused = client.post("/moderate", json=body, headers=bearer("plain"))
        allowed = client.post("/moderate", json=body, headers=bearer("trusted"))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "policy_loosened"
    assert refused.json()["error"]["param"] == "thresholds.blocklist"
    assert allowed.json()["verdict"] == "allow"


@pytest.mark.parametrize("value", [-0.1, 1.1, True, "0.5", None])
def test_a_threshold_is_a_probability(client, value):
    reply = client.post("/moderate", json={"input": "x", "thresholds": {"hate": value}})
    assert reply.status_code == 422


def test_a_threshold_is_not_nan(client):
    body = b'{"input": "x", "thresholds": {"hate": NaN}}'
    assert client.post("/moderate", content=body).status_code in {400, 422}


def test_detectors_may_be_added_but_not_dropped(world):
    world.auth = AuthSettings(keys=(api_key("plain"), api_key("trusted", may_loosen=True)))

    def ask(client, key: str, **body: object):
        return client.post("/moderate", json={"input": MAIL, **body}, headers=bearer(key))

    with world.client() as client:
        assert ask(client, "plain").json()["verdict"] == "allow"
        assert ask(client, "plain", detectors=["keywords", "pii"]).json()["verdict"] == "block"
        dropped = ask(client, "plain", policy="strict", detectors=["pii"])
        trusted = ask(client, "trusted", policy="strict", detectors=["keywords"])
        unknown = ask(client, "trusted", detectors=["keywords", "crystal ball"])
    assert dropped.json()["error"]["code"] == "policy_loosened"
    assert trusted.json()["verdict"] == "allow"
    assert unknown.status_code == 400
    assert "crystal" not in unknown.text


def chat(client, stream: object, **headers: str):
    body = {"messages": [{"role": "user", "content": "hi"}], "guardrails": {"stream": stream}}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_a_stream_may_be_held_longer(world, client):
    wish = {"window": 640, "overlap": 128, "first_window": 200, "max_wait_ms": 50}
    assert chat(client, wish).status_code == 200
    stream = world.proxy.policies[0].stream
    assert (stream.window_chars, stream.overlap_chars) == (640, 128)
    assert (stream.first_window_chars, stream.max_wait_ms) == (200, 50)
    assert stream.mode is StreamMode.HOLD


@pytest.mark.parametrize("wish", [{"mode": "fast"}, {"overlap": 8}])
def test_a_stream_may_not_be_held_less(client, wish):
    reply = chat(client, wish)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "policy_loosened"


def test_a_trusted_key_may_stream_fast(world):
    world.auth = AuthSettings(keys=(api_key("trusted", may_loosen=True),))
    with world.client() as client:
        assert chat(client, {"mode": "fast"}, **bearer("trusted")).status_code == 200
    assert world.proxy.policies[0].stream.mode is StreamMode.FAST


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"window": 100, "overlap": 70, "first_window": 50}, 400),
        ({"first_window": 4_000}, 400),
        ({"window": 1}, 422),
        ({"window": 10**9}, 422),
        ({"max_wait_ms": 0}, 422),
        ({"speed": "high"}, 422),
        ("fast", 422),
    ],
)
def test_stream_wishes_have_bounds(world, client, wish, status):
    assert chat(client, wish).status_code == status
    assert world.proxy.calls == []


@pytest.mark.parametrize("wish", [["strict", "monitor"], 7, {"polciy": "strict"}, [], True])
def test_other_wishes_are_refused(client, wish):
    assert client.post("/moderate", json={"input": "x", "guardrails": wish}).status_code == 422


def test_a_deep_wish_is_refused(world, client):
    body = b'{"messages": [], "guardrails": %s}' % (b"[" * 500 + b"]" * 500)
    assert client.post("/v1/chat/completions", content=body).status_code == 400
    assert world.proxy.calls == []


RECTIFYING = """
rectification: {mode: cap, epsilon: 0.1, beta: 5, max_epsilon: 0.4, max_beta: 50}
"""


def rectified(client, wish: object, **headers: str):
    body = {"messages": [{"role": "user", "content": "hi"}], "guardrails": {"rectification": wish}}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_rectification_may_be_made_stricter(world):
    world.policies["default"] = policy_yaml(more=RECTIFYING)
    wish = {"mode": "tilt_cap", "epsilon": 0.3, "beta": 9, "trace": True}
    with world.client() as client:
        assert rectified(client, wish).status_code == 200
        assert rectified(client, {}).status_code == 200
    asked, unasked = (policy.rectification for policy in world.proxy.policies)
    assert (asked.mode, asked.epsilon, asked.beta) == (RectificationMode.TILT_CAP, 0.3, 9)
    assert asked.trace
    assert (unasked.mode, unasked.epsilon, unasked.beta) == (RectificationMode.CAP, 0.1, 5)
    assert not unasked.trace


def test_rectification_may_be_asked_for_where_the_policy_has_none(world, client):
    assert rectified(client, {"mode": "cap", "epsilon": 0.2}).status_code == 200
    assert world.proxy.policies[0].rectifies


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"mode": "off"}, "rectification.mode"),
        ({"mode": "tilt"}, "rectification.mode"),
        ({"epsilon": 0.05}, "rectification.epsilon"),
        ({"beta": 4}, "rectification.beta"),
    ],
)
def test_rectification_may_not_be_loosened(world, wish, param):
    world.policies["default"] = policy_yaml(more=RECTIFYING)
    world.auth = AuthSettings(keys=(api_key("plain"), api_key("trusted", may_loosen=True)))
    with world.client() as client:
        refused = rectified(client, wish, **bearer("plain"))
        allowed = rectified(client, wish, **bearer("trusted"))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "policy_loosened"
    assert refused.json()["error"]["param"] == param
    assert allowed.status_code == 200
    assert len(world.proxy.calls) == 1


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"epsilon": 0.41}, 400),
        ({"beta": 51}, 400),
        ({"epsilon": 1.5}, 422),
        ({"beta": -1}, 422),
        ({"beta": "9"}, 422),
        ({"mode": "authors_cap"}, 422),
        ({"gate": 1}, 422),
        ({"trace": 1}, 422),
        ("cap", 422),
    ],
)
def test_rectification_wishes_have_bounds(world, wish, status):
    world.policies["default"] = policy_yaml(more=RECTIFYING)
    world.auth = AuthSettings(keys=(api_key("trusted", may_loosen=True),))
    with world.client() as client:
        assert rectified(client, wish, **bearer("trusted")).status_code == status
    assert world.proxy.calls == []
