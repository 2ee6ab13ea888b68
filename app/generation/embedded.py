"""The embedded model put together: weights, tokenizer, engine and chat.

Knows nothing about settings. Importing it imports torch, so that is done only when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from app.generation.chat import EmbeddedChat
from app.generation.chatml import ChatMl, load_tokenizer
from app.generation.engine import Engine, EngineLimits
from app.generation.weights import MODEL_NAME, prepare_weights
from app.metrics import Metrics


@asynccontextmanager
async def open_embedded_model(
    cache: Path, limits: EngineLimits, metrics: Metrics, critic: Path | None = None
) -> AsyncGenerator[tuple[Engine, EmbeddedChat], None]:
    """Prepare, load and run the embedded model until the context is left.

    The first start converts the weights, which takes some ten seconds; later ones take one.
    `critic` is the folder of the critic that rectifies, if there is to be one.

    Raises:
        ModelMissing: the package with the weights is not installed, or there is no critic.
        ModelCorrupt: a file is not the one we know.
        ConfigurationError: the critic is not one for this model.
    """
    folder = await asyncio.to_thread(prepare_weights, cache)
    tokenizer = await asyncio.to_thread(load_tokenizer, folder)
    engine = await asyncio.to_thread(Engine.load, folder, tokenizer, limits, metrics, critic=critic)
    engine.start()
    try:
        yield engine, EmbeddedChat(engine, ChatMl(tokenizer), MODEL_NAME)
    finally:
        await engine.close()
