"""`POST /v1/moderations`: the same judgement in the shape that clients of OpenAI read.

Knows nothing about detectors. What has no place in OpenAI's shape stands beside it, under names of
our own: `coverage`, `verdict`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api import replies
from app.api.body import documented_body, read_model
from app.api.choice import GuardrailsWish, choose_policy
from app.api.dependencies import CallerOf, ComponentsOf
from app.api.documentation import errors
from app.api.judging import Item, judge_all, split
from app.api.moderate_models import CoverageReply
from app.api.presence import while_present
from app.domain.categories import openai_scores
from app.domain.conversation import Conversation, Stage
from app.domain.policy import Action
from app.domain.verdict import Verdict
from app.proxy.dialects.openai_chat import read_request

router = APIRouter(tags=["moderation"])

_APPLIED: Final = ("text",)
_DIGEST_CHARS: Final = 12


class ModerationsRequest(BaseModel):
    """OpenAI's moderation request. Fields that we do not know, such as `model`, are ignored."""

    model_config = ConfigDict(strict=True)

    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[dict[str, Any]], Field(min_length=1)]
    ) = Field(
        description="A text, texts that get one result each, or parts (`text`, `image_url`) that "
        "get one result together. Images cannot be read: `coverage` says so."
    )
    stage: Stage = Field(Stage.INPUT, description="Which rules judge; not a field of OpenAI.")
    guardrails: GuardrailsWish | None = Field(
        None, description="Wishes about the policy; not a field of OpenAI."
    )


class ModerationReply(BaseModel):
    """The result for one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    verdict: Action
    coverage: CoverageReply


class ModerationsReply(BaseModel):
    """OpenAI's moderation reply; `model` is the policy with its digest."""

    id: str
    model: str
    results: list[ModerationReply]


@router.post(
    "/v1/moderations",
    summary="Judge texts (OpenAI's shape)",
    response_model=ModerationsReply,
    responses=errors(400, 401, 413, 422, 429, 500, 503),
    openapi_extra=documented_body(ModerationsRequest),
)
async def moderations(request: Request, parts: ComponentsOf, caller: CallerOf) -> Response:
    """Works with an unmodified OpenAI client.

    Categories that OpenAI has no name for stand beside its own.
    """
    begun = time.perf_counter()
    asked = await read_model(request, ModerationsRequest)
    policy = choose_policy(parts, caller, request, asked.guardrails)
    work = judge_all(parts, _items(asked), policy, endpoint="moderations")
    outcomes = await while_present(request, work)
    verdicts, failures = split(outcomes)
    if failures:
        # The shape has no place for the failure of one text among others.
        raise failures[0]
    applied = _APPLIED if _has_text(asked) else ()
    payload = {
        "id": f"modr-{uuid4().hex}",
        "model": f"{policy.name}@{policy.digest[:_DIGEST_CHARS]}",
        "results": [_result(verdict, applied) for verdict in verdicts],
    }
    duration_s = time.perf_counter() - begun
    return replies.json_response(payload, headers=replies.headers(outcomes, policy, duration_s))


def _items(asked: ModerationsRequest) -> list[Item]:
    if isinstance(asked.input, str):
        return [Item.of(Conversation.of_text(asked.input), asked.stage)]
    if isinstance(asked.input[0], str):
        texts = [text for text in asked.input if isinstance(text, str)]
        return [Item.of(Conversation.of_text(text), asked.stage) for text in texts]
    chat = read_request({"messages": [{"role": "user", "content": asked.input}]})
    return [Item.of(chat.conversation, asked.stage)]


def _has_text(asked: ModerationsRequest) -> bool:
    return isinstance(asked.input, str) or any(
        isinstance(part, str) or "text" in part for part in asked.input
    )


def _result(verdict: Verdict, applied: tuple[str, ...]) -> dict[str, Any]:
    flagged = openai_scores(dict.fromkeys(verdict.flagged, 1.0))
    return {
        "flagged": replies.is_flagged(verdict),
        "categories": {name: score > 0.0 for name, score in flagged.items()},
        "category_scores": openai_scores(verdict.category_scores),
        "category_applied_input_types": dict.fromkeys(flagged, applied),
        "verdict": verdict.action.value,
        "coverage": replies.coverage_json(verdict.coverage),
    }
