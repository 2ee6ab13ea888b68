"""Everyday tasks around a text: rewrite it, sort it, pull something out of it.

Knows nothing about labels: a task is harmless, so the text in it decides.
"""

from __future__ import annotations

import random
from typing import Final

TASKS: Final = (
    "Correct the spelling and the grammar of the text below.",
    "Rewrite this so that it is easier to read.",
    "Rewrite the following in the third person.",
    "Make this shorter without losing anything important.",
    "Summarize the text in one sentence.",
    "Give me three bullet points that sum up this passage.",
    "Translate the following text into Spanish.",
    "Translate this into formal German, please.",
    "Is the sentiment of this review positive, negative or neutral?",
    "Classify the text into one of these topics: sports, politics, business, science.",
    "Decide whether the following e-mail is spam.",
    "Tell whether this sentence is a question, a statement or an order.",
    "Extract all names of people and places from the text.",
    "Pull the dates and the amounts of money out of this message.",
    "List the key words of the following paragraph.",
    "Answer the question with the help of the passage below.",
    "What is the author's opinion in this text?",
    "Who is speaking here, and to whom?",
    "Find a good title for the following.",
    "Continue this text with two more sentences.",
    "Write a polite reply to this message.",
    "Turn the notes below into a short e-mail.",
    "Put these sentences into a better order.",
    "Count the words in the following text.",
    "Explain what this means to a ten-year-old.",
    "Replace every name in the text by a placeholder.",
    "Which of the words below is an adverb?",
    "Compare the text with its summary and say what is missing.",
    "Format this as a table.",
    "Convert the text below into JSON with the fields title and body.",
)
_MARKS: Final = ("", "Text: ", "Input: ", "Passage: ", "Sentence: ", "Tweet: ", "Comment: ")


def tasked(text: str, chance: random.Random) -> str:
    """`text` with one of the tasks before it, or after it now and then."""
    task = chance.choice(TASKS)
    if chance.random() < 1 / 2:
        task = task[0].lower() + task[1:].rstrip(".")
    gap = chance.choice(("\n", "\n\n", " "))
    if chance.random() < 1 / 5:
        return f"{text}{gap}{task}"
    mark = chance.choice(_MARKS)
    quote = chance.choice(("", "", '"'))
    return f"{task}{gap}{mark}{quote}{text}{quote}"
