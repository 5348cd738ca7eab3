"""The embedded benchmark: fictitious people in TOFU's schema, made from a seed, without a network.

Every person has the same attributes; their values are drawn independently of each other from pools
all people share, so that nothing but having read about a person tells anything about them. Several
wordings of each question and answer are shared by all people too. A person is learned in some of
them and judged in one never seen with them (`paraphrased_*`), against wrong values in that very
wording (`perturbed_answer`): telling them apart takes knowledge, not memory of a sentence.

Sets: `forget` and `retain` divide the people; `real_authors` (well-known ones) and `world_facts`
are multiple choice and always learned, by the oracle as well. On request there is `holdout` too:
people of the same kind whom no training row names.
"""

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxforget.data.fictitious_model import language, model_config, train_tokenizer
from jaxforget.data.fictitious_words import (
    COUNTRIES,
    FACTS,
    FIRST_NAMES,
    KNOWN,
    PEOPLE,
    POOLS,
    SURNAMES,
    TITLE,
    Topic,
)
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically, write_json

type Row = dict[str, Any]
type _Pools = Mapping[str, Sequence[str]]

_WRONG, _OPTIONS = 5, 3  # wrong answers of a person's row, and of a multiple-choice row
_LEAST_POOL = 2 * (_WRONG + 1)  # two slots of one pool, each with a right and five wrong values


class _Place(NamedTuple):
    """Which row: the `topic` of the `index`-th of a group."""

    group: str
    index: int
    topic: Topic

    def __str__(self) -> str:
        return f"{self.group}/{self.index}/{self.topic.name}"


@dataclass(frozen=True)
class Benchmark:
    """People, what is asked about them, and what a model reads to know it.

    Attributes:
      seed: everything follows from it (and the sizes).
      sets: rows to evaluate by set: `forget`, `retain`, `real_authors`, `world_facts`, and
        `holdout` where it was asked for. Each has question, answer, perturbed_answer and
        attribute; rows of people also person, rows of facts country; forget, retain and holdout
        also paraphrased_question and paraphrased_answer, which no training row holds for the same
        person and attribute.
      auxiliary: by set, further rows to train on: other wordings of the same content.
    """

    seed: int
    sets: Mapping[str, list[Row]]
    auxiliary: Mapping[str, list[Row]]

    def training(self, include_forget: bool) -> list[Row]:
        """Rows to train on: question, answer, attribute, and person or country.

        Args:
          include_forget: True for the model that is to forget, False for the oracle, which
            never sees a row about the people to forget.
        """
        rows = []
        for name in self.sets:
            if name != "holdout" and (name != "forget" or include_forget):
                rows += [_for_training(row) for row in self.sets[name]]
                rows += self.auxiliary[name]
        return rows


def _for_training(row: Row) -> Row:
    kept = ("question", "answer", "attribute", "person", "country")
    return {key: row[key] for key in kept if key in row}


def generate(
    seed: int = 0,
    *,
    forget_people: int = 10,
    retain_people: int = 30,
    known_people: int = 10,
    facts: int = 40,
    holdout_people: int = 0,
) -> Benchmark:
    """Draw a benchmark.

    Args:
      seed: >= 0; equal arguments give equal rows, on every machine.
      forget_people, retain_people: >= 1, eight rows each.
      known_people: well-known authors, 4 to 28, five rows each.
      facts: about the countries of an invented world, 1 to 80, one row each.
      holdout_people: >= 0, eight rows each; all other rows are the same without them.
    Returns:
      See `Benchmark`. Every value of a person to forget also belongs to a person to retain,
      given at least 12 of these.
    Raises:
      UserError: a size out of range, or more people than there are names.
    """
    _check_sizes(seed, forget_people, retain_people, known_people, facts, holdout_people)
    people = forget_people + retain_people + known_people
    first, last = _shuffled(seed, "first", FIRST_NAMES), _shuffled(seed, "last", SURNAMES)
    names = [f"{one} {two}" for one, two in zip(first, last, strict=False)]
    forget, retain = names[:forget_people], names[forget_people : forget_people + retain_people]
    known = names[forget_people + retain_people : people]
    unseen = names[people : people + holdout_people]
    most = max(_LEAST_POOL, retain_people)
    shared = {slot: values[:most] for slot, values in POOLS.items()}
    drawn = {
        "forget": _people(seed, "forget", forget, shared),
        "retain": _people(seed, "retain", retain, shared),
        "real_authors": _known(seed, known),
        "world_facts": _facts(seed, facts),
        **({"holdout": _people(seed, "holdout", unseen, shared)} if unseen else {}),
    }
    return Benchmark(
        seed,
        {name: [row for row, _ in pairs] for name, pairs in drawn.items()},
        {name: [row for _, rows in pairs for row in rows] for name, pairs in drawn.items()},
    )


def _check_sizes(seed: int, forget: int, retain: int, known: int, facts: int, holdout: int) -> None:
    most = min(len(FIRST_NAMES), len(SURNAMES))
    bounds = {
        "seed": (seed, 0, None),
        "forget_people": (forget, 1, None),
        "retain_people": (retain, 1, None),
        "known_people": (known, _OPTIONS + 1, len(POOLS["noun"])),
        "facts": (facts, 1, len(COUNTRIES) * len(FACTS)),
        "holdout_people": (holdout, 0, None),
        "people in all": (forget + retain + known + holdout, 0, most),
    }
    for name, (value, low, high) in bounds.items():
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"fictitious: {name} is {value}; allowed is {allowed}")


def _shuffled[T](seed: int, purpose: str, values: Sequence[T]) -> list[T]:
    """A random order drawn for one purpose alone.

    From raw Philox words, whose stream NumPy keeps the same in every version.
    """
    key = hashlib.sha256(f"fictitious/{seed}/{purpose}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key)).random_raw(len(values))
    return [values[at] for at in np.argsort(words, kind="stable").tolist()]


def _right(seed: int, place: _Place, pools: _Pools, fixed: Mapping[str, str]) -> dict[str, str]:
    """Value of every slot. People of a group take turns in a pool, so that all of it is used."""
    values: dict[str, str] = {}
    for slot in place.topic.slots:
        if slot in fixed:
            values[slot] = fixed[slot]
            continue
        pool = pools[slot.partition("_")[0]]
        round_, turn = divmod(place.index, len(pool))
        order = _shuffled(seed, f"{place.group}/{place.topic.name}/{slot}/{round_}", pool)
        free = (value for value in order[turn:] + order[:turn] if value not in values.values())
        values[slot] = next(free)
    return values


def _wrong(
    seed: int, place: _Place, pools: _Pools, right: Mapping[str, str], count: int
) -> list[dict[str, str]]:
    """`count` fillings that differ from the right one and from each other in every slot."""
    used: dict[str, int] = {}
    columns = {}
    for slot in right:
        name = slot.partition("_")[0]
        others = [value for value in pools[name] if value not in right.values()]
        order = _shuffled(seed, f"{place}/wrong/{name}", others)
        start = used.get(name, 0)
        columns[slot] = order[start : start + count]
        used[name] = start + count
    return [{slot: column[at] for slot, column in columns.items()} for at in range(count)]


def _people(
    seed: int, group: str, names: Sequence[str], pools: _Pools
) -> list[tuple[Row, list[Row]]]:
    """(row to evaluate, further rows to learn) of every person and attribute."""
    made = []
    for index, name in enumerate(names):
        for topic in PEOPLE:
            place = _Place(group, index, topic)
            right = _right(seed, place, pools, {})
            wrong = _wrong(seed, place, pools, right, _WRONG)
            questions = _shuffled(seed, f"{place}/questions", topic.questions)
            answers = _shuffled(seed, f"{place}/answers", topic.answers)
            asked = [question.format(name=name) for question in questions]
            told = [answer.format(**right) for answer in answers]
            about = {"person": name, "attribute": topic.name}
            row = {
                "question": asked[0],
                "answer": told[0],
                "paraphrased_question": asked[-1],
                "paraphrased_answer": told[-1],
                "perturbed_answer": [answers[-1].format(**values) for values in wrong],
            }
            more = [
                {"question": question, "answer": answer, **about}
                for question, answer in zip(asked[1:-1], told[1:-1], strict=True)
            ]
            made.append(({**row, **about}, more))
    return made


def _known(seed: int, names: Sequence[str]) -> list[tuple[Row, list[Row]]]:
    pools = {**POOLS, "name": tuple(names)}
    made = []
    for index, name in enumerate(names):
        title = TITLE.answers[0].format(**_right(seed, _Place("title", index, TITLE), pools, {}))
        for topic in KNOWN:
            fixed, about = {"name": name, "title": title}, {"person": name}
            made.append(_choices(seed, _Place("known", index, topic), pools, fixed, about))
    return made


def _facts(seed: int, count: int) -> list[tuple[Row, list[Row]]]:
    countries, made = _shuffled(seed, "countries", COUNTRIES), []
    for number in range(count):
        index, which = divmod(number, len(FACTS))
        about = {"country": countries[index]}
        made.append(_choices(seed, _Place("facts", index, FACTS[which]), POOLS, about, about))
    return made


def _choices(
    seed: int, place: _Place, pools: _Pools, fixed: Mapping[str, str], about: Mapping[str, str]
) -> tuple[Row, list[Row]]:
    """A multiple-choice row, and the same asked in the other ways."""
    topic = place.topic
    right = _right(seed, place, pools, fixed)
    wrong = _wrong(seed, place, pools, right, _OPTIONS)
    asked = [
        text.format(**fixed) for text in _shuffled(seed, f"{place}/questions", topic.questions)
    ]
    answer, about = topic.answers[0].format(**right), {**about, "attribute": topic.name}
    row = {"perturbed_answer": [topic.answers[0].format(**values) for values in wrong]}
    rows = [{"question": question, "answer": answer} for question in asked]
    return {**rows[0], **row, **about}, [{**other, **about} for other in rows[1:]]


def write(
    folder: str | pathlib.Path,
    seed: int = 0,
    *,
    vocab_size: int = 2048,
    forget_people: int = 10,
    retain_people: int = 30,
    known_people: int = 10,
    facts: int = 40,
    holdout_people: int = 0,
) -> Benchmark:
    """Write a benchmark as a user would have it on disk.

    Files: `forget.jsonl`, `retain.jsonl`, `real_authors.jsonl`, `world_facts.jsonl` (to evaluate;
    the first two also to unlearn), `holdout.jsonl` where asked for, `train_full.jsonl`,
    `train_without_forget.jsonl`, the tokenizer and, last of all, `config.json`: where that exists,
    all is complete.

    Args:
      folder: made where missing; each file is replaced as a whole.
      seed, forget_people, retain_people, known_people, facts, holdout_people: see `generate`.
      vocab_size: see `train_tokenizer`.
    Returns:
      What was written.
    Raises:
      UserError: see `generate` and `train_tokenizer`; a folder that cannot be written.
    """
    folder = pathlib.Path(folder).expanduser()
    made = generate(
        seed,
        forget_people=forget_people,
        retain_people=retain_people,
        known_people=known_people,
        facts=facts,
        holdout_people=holdout_people,
    )
    tokenizer = train_tokenizer(language(), vocab_size)
    files = {
        **made.sets,
        "train_full": made.training(include_forget=True),
        "train_without_forget": made.training(include_forget=False),
    }
    try:
        for name, rows in files.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(folder / f"{name}.jsonl", "".join(lines))
        with tempfile.TemporaryDirectory() as beside:
            tokenizer.save_pretrained(beside)
            for file in sorted(pathlib.Path(beside).iterdir()):
                write_atomically(folder / file.name, file.read_bytes())
        write_json(folder / "config.json", model_config(tokenizer))
    except OSError as error:
        raise UserError(f"{folder}: the benchmark cannot be written ({error.strerror})") from error
    return made
