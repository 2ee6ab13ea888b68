from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from app.config import Settings, shipped

DIGEST = hashlib.sha256(b"a key").hexdigest()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("SLUICEWAY_"):
            monkeypatch.delenv(name)


def settings_with(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"SLUICEWAY_{name}", value)
    return Settings()


def leaves(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field below `model`, those of models in lists included."""
    for name, info in model.model_fields.items():
        inner = [
            one
            for one in (info.annotation, *get_args(info.annotation))
            if isinstance(one, type) and issubclass(one, BaseModel)
        ]
        if info.annotation not in inner:
            yield place + name, info
        for one in inner:
            yield from leaves(one, f"{place}{name}.")


LEAVES = dict(leaves(Settings))


@pytest.mark.parametrize("place", list(LEAVES))
def test_every_setting_is_described_in_a_sentence(place: str) -> None:
    description = LEAVES[place].description or ""
    assert description.endswith(".")
    assert len(description) > 5


@pytest.mark.parametrize("place", list(LEAVES))
def test_every_number_has_two_bounds_and_a_default_between_them(place: str) -> None:
    info = LEAVES[place]
    kinds = {info.annotation, *get_args(info.annotation)}
    if not kinds & {int, float}:
        return
    lower = [bound.ge for bound in info.metadata if hasattr(bound, "ge")]
    upper = [bound.le for bound in info.metadata if hasattr(bound, "le")]
    assert len(lower) == len(upper) == 1
    if info.default is not None:
        assert lower[0] <= info.default <= upper[0]


@pytest.mark.parametrize("place", list(LEAVES))
def test_the_unit_of_a_duration_stands_in_its_name(place: str) -> None:
    if any(word in place for word in ("timeout", "deadline", "ttl", "grace", "reset")):
        assert place.endswith(("_ms", "_s"))


def test_the_defaults_need_nothing_and_are_careful() -> None:
    settings = Settings()
    assert settings.server.host == "127.0.0.1"
    assert settings.server.port == 8_000
    assert settings.auth.keys == ()
    assert settings.policies.default == "default"
    assert settings.upstream.base_url is None
    assert settings.cache.backend == "memory"


def test_shipped_folders_are_found() -> None:
    settings = Settings()
    assert (settings.policies.folder / "default.yaml").is_file()
    assert settings.models.folder == shipped("models")
    assert shipped("no-such-folder").parent.name == "app"


@pytest.mark.parametrize(
    ("name", "value", "place", "expected"),
    [
        ("SERVER__PORT", "9001", "server.port", 9_001),
        ("server__port", "9001", "server.port", 9_001),
        ("SERVER", '{"port": 9001}', "server.port", 9_001),
        ("SERVER__HOST", "0.0.0.0", "server.host", "0.0.0.0"),
        ("MODELS__FOLDER", "some/where", "models.folder", Path("some/where")),
        ("MODELS__DEVICE", "cuda", "models.device", "cuda"),
        ("MODELS__LOAD", '["moderator_large"]', "models.load", ("moderator_large",)),
        ("POLICIES__DEFAULT", "strict", "policies.default", "strict"),
        ("UPSTREAM__BASE_URL", "http://h:1/v1", "upstream.base_url", "http://h:1/v1"),
        ("UPSTREAM__BASE_URL", "", "upstream.base_url", None),
        ("UPSTREAM__API_KEY", "sk-x", "upstream.api_key", SecretStr("sk-x")),
        ("GENERATION__ENABLED", "false", "generation.enabled", False),
        ("CACHE__REDIS_URL", "redis://h", "cache.redis_url", SecretStr("redis://h")),
        ("LOGS__LEVEL", "debug", "logs.level", "debug"),
    ],
)
def test_the_environment_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, place: str, expected: object
) -> None:
    read: Any = settings_with(monkeypatch, **{name: value})
    for step in place.split("."):
        read = getattr(read, step)
    assert read == expected


def test_several_values_of_a_group_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(monkeypatch, SERVER__PORT="9001", SERVER__MAX_INPUTS="7")
    assert (settings.server.port, settings.server.max_inputs) == (9_001, 7)
    assert settings.server.host == "127.0.0.1"


def test_keys_are_a_json_list(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        {"id": "team-a", "sha256": DIGEST, "policies": ["strict"], "requests_per_minute": 60},
        {"id": "operator", "sha256": "0" * 64, "may_loosen": True, "may_administer": True},
    ]
    first, second = settings_with(monkeypatch, AUTH__KEYS=json.dumps(keys)).auth.keys
    assert (first.id, first.policies, first.requests_per_minute) == ("team-a", ("strict",), 60)
    assert not first.may_loosen
    assert not first.may_administer
    assert first.default_policy is None
    assert second.may_loosen
    assert second.may_administer
    assert second.policies == ()


NUMBERS = {
    place: (min_.ge, max_.le)
    for place, info in LEAVES.items()
    if place.count(".") == 1 and info.annotation is int
    for min_ in info.metadata
    if hasattr(min_, "ge")
    for max_ in info.metadata
    if hasattr(max_, "le")
}


@pytest.mark.parametrize("place", list(NUMBERS))
def test_bounds_refuse_what_is_outside_and_take_their_edges(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = place.upper().replace(".", "__")
    # The one setting that another one bounds as well.
    more = {"MODELS__MAX_QUEUE_TOKENS": "16777216"} if "BATCH" in name else {}
    more |= {"MODELS__MAX_BATCH_TOKENS": "128"} if "QUEUE" in name else {}
    lowest, highest = NUMBERS[place]
    for edge in (lowest, highest):
        settings_with(monkeypatch, **more, **{name: str(edge)})
    for outside in (lowest - 1, highest + 1, "a few", "1.5", "nan"):
        with pytest.raises(ValidationError):
            settings_with(monkeypatch, **more, **{name: str(outside)})


def test_a_queue_holds_at_least_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {"MODELS__MAX_BATCH_TOKENS": "1024", "MODELS__MAX_QUEUE_TOKENS": "1024"}
    assert settings_with(monkeypatch, **tokens).models.max_queue_tokens == 1_024
    with pytest.raises(ValidationError, match="max_queue_tokens"):
        settings_with(monkeypatch, MODELS__MAX_QUEUE_TOKENS="1023")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER__PROT", "1"),
        ("SERVER__PORT__MORE", "1"),
        ("SERVER", '{"prot": 1}'),
        ("AUHT__KEYS", "[]"),
        ("auht__keys", "[]"),
        ("__PORT", "1"),
        ("AUTH__KEYS", f'[{{"id": "a", "sha256": "{DIGEST}", "admin": true}}]'),
        ("MODELS__DEVICE", "tpu"),
        ("CACHE__BACKEND", "disk"),
        ("LOGS__LEVEL", "loud"),
    ],
)
def test_what_is_not_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(ValidationError):
        settings_with(monkeypatch, **{name: value})


def test_a_misspelt_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="SLUICEWAY_AUHT__KEYS"):
        settings_with(monkeypatch, AUHT__KEYS="[]")


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = "tcp://10.0.0.1:8000"
    settings = settings_with(
        monkeypatch, PORT=address, SERVICE_HOST="10.0.0.1", PORT_8000_TCP_ADDR="10.0.0.1"
    )
    assert settings == Settings()
    assert settings.server.port == 8_000


def test_settings_given_in_code_are_checked_as_well() -> None:
    with pytest.raises(ValidationError):
        Settings(server={"prot": 1})
    with pytest.raises(ValidationError):
        Settings(servre={})


@pytest.mark.parametrize(
    "digest", ["", "a key", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), DIGEST[:-1] + "g", " " * 64]
)
def test_what_is_no_sha256_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    keys = json.dumps([{"id": "a", "sha256": digest}])
    with pytest.raises(ValidationError) as refused:
        settings_with(monkeypatch, AUTH__KEYS=keys)
    # Whoever puts the key itself there must not find it in a log.
    assert "64 lower-case" in str(refused.value)
    assert "a key" not in str(refused.value)
    assert DIGEST[:16] not in str(refused.value)


@pytest.mark.parametrize("name", ["", "A", "with space", "-a", "a" * 33, "é"])
def test_a_name_of_a_key_is_fit_for_logs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ValidationError):
        settings_with(monkeypatch, AUTH__KEYS=json.dumps([{"id": name, "sha256": DIGEST}]))


def test_broken_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with(monkeypatch, AUTH__KEYS='[{"id": "hunter2"')
    assert "hunter2" not in str(refused.value)


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(
        monkeypatch, UPSTREAM__API_KEY="sk-hunter2", CACHE__REDIS_URL="redis://u:hunter2@h"
    )
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in shown
    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "sk-hunter2"


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.server = settings.server
    with pytest.raises(ValidationError):
        settings.server.port = 1
