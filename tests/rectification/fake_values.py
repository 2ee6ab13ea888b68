"""A critic's stand-in: q_values that depend on nothing but the token ids of a text."""

from zlib import crc32

import torch

VOCABULARY = 48


class FakeValues:
    """Half of the tokens are harmless, the other half anything up to certain harm."""

    def __init__(self, harm=1.0):
        self.harm = harm
        self.known = set()
        self.calls = 0

    def q_values(self, texts):
        self.calls += 1
        self.known |= set(texts)
        return torch.stack([q_of(ids, self.harm) for ids in texts.values()])

    def forget(self, key):
        self.known.discard(key)


def q_of(token_ids, harm=1.0):
    assert len(token_ids) > 0
    assert min(token_ids) >= 0
    seed = crc32(bytes(str(list(token_ids)), "ascii"))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(VOCABULARY, generator=generator)
    return -harm * (2 * drawn - 1).clamp(min=0)
