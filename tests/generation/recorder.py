"""Who listens to a batch in tests, and how a batch is run to its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from app.domain.errors import SluicewayError
from app.generation.batch import Batch
from app.generation.request import Delta, GenerationRequest


@dataclass
class Recorder:
    request: GenerationRequest
    cancelled: bool = False
    deltas: list[Delta] = field(default_factory=list)
    errors: list[SluicewayError] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def put(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def prompt_read(self, states: Tensor) -> None:
        self.states.append(states)

    def fail(self, error: SluicewayError) -> None:
        self.errors.append(error)

    def text(self, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    @property
    def finish_reasons(self) -> list[str]:
        return [delta.finish_reason for delta in self.deltas if delta.finish_reason]


def ask(prompt: tuple[int, ...], tokens: int = 20, **extra: object) -> Recorder:
    return Recorder(GenerationRequest(prompt, tokens, **extra))


def run(batch: Batch, *listeners: Recorder) -> None:
    """Start each as soon as there is room, and step to the end."""
    waiting = list(listeners)
    while waiting or batch.busy:
        if waiting and batch.has_room(waiting[0].request):
            batch.start(waiting.pop(0))
        batch.step()
