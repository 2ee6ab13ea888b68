import pytest

from app.domain.categories import Category
from app.domain.policy import Action, FailMode, Policy, Rule, StagePolicy
from app.metrics import Metrics
from app.moderation.engine import Engine
from app.training.evaluation.judging import Judge
from tests.fakes import PhraseDetector

RULES = StagePolicy(
    detectors=("words", "model"),
    default=Rule(0.5, Action.BLOCK),
    rules={Category.PROFANITY: Rule(0.5, Action.FLAG)},
    fail=FailMode.CLOSED,
)
POLICY = Policy("tiny", "digest", RULES, RULES)


@pytest.fixture
def model():
    """A model that knows one word, and that is less sure of another thing."""
    return PhraseDetector(("bomb",), name="model", category=Category.VIOLENT_CRIMES, score=0.9)


@pytest.fixture
def judge(model):
    """A judge of a policy with two detectors; the first one finds what is only flagged."""
    words = PhraseDetector(("darn",), name="words", category=Category.PROFANITY)
    engine = Engine({"words": words, "model": model}, metrics=Metrics(), cached={"model"})
    return Judge(engine, POLICY, ["model"], {"model": "r1"})
