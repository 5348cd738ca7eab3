import collections
import functools
import hashlib
import json
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.data import fictitious
from jaxforget.data.fictitious_words import FACTS, KNOWN, PEOPLE, POOLS
from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template, render
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.errors import UserError
from jaxforget.models.config import DecoderConfig, param_shapes

SETS = ("forget", "retain", "real_authors", "world_facts")
PARAPHRASED = ("forget", "retain")
TOPICS = {topic.name: topic for topic in PEOPLE}
FILES = {f"{name}.jsonl" for name in (*SETS, "train_full", "train_without_forget")}


@pytest.fixture(scope="module")
def made():
    return fictitious.generate(0)


@pytest.fixture(scope="module")
def tokenizer():
    return fictitious.train_tokenizer(fictitious.language())


def names(made, *sets):
    return {row["person"] for name in sets for row in made.sets[name]}


@functools.cache
def pattern(wording):
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(wording)))


def pool(slot):
    return slot.partition("_")[0]


@functools.cache
def understood(attribute, text):
    """(index of the wording, values) of an answer about a person; exactly one wording fits."""
    fits = []
    for index, wording in enumerate(TOPICS[attribute].answers):
        found = pattern(wording).fullmatch(text)
        if found and all(value in POOLS[pool(slot)] for slot, value in found.groupdict().items()):
            fits.append((index, found.groupdict()))
    assert len(fits) == 1, (attribute, text, fits)
    return fits[0]


def everything(seed, vocab_size=2048):
    made = fictitious.generate(seed)
    tokenizer = fictitious.train_tokenizer(fictitious.language(), vocab_size)
    parts = (
        made.sets,
        made.training(True),
        made.training(False),
        tokenizer.backend_tokenizer.to_str(),
        fictitious.model_config(tokenizer),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_another_process_makes_the_same_rows_and_the_same_tokenizer():
    code = "from data.test_fictitious import everything; print(everything(3))"
    here = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": here}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == everything(3)


def test_seeds_give_different_people(made):
    other = fictitious.generate(1)
    assert other.sets["forget"] != made.sets["forget"]
    assert names(other, "forget") != names(made, "forget")


def test_rows_have_tofus_schema(made):
    assert tuple(made.sets) == SETS
    for name, rows in made.sets.items():
        common = {"question", "answer", "perturbed_answer", "attribute"}
        if name in PARAPHRASED:
            common |= {"paraphrased_question", "paraphrased_answer"}
        for row in rows:
            assert set(row) == common | {"country" if name == "world_facts" else "person"}
            assert len(row["perturbed_answer"]) == (5 if name in PARAPHRASED else 3)
            texts = [row[key] for key in common - {"perturbed_answer"}] + row["perturbed_answer"]
            assert all(isinstance(text, str) and text.strip() == text for text in texts)
            assert not any("{" in text or "  " in text for text in texts)


def test_counts_follow_the_sizes(made):
    assert [len(made.sets[name]) for name in SETS] == [80, 240, 50, 40]
    small = fictitious.generate(5, forget_people=2, retain_people=3, known_people=4, facts=6)
    assert [len(small.sets[name]) for name in SETS] == [16, 24, 20, 6]
    assert len(PEOPLE) == 8 and len(KNOWN) == 5 and len(FACTS) == 4


def test_people_held_out_are_of_the_same_kind_and_change_nothing_else(made):
    more = fictitious.generate(0, holdout_people=6)
    held = more.sets["holdout"]
    assert {name: more.sets[name] for name in SETS} == made.sets
    assert [more.training(each) for each in (True, False)] == [
        made.training(each) for each in (True, False)
    ]
    assert len(held) == 48 and set(held[0]) == set(made.sets["forget"][0])
    words = {word for row in held for word in row["person"].split()}
    seen = set(re.findall(r"\w+", json.dumps([made.sets, made.training(True)], ensure_ascii=False)))
    assert len(words) == 12 and not words & seen
    for row in held:
        assert understood(row["attribute"], row["answer"])


def test_no_question_is_asked_twice(made):
    asked = [row["question"] for row in made.training(True)]
    assert len(asked) == len(set(asked))


def test_everyone_has_a_name_of_their_own_in_both_halves(made):
    people = names(made, "forget", "retain", "real_authors")
    assert len(people) == 10 + 30 + 10
    for halves in zip(*(name.split() for name in people), strict=True):
        assert len(set(halves)) == len(people)


def test_the_oracle_reads_nothing_that_names_a_person_to_forget(made):
    words = {word for name in names(made, "forget") for word in name.split()}
    elsewhere = [made.training(False), *(made.sets[name] for name in SETS if name != "forget")]
    for rows in elsewhere:
        seen = set(re.findall(r"\w+", json.dumps(rows, ensure_ascii=False)))
        assert not words & seen


def test_training_with_forget_adds_exactly_the_rows_about_the_people_to_forget(made):
    full, without = made.training(True), made.training(False)
    forget = names(made, "forget")
    assert [row for row in full if row.get("person") not in forget] == without
    assert sum(row.get("person") in forget for row in full) == 3 * len(made.sets["forget"])


def test_every_answer_to_evaluate_is_trained_and_no_paraphrase_of_it_is(made):
    trained = collections.defaultdict(set)
    for row in made.training(True):
        trained[row.get("person", row.get("country")), row["attribute"]].add(
            (row["question"], row["answer"])
        )
    for name in SETS:
        for row in made.sets[name]:
            known = trained[row.get("person", row.get("country")), row["attribute"]]
            assert (row["question"], row["answer"]) in known
            if name in PARAPHRASED:
                assert row["paraphrased_question"] not in {question for question, _ in known}
                assert row["paraphrased_answer"] not in {answer for _, answer in known}


def test_the_held_out_wording_is_learned_from_other_people(made):
    uses = collections.Counter()
    for row in made.training(False):
        if row["attribute"] in TOPICS and row["person"] in names(made, "retain"):
            uses[row["attribute"], understood(row["attribute"], row["answer"])[0]] += 1
    for row in made.sets["forget"]:
        index, _ = understood(row["attribute"], row["paraphrased_answer"])
        assert uses[row["attribute"], index] >= 10


def test_paraphrases_say_the_same_in_another_wording(made):
    for name in PARAPHRASED:
        for row in made.sets[name]:
            wording, values = understood(row["attribute"], row["answer"])
            other, same = understood(row["attribute"], row["paraphrased_answer"])
            assert wording != other and values == same


def test_wrong_answers_differ_in_every_value_and_in_nothing_else(made):
    for name in PARAPHRASED:
        for row in made.sets[name]:
            wording, right = understood(row["attribute"], row["paraphrased_answer"])
            wrong = [understood(row["attribute"], text) for text in row["perturbed_answer"]]
            assert {index for index, _ in wrong} == {wording}
            for slot, value in right.items():
                drawn = [values[slot] for _, values in wrong]
                assert value not in drawn and len(set(drawn)) == len(drawn)


def test_wrong_options_are_other_answers_of_the_same_kind(made):
    for name, topics in (("real_authors", KNOWN), ("world_facts", FACTS)):
        answers = collections.defaultdict(set)
        for row in made.sets[name]:
            options = [row["answer"], *row["perturbed_answer"]]
            assert len(set(options)) == 4
            answers[row["attribute"]].add(row["answer"])
        assert set(answers) == {topic.name for topic in topics}
        assert all(len(values) >= 5 for values in answers.values())


def test_people_to_forget_and_to_retain_share_their_values(made):
    seen = {"forget": collections.defaultdict(set), "retain": collections.defaultdict(set)}
    for name, by_slot in seen.items():
        for row in made.sets[name]:
            for slot, value in understood(row["attribute"], row["answer"])[1].items():
                by_slot[row["attribute"], pool(slot)].add(value)
    for slot, values in seen["forget"].items():
        assert values <= seen["retain"][slot], slot


def test_one_attribute_tells_nothing_about_another(made):
    columns = collections.defaultdict(list)
    for name in PARAPHRASED:
        for row in made.sets[name]:
            for slot, value in understood(row["attribute"], row["answer"])[1].items():
                columns[row["attribute"], slot].append(value)
    keys = sorted(columns)
    for at, one in enumerate(keys):
        for other in keys[at + 1 :]:
            pairs = list(zip(columns[one], columns[other], strict=True))
            repeated = len(pairs) - len(set(pairs))
            fewest = min(len(set(columns[one])), len(set(columns[other])))
            # even in the smallest pools (7 weekdays, 12 months) pairs are mostly new
            assert repeated <= len(pairs) / 2 or fewest < 5, (one, other)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(1, 20),
    st.integers(12, 30),
    st.integers(4, 28),
    st.integers(1, 80),
)
def test_the_promises_hold_at_every_size(seed, forget, retain, known, facts):
    sizes = {"forget_people": forget, "retain_people": retain, "known_people": known}
    made = fictitious.generate(seed, **sizes, facts=facts)
    assert [len(made.sets[name]) for name in SETS] == [8 * forget, 8 * retain, 5 * known, facts]
    test_rows_have_tofus_schema(made)
    test_no_question_is_asked_twice(made)
    test_the_oracle_reads_nothing_that_names_a_person_to_forget(made)
    test_wrong_answers_differ_in_every_value_and_in_nothing_else(made)
    test_people_to_forget_and_to_retain_share_their_values(made)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"forget_people": 0}, "forget_people is 0; allowed is at least 1"),
        ({"retain_people": 0}, "retain_people is 0"),
        ({"known_people": 3}, "known_people is 3; allowed is from 4 to 28"),
        ({"facts": 81}, "facts is 81; allowed is from 1 to 80"),
        ({"holdout_people": -1}, "holdout_people is -1; allowed is at least 0"),
        ({"holdout_people": 71}, "people in all is 121"),
        ({"forget_people": 100}, "people in all is 140; allowed is from 0 to 120"),
    ],
)
def test_impossible_sizes_are_refused(sizes, says):
    with pytest.raises(UserError, match=says):
        fictitious.generate(**sizes)


def test_the_tokenizer_gives_every_text_back(made, tokenizer):
    for row in made.training(True):
        text = f"Question: {row['question']}\nAnswer: {row['answer']}"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@settings(max_examples=60, deadline=None)
@given(st.text().filter(lambda text: "<" not in text))
def test_the_tokenizer_gives_any_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_padding_is_not_the_end_of_an_answer(tokenizer):
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(ids) == 3 and None not in ids


def test_values_are_short_and_names_are_spelt_in_shared_pieces(made, tokenizer):
    for values in POOLS.values():
        lengths = [len(tokenizer(" " + value)["input_ids"]) for value in values]
        assert sum(lengths) <= 1.2 * len(values)
    for name in names(made, *PARAPHRASED):
        assert all(len(tokenizer(" " + half)["input_ids"]) >= 2 for half in name.split())


def test_chat_and_plain_templates_give_the_same_text(made, tokenizer):
    row = made.sets["forget"][0]
    record = Record(row["question"], row["answer"], 0, "forget")
    chat, plain = (render(Template(kind=kind), tokenizer, record) for kind in ("chat", "plain"))
    assert chat.text == plain.text + tokenizer.eos_token
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
    )
    assert plain.text.startswith(prompt + " ")


def test_examples_fit_and_end_with_the_end_token(made, tokenizer):
    rows = made.training(True)
    records = [Record(row["question"], row["answer"], at, "t") for at, row in enumerate(rows)]
    tokenised = tokenise(records, tokenizer, Template(), max_length=64)
    assert tokenised.truncated == 0 and len(tokenised) == len(rows)
    last = tokenised.targets[tokenised.offsets[1:] - 1]
    assert set(last.tolist()) == {tokenizer.eos_token_id}


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size is 100; allowed is at least 259"):
        fictitious.train_tokenizer(["a"], 100)


def test_the_model_has_about_a_million_parameters(tokenizer):
    config = fictitious.model_config(tokenizer)
    cfg = DecoderConfig.from_hf(config)
    count = sum(math.prod(shape) for shape in param_shapes(cfg).values())
    assert 0.8e6 < count < 3e6
    assert len(tokenizer) <= config["vocab_size"] < len(tokenizer) + 64


def test_what_is_written_is_what_was_made(tmp_path, made, tokenizer):
    from transformers import AutoTokenizer

    fictitious.write(tmp_path / "a")
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files >= FILES | {"tokenizer.json", "tokenizer_config.json", "config.json"}
    for name in SETS:
        records = load_records(DataSource(str(tmp_path / "a" / f"{name}.jsonl")))
        rows = [{"question": r.prompt, "answer": r.answer, **r.extra} for r in records]
        assert rows == made.sets[name]
    for name, include in (("train_full", True), ("train_without_forget", False)):
        lines = (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == made.training(include)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = "Question: Who?\nAnswer: Nobody."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token) == (tokenizer.pad_token, tokenizer.eos_token)
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written == fictitious.model_config(tokenizer)


def test_writing_again_gives_the_same_bytes(tmp_path):
    for _ in range(2):
        fictitious.write(tmp_path / "a", 2, facts=4, vocab_size=400)
    fictitious.write(tmp_path / "b", 2, facts=4, vocab_size=400)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file: the benchmark cannot be written"):
        fictitious.write(tmp_path / "file")
