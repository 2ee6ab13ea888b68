import torch

from app.training.evaluation.rectification.reader import Reader
from tests.training.evaluation.rectification.tiny import every_score


def test_rows_read_as_if_each_text_stood_alone(writers, prompts):
    before = writers.layout.tokens("harmless words")
    texts = [list(prompts[0]), list(prompts[0]), list(prompts[1])]
    reader = Reader(writers.model, before)
    scores = reader.begin(texts)
    for new in ((5, 9, 30), (6, 7, 31)):
        for row, text in enumerate(texts):
            torch.testing.assert_close(scores[row], every_score(writers.model, [*before, *text]))
            text.append(new[row])
        scores = reader.newest(texts)


def test_a_text_that_was_shortened_is_read_right(writers, prompts):
    text = list(prompts[0])
    reader = Reader(writers.model)
    reader.begin([text])
    for token in (5, 6, 7):
        text.append(token)
        reader.newest([text])
    del text[-2:]
    again = reader.newest([text])
    torch.testing.assert_close(again[0], every_score(writers.model, text))
