from __future__ import annotations

import json

import pytest

from app.domain.errors import UpstreamError
from app.proxy.absent import AbsentUpstream
from tests.proxy.chats import QUESTION, policy, proxy_of


async def test_chats_are_refused_and_no_models_are_listed() -> None:
    upstream = AbsentUpstream()
    proxy, _ = proxy_of(upstream)
    with pytest.raises(UpstreamError, match="SLUICEWAY_UPSTREAM__BASE_URL"):
        await proxy.chat(QUESTION, policy=policy(), headers={})
    reply = await proxy.models(headers={})
    assert json.loads(reply.body) == {"object": "list", "data": []}  # type: ignore[arg-type]
    await upstream.close()
