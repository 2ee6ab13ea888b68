"""Judging the items of one request together, so that they share the detectors' batches.

Knows nothing about request or reply shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from app.api.components import Components
from app.domain.conversation import Conversation, Stage
from app.domain.errors import DeadlineExceeded, Overloaded, SluicewayError, TooLarge
from app.domain.policy import Policy
from app.domain.verdict import DetectorStatus, Verdict, merge

Outcome: TypeAlias = Verdict | SluicewayError


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that gets one verdict: each of its conversations at its own stage."""

    sides: tuple[tuple[Conversation, Stage], ...]

    @classmethod
    def of(cls, conversation: Conversation, stage: Stage) -> Item:
        """An item with one side."""
        return cls(((conversation, stage),))


async def judge_all(
    parts: Components, items: Sequence[Item], policy: Policy, *, endpoint: str
) -> list[Outcome]:
    """One outcome for each item, in order: its verdict, or why there is none.

    Items run concurrently under one deadline; what is not judged by then has failed.

    Raises:
        TooLarge: There are more items than a request may have.
    """
    if len(items) > parts.limits.max_inputs:
        raise TooLarge(f"more than {parts.limits.max_inputs} texts", param="input")
    outcomes: list[Outcome] = [DeadlineExceeded("the deadline passed")] * len(items)

    async def judge(index: int) -> None:
        try:
            outcomes[index] = await _judge(parts, items[index], policy, endpoint)
        except SluicewayError as error:
            outcomes[index] = error

    try:
        async with (
            asyncio.timeout(parts.limits.deadline_ms / 1000),
            asyncio.TaskGroup() as group,
        ):
            for index in range(len(items)):
                group.create_task(judge(index))
    except TimeoutError:
        pass  # The items that were not reached keep their DeadlineExceeded.
    return outcomes


def split(outcomes: Sequence[Outcome]) -> tuple[list[Verdict], list[SluicewayError]]:
    """The verdicts and the failures among `outcomes`, each in order."""
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    return verdicts, [outcome for outcome in outcomes if isinstance(outcome, SluicewayError)]


async def _judge(parts: Components, item: Item, policy: Policy, endpoint: str) -> Verdict:
    sides = [
        parts.engine.moderate(conversation, stage, policy, endpoint=endpoint)
        for conversation, stage in item.sides
    ]
    # One side is the usual case, and there are many of it: no task of its own.
    verdict = await sides[0] if len(sides) == 1 else merge(await asyncio.gather(*sides))
    if verdict.unjudged and verdict.degraded == DetectorStatus.OVERLOADED:
        # Nothing was found and nothing is broken: the caller can simply try again.
        raise Overloaded("the detectors' queue is full")
    return verdict
