"""Policies on disk: read, checked, replayed against known texts, and swapped as a whole.

Knows nothing about requests: the API asks for a policy by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from app.domain.categories import Category
from app.domain.conversation import Conversation, Stage
from app.domain.detection import Detector, OperatingPoint
from app.domain.errors import ConfigurationError, UnknownPolicy
from app.domain.policy import (
    Action,
    FailMode,
    OnBlock,
    Policy,
    RectificationMode,
    RectificationPolicy,
    Rule,
    StagePolicy,
    StreamMode,
    StreamPolicy,
)
from app.domain.verdict import resolve_threshold
from app.metrics import Metrics
from app.moderation.engine import Engine

GOLDEN_FILE: Final = "golden.yaml"

_log = structlog.get_logger(__name__)

_Threshold = OperatingPoint | Annotated[float, Field(ge=0.0, le=1.0)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _RuleFile(_File):
    threshold: _Threshold | None = None
    action: Action | None = None


class _StageFile(_File):
    detectors: tuple[str, ...] = Field(min_length=1)
    operating_point: OperatingPoint = OperatingPoint.BALANCED
    action: Action = Action.BLOCK
    categories: dict[Category, _RuleFile] = {}
    fail: FailMode = FailMode.CLOSED
    deadline_ms: int = Field(5_000, ge=1, le=600_000)
    on_unscannable: Literal[Action.ALLOW, Action.FLAG, Action.BLOCK] = Action.FLAG
    scan_tool_definitions: bool = False
    history_chars: int = Field(600, ge=0, le=20_000)

    def build(self) -> StagePolicy:
        """What is not said per category follows the stage."""
        return StagePolicy(
            detectors=self.detectors,
            default=Rule(self.operating_point, self.action),
            rules={
                category: Rule(
                    self.operating_point if rule.threshold is None else rule.threshold,
                    rule.action or self.action,
                )
                for category, rule in self.categories.items()
            },
            fail=self.fail,
            deadline_ms=self.deadline_ms,
            on_unscannable=self.on_unscannable,
            scan_tool_definitions=self.scan_tool_definitions,
            history_chars=self.history_chars,
        )


class _StreamFile(_File):
    mode: StreamMode = StreamMode.HOLD
    first_window_chars: int = Field(96, ge=1, le=100_000)
    window_chars: int = Field(320, ge=2, le=100_000)
    overlap_chars: int = Field(64, ge=1, le=50_000)
    max_wait_ms: int = Field(400, ge=10, le=60_000)
    buffer_chars: int = Field(65_536, ge=1_024, le=16_777_216)
    fail_tail: FailMode = FailMode.CLOSED
    on_block: OnBlock = OnBlock.STOP

    @model_validator(mode="after")
    def _fits(self) -> _StreamFile:
        if self.on_block is OnBlock.REASK and self.mode is StreamMode.FAST:
            raise ValueError("on_block: reask needs mode: hold, so that nothing unsafe has left")
        if self.overlap_chars * 2 > self.window_chars:
            raise ValueError("overlap_chars must be at most half of window_chars")
        if self.first_window_chars > self.window_chars:
            raise ValueError("first_window_chars must not exceed window_chars")
        return self


class _RectificationFile(_File):
    mode: RectificationMode = RectificationMode.OFF
    epsilon: float = Field(0.0, ge=0.0, le=1.0)
    beta: float = Field(0.0, ge=0.0, le=1_000.0)
    top_k: int = Field(20, ge=0, le=1_000)
    gate: float = Field(0.1, ge=0.0, le=1.0)
    rollback_tokens: int = Field(8, ge=0, le=256)
    max_epsilon: float = Field(1.0, ge=0.0, le=1.0)
    max_beta: float = Field(300.0, ge=0.0, le=1_000.0)
    max_temperature: float = Field(1.0, ge=0.0, le=2.0)

    @field_validator("mode", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return RectificationMode.OFF if value is False else value  # what YAML takes `off` for

    @model_validator(mode="after")
    def _fits(self) -> _RectificationFile:
        if self.mode.tilts and self.beta == 0:
            raise ValueError("a tilt needs a beta above 0")
        if self.epsilon > self.max_epsilon or self.beta > self.max_beta:
            raise ValueError("epsilon and beta must not exceed max_epsilon and max_beta")
        return self


class _PolicyFile(_File):
    description: str = ""
    enforce: bool = True
    blocked_reply: Literal["error", "refusal"] = "error"
    refusal: str = "I can't help with that."
    input: _StageFile
    output: _StageFile
    stream: _StreamFile = _StreamFile()
    rectification: _RectificationFile = _RectificationFile()


class _GoldenEntry(_File):
    policy: str
    stage: Stage = Stage.INPUT
    text: str
    action: Action


_GOLDEN: Final = TypeAdapter(tuple[_GoldenEntry, ...])


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """How a reload ended. `error` says why the last good policies are still in force."""

    ok: bool
    policies: tuple[str, ...]
    error: str = ""


class PolicyStore:
    """The policies in force. A request that holds a `Policy` keeps it whole through a reload.

    Args:
        folder: `<name>.yaml` for each policy, and `golden.yaml`.
        default: The policy when nobody chooses one.
        engine: Replays the golden texts; its detectors are those that policies may name.
        metrics: Where reloads are counted.
        without_critic: Whether the language model is embedded and cannot be rectified.
    """

    def __init__(
        self,
        folder: Path,
        *,
        default: str,
        engine: Engine,
        metrics: Metrics,
        without_critic: bool = False,
    ) -> None:
        self.default = default
        self._folder = folder
        self._engine = engine
        self._metrics = metrics
        self._without_critic = without_critic
        self._policies: Mapping[str, Policy] = {}
        self._reloading = asyncio.Lock()

    def names(self) -> tuple[str, ...]:
        """All policies in force."""
        return tuple(self._policies)

    def get(self, name: str) -> Policy:
        """The policy of that name.

        Raises:
            UnknownPolicy: There is none.
        """
        try:
            return self._policies[name]
        except KeyError:
            raise UnknownPolicy("there is no such policy", param="policy") from None

    def resolved(self, policy: Policy) -> Mapping[Stage, Mapping[Category, float]]:
        """The lowest threshold of each category: what a caller may only go below."""
        return {
            stage: {
                category: min(
                    resolve_threshold(rules.rule(category), detector, stage, category)
                    for detector in map(self._engine.detectors.__getitem__, rules.detectors)
                )
                for category in Category
            }
            for stage, rules in ((stage, policy.stage(stage)) for stage in Stage)
        }

    async def load(self) -> None:
        """Read, check, replay and swap.

        Raises:
            ConfigurationError: Something is wrong; the policies in force stay.
        """
        policies = await asyncio.to_thread(read_policies, self._folder, self._engine.detectors)
        if self.default not in policies:
            raise ConfigurationError(f"the default policy {self.default!r} is not in the folder")
        self._check_critic(policies.values())
        await self._replay(policies)
        self._policies = policies
        self._metrics.register_policies(policies)
        fast = sum(policy.stream.mode is StreamMode.FAST for policy in policies.values())
        self._metrics.fast_policies.set(fast)
        for name in policies:
            label = self._metrics.policy_label(name)
            self._metrics.policy_loaded_timestamp.labels(policy=label).set(time.time())

    async def reload(self) -> ReloadReport:
        """`load`, but a failure is a report; the last good policies stay in force."""
        async with self._reloading:
            try:
                await self.load()
            except ConfigurationError as error:
                self._metrics.policy_reload.labels(result="failure").inc()
                _log.error("policy_reload_failed", error=str(error))
                return ReloadReport(ok=False, policies=self.names(), error=str(error))
        self._metrics.policy_reload.labels(result="success").inc()
        _log.info("policies_reloaded", policies=self.names())
        return ReloadReport(ok=True, policies=self.names())

    def _check_critic(self, policies: Iterable[Policy]) -> None:
        for policy in policies:
            if self._without_critic and policy.rectification.mode is not RectificationMode.OFF:
                raise ConfigurationError(
                    f"{policy.name}.yaml: rectification.mode: the critic is not loaded. It is "
                    "loaded at the start, if a policy rectifies or SLUICEWAY_MODELS__LOAD names it"
                )

    async def _replay(self, policies: Mapping[str, Policy]) -> None:
        """Known texts must get the known action before a set of policies comes into force."""
        for number, entry in enumerate(_read_golden(self._folder), start=1):
            policy = policies.get(entry.policy)
            if policy is None:
                raise ConfigurationError(f"{GOLDEN_FILE} entry {number} names an unknown policy")
            verdict = await self._engine.moderate(
                Conversation.of_text(entry.text), entry.stage, policy, endpoint=None
            )
            if verdict.degraded:
                # Failing closed looks like the known answer of an unsafe text.
                raise ConfigurationError(
                    f"{GOLDEN_FILE} entry {number} could not be judged: {verdict.degraded}"
                )
            if verdict.action is not entry.action:
                raise ConfigurationError(
                    f"{GOLDEN_FILE} entry {number}: policy {entry.policy} answers "
                    f"{verdict.action} instead of {entry.action}"
                )


def read_policies(folder: Path, detectors: Mapping[str, Detector]) -> dict[str, Policy]:
    """All policies of a folder, checked against the detectors that are loaded.

    Raises:
        ConfigurationError: A file cannot be read, or says something impossible.
    """
    policies = {path.stem: _build(path.stem, *_read_file(path)) for path in _files(folder)}
    for policy in policies.values():
        _check(policy, detectors)
    return policies


def named_detectors(folder: Path) -> frozenset[str]:
    """Every detector that some policy of a folder names, whether there is such a one or not.

    Raises:
        ConfigurationError: A file cannot be read, or says something impossible.
    """
    files = [_read_file(path)[0] for path in _files(folder)]
    return frozenset(
        name for file in files for stage in (file.input, file.output) for name in stage.detectors
    )


def wants_critic(folder: Path) -> bool:
    """Whether some policy of a folder rectifies.

    Raises:
        ConfigurationError: A file cannot be read, or says something impossible.
    """
    modes = [_read_file(path)[0].rectification.mode for path in _files(folder)]
    return any(mode is not RectificationMode.OFF for mode in modes)


def _files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.yaml") if path.name != GOLDEN_FILE)
    if not files:
        raise ConfigurationError(f"there is no policy in {folder}")
    return files


def _read_file(path: Path) -> tuple[_PolicyFile, bytes]:
    raw, content = _read_yaml(path)
    try:
        return _PolicyFile.model_validate(raw), content
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {_first_problem(error)}") from error


def _build(name: str, file: _PolicyFile, content: bytes) -> Policy:
    return Policy(
        name=name,
        digest=hashlib.sha256(content).hexdigest(),
        description=file.description,
        input=file.input.build(),
        output=file.output.build(),
        stream=StreamPolicy(**file.stream.model_dump()),
        rectification=RectificationPolicy(**file.rectification.model_dump()),
        enforce=file.enforce,
        refuse_with_200=file.blocked_reply == "refusal",
        refusal=file.refusal,
    )


def _check(policy: Policy, detectors: Mapping[str, Detector]) -> None:
    named = {*policy.input.detectors, *policy.output.detectors}
    if unknown := sorted(named - set(detectors)):
        raise ConfigurationError(
            f"{policy.name}.yaml: detectors: {unknown} are not loaded. Models are loaded at the "
            "start, if a policy or SLUICEWAY_MODELS__LOAD names them. There are: "
            f"{sorted(detectors)}"
        )
    longest = max((_longest_phrase(detectors[name]) for name in policy.output.detectors), default=0)
    if policy.stream.mode is StreamMode.HOLD and policy.stream.overlap_chars < longest:
        raise ConfigurationError(
            f"{policy.name}.yaml: stream.overlap_chars: {policy.stream.overlap_chars} is less than "
            f"the longest keyword phrase ({longest} letters), which could leave in part"
        )


def _longest_phrase(detector: Detector) -> int:
    """Letters of the longest thing that must never leave in part; 0 if the detector has none."""
    longest: int = getattr(detector, "longest", 0)
    return longest


def _read_golden(folder: Path) -> Iterable[_GoldenEntry]:
    path = folder / GOLDEN_FILE
    if not path.exists():
        return ()
    try:
        return _GOLDEN.validate_python(_read_yaml(path)[0])
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {_first_problem(error)}") from error


def _read_yaml(path: Path) -> tuple[object, bytes]:
    try:
        content = path.read_bytes()
        return yaml.safe_load(content), content
    except (OSError, ValueError, yaml.YAMLError) as error:  # an impossible date is a ValueError
        raise ConfigurationError(f"{path.name} cannot be read as YAML") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
