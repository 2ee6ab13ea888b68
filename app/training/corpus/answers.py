"""Answers of the embedded language model to training prompts: what ordinary output looks like.

Knows nothing about detectors. The public sets hold answers to red-team prompts only, so a detector
trained on them takes every answer that helps for an unsafe one. Answers are kept on disk; a run
that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from app.generation.weights import prepare_weights
from app.training.corpus.datasets import Sample

SOURCE: Final = "smollm2_answers"
LICENCE: Final = "Apache-2.0 (written by SmolLM2-135M-Instruct)"

_BATCH: Final = 48
_NEW_TOKENS: Final = 90
_LONGEST_PROMPT: Final = 240  # characters
_REFUSAL: Final = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i apologi[sz]e|i can'?t|i cannot|i'?m not able|i won'?t|"
    r"not appropriate|against the law|illegal|unethical|as an ai)\b",
    re.IGNORECASE,
)


def answer_samples(
    prompts: Sequence[Sample], *, cache: Path, weights: Path, harmless: int, harmful: int, seed: int
) -> list[Sample]:
    """Pairs of a prompt and an answer.

    An answer to a harmless prompt is harmless. One to a harmful prompt that shows no sign of
    refusal or objection counts as unsafe, the others are left out.

    Args:
        prompts: Training rows to draw prompts from.
        cache: The file that the answers are kept in.
        weights: Where the converted language model is kept.
        harmless: How many harmless prompts are answered.
        harmful: How many harmful ones.
        seed: Of the draw and of the sampling.
    """
    known = _kept(cache)

    def order(prompt: Sample) -> tuple[bool, bytes]:
        """Answered ones first, then by a hash: a wider corpus asks for few new answers."""
        return prompt.text not in known, sha256(
            f"{seed} {prompt.text}".encode(errors="replace")
        ).digest()

    short = [p for p in prompts if p.role == "prompt" and len(p.text) <= _LONGEST_PROMPT]
    chosen: list[Sample] = []
    for label, count in ((0.0, harmless), (1.0, harmful)):
        chosen += sorted((p for p in short if p.on_input == label), key=order)[:count]
    chosen.sort(key=order)
    answers = _answers([prompt.text for prompt in chosen], known, cache, weights, seed)
    return [
        Sample(
            answers[prompt.text],
            SOURCE,
            math.nan,
            prompt.on_input,
            prompt.categories,
            "response",
            prompt.text,
        )
        for prompt in chosen
        if answers.get(prompt.text)
        and not (prompt.on_input == 1.0 and _REFUSAL.search(answers[prompt.text]))
    ]


def _kept(cache: Path) -> dict[str, str]:
    if not cache.is_file():
        return {}
    rows = (json.loads(line) for line in cache.read_text("utf-8").splitlines())
    return {row["prompt"]: row["answer"] for row in rows}


def _answers(
    prompts: Sequence[str], known: dict[str, str], cache: Path, weights: Path, seed: int
) -> dict[str, str]:
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if not missing:
        return known
    cache.parent.mkdir(parents=True, exist_ok=True)
    writer = _Writer(weights, seed)
    with cache.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            for prompt, answer in zip(batch, writer.answers(batch), strict=True):
                known[prompt] = answer
                file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
            file.flush()
            print(f"answered {start + len(batch)} of {len(missing)} prompts", flush=True)
    return known


class _Writer:
    """The language model with sampling: temperature 0.7, the likeliest 0.9 of the mass."""

    def __init__(self, weights: Path, seed: int) -> None:
        import torch  # noqa: PLC0415 - only training has it
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - the same

        folder = prepare_weights(weights)
        torch.manual_seed(seed)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model: Any = model.eval()

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """One answer each; the last sentence may be cut."""
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        found = self._model.generate(
            **inputs, do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens=_NEW_TOKENS
        )
        new = found[:, inputs["input_ids"].shape[1] :]
        decoded: list[str] = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in decoded]
