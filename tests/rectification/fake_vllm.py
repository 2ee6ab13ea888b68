"""vLLM's side of its two interfaces for logits processors, as far as a processor can see it."""

from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace

import numpy as np
import torch

from app.rectification.sampling import cut
from app.rectification.vllm_policy import sampling_of


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list
    added: list
    moved: list


def params(**changed):
    neutral = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "extra_args": None,
    }
    return SimpleNamespace(**(neutral | changed))


def config(vocabulary, **changed):
    settings = {
        "named": ["app.rectification.vllm_processor:Rectification"],
        "async_scheduling": False,
        "speculative": None,
        "prompt_embeds": False,
        "eos": 1,
    } | changed
    return SimpleNamespace(
        speculative_config=settings["speculative"],
        scheduler_config=SimpleNamespace(async_scheduling=settings["async_scheduling"]),
        model_config=SimpleNamespace(
            logits_processors=settings["named"],
            enable_prompt_embeds=settings["prompt_embeds"],
            get_vocab_size=lambda: vocabulary,
            hf_config=SimpleNamespace(eos_token_id=settings["eos"]),
        ),
    )


@dataclass
class Request:
    params: SimpleNamespace
    prompt: list
    output: list = field(default_factory=list)


class FirstRunner:
    """The persistent batch: the lowest free row is filled first, the rest is condensed."""

    def __init__(self, processor, placeholders=False):
        self.processor = processor
        self.placeholders = placeholders  # as asynchronous scheduling: the newest token comes late
        self.rows = []
        self._late = {}

    def change(self, gone=(), new=(), swapped=()):
        """Rows that end, requests that come, pairs of rows that trade places after that."""
        removed, added, moved = sorted(gone, reverse=True), [], []
        for row in removed:
            self.rows[row] = None
        for request in new:
            row = removed.pop() if removed else len(self.rows)
            if row == len(self.rows):
                self.rows.append(None)
            self.rows[row] = request
            added.append((row, request.params, request.prompt, request.output))
        while removed:
            last = max((row for row, one in enumerate(self.rows) if one is not None), default=-1)
            if removed[-1] >= last:
                break
            hole = removed.pop()
            self.rows[hole], self.rows[last] = self.rows[last], None
            moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        for first, second in swapped:
            self.rows[first], self.rows[second] = self.rows[second], self.rows[first]
            moved.append((first, second, MoveDirectionality.SWAP))
        update = BatchUpdate(len(self.rows), removed, added, moved)
        self.processor.update_state(update if removed or added or moved else None)

    def step(self, logits, tokens):
        """One forward pass: what the processor makes of the logits; then the tokens are sampled."""
        for request in self.rows:
            if request.output and request.output[-1] == -1:
                request.output[-1] = self._late[id(request)]
        result = self.processor.apply(logits.clone())
        for request, token in zip(self.rows, tokens, strict=True):
            self._late[id(request)] = token
            request.output.append(-1 if self.placeholders else token)
        return result


class SecondRunner:
    """Slots that stay; rows in another order at every step; the tokens in a tensor."""

    def __init__(self, slots, longest):
        self.state = SimpleNamespace(
            device=torch.device("cpu"),
            all_token_ids=SimpleNamespace(gpu=torch.zeros(slots, longest, dtype=torch.int32)),
        )
        self.processor = None
        self.slots = {}
        self.lengths = {}

    def add(self, slot, request):
        """A new request, or one that comes back after it had to make room."""
        text = request.prompt + request.output
        self.state.all_token_ids.gpu[slot] = -7  # what was there before is not to be read
        self.state.all_token_ids.gpu[slot, : len(text)] = torch.tensor(text)
        self.slots[slot], self.lengths[slot] = request, len(text)
        return self.processor.add_request(slot, request.params)

    def step(self, order, logits, tokens):
        lengths = np.array([self.lengths[slot] for slot in order])
        tensor = self.state.all_token_ids.gpu
        context = SimpleNamespace(
            idx_mapping_np=np.array(order),
            input_ids=torch.stack([tensor[slot, self.lengths[slot] - 1] for slot in order]),
            seq_lens_upper_bound_np=lengths,
        )
        result = self.processor.apply(logits.clone(), context)
        for slot, token in zip(order, tokens, strict=True):
            self.slots[slot].output.append(token)
            tensor[slot, self.lengths[slot]] = token
            self.lengths[slot] += 1
        return result


def drawn_from(logits, request_params):
    """What vLLM does after a custom processor: temperature, top-k, top-p."""
    sampling = sampling_of(request_params)
    return cut(logits[None] / sampling.divisor, [sampling])[0].softmax(-1)
