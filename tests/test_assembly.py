"""Which models are loaded: those that a policy names, and those that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.assembly import open_guard
from app.config import GenerationSettings, ModelSettings, PolicySettings, Settings
from app.domain.conversation import Conversation, Stage
from app.domain.errors import ConfigurationError, ModelMissing
from app.metrics import Metrics, unknown_labels
from app.moderation.readiness import ReadinessProbe
from tests.tiny_model import write_model

POLICY = "{{input: {{detectors: [{names}]}}, output: {{detectors: [{names}]}}}}"


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    policies = tmp_path / "policies"
    policies.mkdir()
    for name in ("moderator", "moderator_large"):
        write_model(tmp_path / "models" / name.replace("_", "-"), name)

    def build(names: str, load: tuple[str, ...] = ()) -> Settings:
        (policies / "default.yaml").write_text(POLICY.format(names=names))
        return Settings(
            models=ModelSettings(folder=tmp_path / "models", load=load, device="cpu"),
            policies=PolicySettings(folder=policies),
            generation=GenerationSettings(enabled=False),
        )

    return build


@pytest.mark.parametrize(
    ("names", "load", "loaded"),
    [
        ("keywords", (), []),
        ("pii, moderator", (), ["moderator"]),
        ("keywords", ("moderator_large",), ["moderator_large"]),
        ("moderator", ("moderator_large", "moderator"), ["moderator", "moderator_large"]),
    ],
)
async def test_only_models_that_somebody_wants_are_loaded(
    settings: Any, names: str, load: tuple[str, ...], loaded: list[str]
) -> None:
    async with open_guard(settings(names, load), Metrics()) as guard:
        assert list(guard.engine.detectors) == ["keywords", "pii", *loaded]
        assert [model.name for model in guard.models] == list(guard.workers) == loaded
        assert all(alive() for alive in guard.workers.values())
    assert not any(alive() for alive in guard.workers.values())


async def test_a_policy_cannot_be_reloaded_onto_a_model_that_is_not_there(settings: Any) -> None:
    async with open_guard(settings("moderator"), Metrics()) as guard:
        settings("moderator, moderator_large")
        report = await guard.policies.reload()
        assert not report.ok
        assert "['moderator_large'] are not loaded" in report.error
        assert "SLUICEWAY_MODELS__LOAD" in report.error
        assert guard.policies.get("default").input.detectors == ("moderator",)


@pytest.mark.parametrize("load", ["keywords", "nobody"])
async def test_a_wish_for_what_is_no_model_is_refused(settings: Any, load: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no model for .*{load}.*moderator_large"):
        async with open_guard(settings("keywords", (load,)), Metrics()):
            pass


async def test_a_policy_that_names_what_does_not_exist_stops_the_start(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"default\.yaml: .*'nobody'"):
        async with open_guard(settings("nobody"), Metrics()):
            pass


async def test_a_wanted_model_that_is_missing_says_what_to_run(settings: Any) -> None:
    with pytest.raises(ModelMissing, match="sluiceway train prompt-detector"):
        async with open_guard(settings("prompt_detector"), Metrics()):
            pass


async def test_a_folder_with_the_card_of_another_model_is_refused(
    settings: Any, tmp_path: Path
) -> None:
    write_model(tmp_path / "models" / "moderator", "moderator_large")
    with pytest.raises(ConfigurationError, match="is that of moderator_large"):
        async with open_guard(settings("moderator"), Metrics()):
            pass


async def test_a_moderator_judges_both_sides_and_turns_together(settings: Any) -> None:
    metrics = Metrics()
    async with open_guard(settings("moderator"), metrics) as guard:
        policy = guard.policies.get("default")

        async def blocks(talk: Conversation, stage: Stage) -> bool:
            return (await guard.engine.moderate(talk, stage, policy, endpoint="cli")).blocks

        assert not await blocks(Conversation.of_text("hello bomb"), Stage.INPUT)
        assert not await blocks(Conversation.of_text("hello bomb"), Stage.OUTPUT)
        pair = Conversation.of_text("hello bomb", context="pipe")
        assert await blocks(pair, Stage.OUTPUT)
        assert not await blocks(pair, Stage.INPUT)
        turns = tuple(
            message
            for text in ("a pipe", "a bomb")
            for message in Conversation.of_text(text, text).messages
        )
        assert await blocks(Conversation(turns), Stage.INPUT)
        assert not await blocks(Conversation(turns[1:]), Stage.INPUT)
    assert unknown_labels(metrics.registry) == []


async def test_the_canaries_are_asked_of_what_is_loaded(settings: Any) -> None:
    metrics = Metrics()
    async with open_guard(settings("moderator"), metrics) as guard:
        probe = ReadinessProbe(guard.engine.detectors, guard.workers, metrics=metrics)
        await probe.ask()
        assert await probe.ready() == (True, {})


async def test_a_detector_that_reads_the_embedded_model_needs_one(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"toxic_detector.*embedded language model"):
        async with open_guard(settings("toxic_detector"), Metrics()):
            pass
