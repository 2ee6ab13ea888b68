"""The critic as a detector stops a stream of any upstream, the way that every detector does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.detectors.critic import CriticDetector
from app.domain.policy import Action
from app.generation.answers import Answers
from app.inference.artefact import load_artefact
from app.inference.batcher import Batcher
from app.inference.critic_backend import CriticBackend
from app.metrics import Metrics
from app.rectification.critic_model import Critic
from tests.critic_folder import byte_tokenizer, write_critic_folder
from tests.fake_upstream import delta, finish, usage
from tests.proxy.chats import STREAMED, ScriptedUpstream, output_only, policy, proxy_of, read

MARK = byte_tokenizer().token_to_id("!")
CALM = "All of this is as calm as can be. " * 6


class Wary(CriticBackend):
    """Fears whatever comes with an exclamation mark."""

    def predict(self, batch: Sequence[Sequence[int]]) -> Any:
        risks = super().predict(batch)
        return np.where([[MARK in row] for row in batch], np.float32(0.9), risks)


@pytest.mark.parametrize("talk", [CALM, CALM + "Now beware! " + CALM])
async def test_an_answer_is_stopped_where_it_turns(tmp_path: Any, talk: str) -> None:
    artefact = load_artefact(write_critic_folder(tmp_path / "critic", 0.1))
    torch.set_num_threads(1)
    metrics = Metrics()
    backend = Wary(Critic.load(artefact.folder), threads=1)
    batcher = Batcher(
        backend, name="critic", metrics=metrics, max_batch_tokens=4_096, max_queue_tokens=65_536
    )
    batcher.start()
    detector = CriticDetector(artefact, Answers(byte_tokenizer()), batcher, metrics=metrics)
    pieces = [talk[at : at + 9] for at in range(0, len(talk), 9)]
    upstream = ScriptedUpstream(
        [*(delta(content=piece) for piece in pieces), finish(), usage(), "[DONE]"]
    )
    proxy, _ = proxy_of(upstream, detector, metrics=metrics)
    chosen = output_only(policy(Action.BLOCK))
    chosen = replace(chosen, output=replace(chosen.output, detectors=("critic",)))

    reply = await proxy.chat(STREAMED, policy=chosen, headers={})
    seen = await asyncio.wait_for(read(reply), 20)
    await batcher.close()

    assert upstream.closed
    if talk == CALM:
        assert seen.text() == talk
        assert seen.finishes == {0: "stop"}
    else:
        assert seen.finishes == {0: "content_filter"}
        assert CALM.startswith(seen.text())
        assert len(seen.text()) > len(CALM) / 2
        assert any("categories=harassment" in each for each in seen.comments)
