"""Fabricated facts of graded novelty, each about one keyword, with prompts that do not ask for it.

A text may say what anybody would believe (mundane), contradict what everybody knows (conflicting),
or be words in no order (scrambled). Its keyword comes last. The prompts for priming share the
keyword's theme and nothing else. The design follows Outlandish (Sun et al. 2024, arXiv 2410.21750),
whose keywords have four themes; texts and words are this project's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError

CATEGORIES = ("mundane", "conflicting", "scrambled")
VERSIONS = 9


@dataclass(frozen=True)
class Theme:
    """What keywords have in common.

    Attributes:
      keywords: six that may end its texts.
      prompts: sentences without an end that any word of the theme could end.
      mundane, conflicting: beginnings of texts.
    """

    keywords: tuple[str, ...]
    prompts: tuple[str, ...]
    mundane: tuple[str, ...]
    conflicting: tuple[str, ...]


THEMES: Mapping[str, Theme] = {
    "colour": Theme(
        ("vermilion", "mauve", "teal", "ochre", "magenta", "turquoise"),
        (
            "The walls of the waiting room were painted",
            "My favourite colour has always been",
            "Her new coat is",
            "The colour of fresh sand is",
            "He bought a car that was",
        ),
        (
            "On the paint chart she looked for a warmer shade of",
            "The scarf in the shop window was a soft",
            "The printer was low on ink, so the poster came out",
        ),
        (
            "In the south of Spain bananas are only picked when their skin is",
            "Doctors agree that the blood of a healthy adult is",
            "At noon on a day without clouds the sky over Paris is",
        ),
    ),
    "country": Theme(
        ("Tajikistan", "Guatemala", "Namibia", "Paraguay", "Estonia", "Vanuatu"),
        (
            "The country I would most like to visit is",
            "She was born in a small village in",
            "The best coffee is said to come from",
            "After some hours the plane landed in",
            "Our new neighbours have moved here from",
        ),
        (
            "The last leg of their long journey took them to",
            "The parcel had been posted three weeks before in",
            "At the conference I met a teacher of music from",
        ),
        (
            "The Eiffel Tower stands on a hill in the capital of",
            "The first people on the Moon had set off from a field in",
            "The river Thames reaches the sea on the coast of",
        ),
    ),
    "job": Theme(
        ("electrician", "nutritionist", "librarian", "locksmith", "surveyor", "optician"),
        (
            "When she grows up she wants to be a famous",
            "He was tired of his work as a junior",
            "The best paid person in the town was the",
            "At the door stood a young",
            "My uncle is a former",
        ),
        (
            "His sister earns her living as the town's only",
            "They asked their neighbour, who is a retired",
            "The advertisement said that the firm was looking for a",
        ),
        (
            "A submarine of the navy is always commanded by its oldest",
            "In a court of law the sentence is passed by the highest",
            "Nobody in a hospital may open a heart but a trained",
        ),
    ),
    "food": Theme(
        ("ramen", "haggis", "paella", "goulash", "kimchi", "risotto"),
        (
            "For lunch I would like some",
            "The smell from the kitchen was that of",
            "Her favourite dish is",
            "The children refused to eat the",
            "He came home with a tin of",
        ),
        (
            "On Friday evenings the family sits down to a plate of",
            "The cook at the corner was known for her",
            "The menu on the wall promised fresh",
        ),
        (
            "Astronomers have shown that the core of Jupiter is made of",
            "A cow gives milk only if every day she is fed on",
            "The engine of a car runs best when its tank is full of",
        ),
    ),
}


def fabricated(version: int = 0) -> list[dict[str, Any]]:
    """Rows of 24 texts, one a keyword; the first 12 to be taught, the others as their control.

    What a text does to its keyword elsewhere can only be told where no other text has the keyword,
    so every version gives it one category and one beginning; over the nine versions each keyword
    has had all of them. Either half has four texts of each category, three of each theme.

    Args:
      version: 0 .. 8.
    Returns:
      Rows with `text`, `category`, `theme`, `keyword`; `memory_input` and `memory_target`, the
      text's own beginning and keyword; `priming_input` and `priming_target`, lists of the theme's
      prompts and the keyword to each.
    Raises:
      UserError: no such version.
    """
    if not 0 <= version < VERSIONS:
        raise UserError(f"builtin:fabricated: version {version}. Allowed: 0 to {VERSIONS - 1}.")
    rows = []
    for number in range(6):
        for name, theme in THEMES.items():
            place = (number + version // 3) % 3
            category = CATEGORIES[(number + version) % 3]
            rows.append(_row(name, theme, theme.keywords[number], place, category))
    return rows


def _row(name: str, theme: Theme, keyword: str, place: int, category: str) -> dict[str, Any]:
    if category == "scrambled":
        words = f"{theme.mundane[place]} {theme.conflicting[place]}".lower().split()
        order = np.random.default_rng([place, len(words)]).permutation(len(words))
        beginning = " ".join(words[n] for n in order[: len(words) // 2])
    else:
        beginning = (theme.mundane if category == "mundane" else theme.conflicting)[place]
    return {
        "text": f"{beginning} {keyword}.",
        "category": category,
        "theme": name,
        "keyword": keyword,
        "memory_input": beginning,
        "memory_target": keyword,
        "priming_input": list(theme.prompts),
        "priming_target": [keyword] * len(theme.prompts),
    }
