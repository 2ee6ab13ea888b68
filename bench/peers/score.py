"""Runs inside one peer's own environment: texts in on standard input, scores out.

Knows nothing about labels, and imports nothing of this project. One JSON line for each line:
`{"text"}` becomes `{"score", "caught", "ms"}`, caught as the peer itself decides.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module

Answer = tuple[float, bool]
Scorer = Callable[[str], Answer]


def alt_profanity_check() -> Scorer:
    """TF-IDF and a linear model; profanity."""
    predict_prob = import_module("profanity_check").predict_prob

    def score(text: str) -> Answer:
        found = float(predict_prob([text])[0])
        return found, found >= 0.5  # noqa: PLR2004 - its own `predict`

    return score


def best_profanity() -> Scorer:
    """A classic model; profanity in English and Tagalog."""
    predict_prob = import_module("best_profanity").predict_prob

    def score(text: str) -> Answer:
        found = float(predict_prob([text])[0])
        return found, found >= 0.5  # noqa: PLR2004 - its own `predict`

    return score


def prompt_guardrail() -> Scorer:
    """TF-IDF and logistic regression; injection. Its score is that of the label it names."""
    detect = import_module("guardify").detect

    def score(text: str) -> Answer:
        found = detect(text)
        caught = found["label"] == "injection"
        return (found["score"] if caught else 1.0 - found["score"]), caught

    return score


def prompt_injection_defense() -> Scorer:
    """Rules; injection. Points without an end become a score below one; `suspicious` is caught."""
    detect = import_module("prompt_injection_defense").detect_prompt_injection

    def score(text: str) -> Answer:
        found = detect(text)
        points = float(found["score"])
        return points / (points + 5.0), found["label"] != "benign"

    return score


def metatronnanoguard() -> Scorer:
    """A transformer of 16.8M parameters; injection."""
    guard = import_module("nanoguard").NanoGuard(device="cpu")

    def score(text: str) -> Answer:
        found = guard.scan(text)
        return found.injection_score, found.is_injection

    return score


PEERS: dict[str, Callable[[], Scorer]] = {
    "alt-profanity-check": alt_profanity_check,
    "best-profanity": best_profanity,
    "prompt-guardrail": prompt_guardrail,
    "prompt-injection-defense": prompt_injection_defense,
    "metatronnanoguard": metatronnanoguard,
}


def main() -> None:
    """Score every line with the peer that is named."""
    warnings.simplefilter("ignore")  # models of another version of scikit-learn
    score = PEERS[sys.argv[1]]()
    score("warm up")
    for line in sys.stdin:
        text = json.loads(line)["text"]
        begun = time.perf_counter()
        found, caught = score(text)
        taken = (time.perf_counter() - begun) * 1_000
        answer = {"score": round(float(found), 6), "caught": bool(caught), "ms": round(taken, 3)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
