"""POST /v1/moderations, as the OpenAI client reads it."""

from __future__ import annotations

import pytest
from openai.types import ModerationCreateResponse

from app.domain.categories import Category
from app.domain.errors import DetectorError, Overloaded
from tests.api.world import SelectiveDetector
from tests.fakes import PhraseDetector


def ask(client, value: object, **more: object):
    return client.post("/v1/moderations", json={"input": value, **more})


def parsed(reply) -> ModerationCreateResponse:
    assert reply.status_code == 200
    return ModerationCreateResponse.model_validate_json(reply.content, strict=True)


def test_the_reply_is_openais(client):
    answer = parsed(ask(client, "hello", model="omni-moderation-latest"))
    assert answer.id.startswith("modr-")
    assert answer.model.startswith("default@")
    (result,) = answer.results
    assert result.flagged is False
    assert result.categories.self_harm_intent is False
    assert result.category_scores.violence_graphic == 0.0
    assert result.category_applied_input_types.harassment == ["text"]


def test_our_categories_stand_under_openais_names(world):
    world.detectors["keywords"] = PhraseDetector(category=Category.VIOLENT_CRIMES, score=0.9)
    with world.client() as client:
        (result,) = parsed(ask(client, "forbidden")).results
    assert result.flagged is True
    assert result.categories.illicit is True
    assert result.categories.illicit_violent is True
    assert result.category_scores.illicit_violent == 0.9
    assert result.categories.hate is False


def test_categories_of_our_own_are_added(client):
    body = ask(client, "forbidden").json()["results"][0]
    assert body["categories"]["blocklist"] is True
    assert body["category_scores"]["blocklist"] == 1.0
    assert body["category_applied_input_types"]["blocklist"] == ["text"]
    assert body["verdict"] == "block"
    assert body["coverage"]["ratio"] == 1.0


def test_a_score_under_its_threshold_is_not_flagged(world):
    world.detectors["keywords"] = PhraseDetector(category=Category.HATE, score=0.4)
    with world.client() as client:
        (result,) = parsed(ask(client, "forbidden")).results
    assert (result.flagged, result.categories.hate) == (False, False)
    assert result.category_scores.hate == 0.4


def test_a_list_has_results_in_order(client):
    results = parsed(ask(client, ["fine", "forbidden", "fine"])).results
    assert [result.flagged for result in results] == [False, True, False]


def test_parts_have_one_result_and_images_are_not_read(client):
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    reply = ask(client, [{"type": "text", "text": "hello"}, image])
    (result,) = parsed(reply).results
    assert result.flagged is False
    assert result.category_applied_input_types.sexual == ["text"]
    assert reply.json()["results"][0]["coverage"]["reasons"] == ["media"]


def test_text_beside_an_image_is_read(client):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    (result,) = parsed(ask(client, [image, {"type": "text", "text": "forbidden"}])).results
    assert result.flagged is True


def test_an_image_alone_was_not_looked_at(client):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    reply = ask(client, [image])
    (result,) = parsed(reply).results
    assert result.category_applied_input_types.sexual == []
    assert reply.headers["x-guard-coverage"] == "0.000"
    assert reply.headers["x-guard-verdict"] == "flag"


def test_a_failed_detector_flags_where_the_policy_fails_closed(world):
    world.detectors["keywords"].error = DetectorError("broken")
    with world.client() as client:
        closed = ask(client, "hello")
        opened = ask(client, "hello", guardrails="open")
    assert parsed(closed).results[0].flagged is True
    assert closed.headers["x-guard-degraded"] == "error"
    assert parsed(opened).results[0].flagged is False


def test_one_overloaded_text_fails_the_call(world):
    world.detectors["keywords"] = SelectiveDetector(error=Overloaded("full"))
    with world.client() as client:
        reply = ask(client, ["fine", "troublesome"])
    assert reply.status_code == 429
    assert "retry-after" in reply.headers


@pytest.mark.parametrize("value", [None, [], 7, [7], ["a", {"type": "text", "text": "b"}], {}])
def test_other_inputs_are_422(client, value):
    assert ask(client, value).status_code == 422


def test_requests_are_counted(world):
    with world.client() as client:
        ask(client, "fine")
    labels = {"endpoint": "moderations", "stage": "input", "policy": "default", "verdict": "allow"}
    assert world.metrics.registry.get_sample_value("guardrail_requests_total", labels) == 1.0
