import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import (
    check_vocabulary,
    chunk_text,
    prompt_ids,
    tokenise,
    tokenise_cached,
    tokenizer_identity,
)
from jaxforget.engine.errors import UserError

PLAIN, NONE, CHAT = Template(), Template(kind="none"), Template(kind="chat")


def record(prompt, answer, row=0, source="a.json"):
    return Record(prompt, answer, row, source)


def example(made, index=0):
    """(all ids, index of the first labelled one) of an example, put together again."""
    part = slice(made.offsets[index], made.offsets[index + 1])
    ids = np.concatenate([made.tokens[part], made.targets[part][-1:]])
    np.testing.assert_array_equal(ids[1:], made.targets[part])
    labelled = np.flatnonzero(made.mask[part])
    np.testing.assert_array_equal(labelled, np.arange(labelled[0], len(ids) - 1))
    return ids, labelled[0] + 1


def first_answer_token(tokenizer, ids, prompt):
    """Oracle: in a byte-level vocabulary every character of a token is one byte."""
    ends = np.cumsum([len(token) for token in tokenizer.convert_ids_to_tokens(ids)])
    return int(np.argmax(ends > len(prompt.rstrip(" ").encode())))  # its blanks are the answer's


_PIECES = [
    *["un", "believable", " ", "  ", "\n", "\n\n", ":", "- ", ";", "Paris", " Paris", "capital"],
    *["ï", "café", "世", "界", "😀", "“", "\u2028", "\t", "3", "x", "<", "Question: ", "\nAnswer:"],
]
_TEXTS = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=8).map("".join)
_HABITS = {}


def tokenizer_with(new_tokenizer, **habits):
    key = tuple(sorted(habits.items()))
    if key not in _HABITS:
        _HABITS[key] = new_tokenizer(**habits)
    return _HABITS[key]


@pytest.mark.parametrize("superword", [False, True])
@pytest.mark.parametrize("trim", [False, True])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(prompt=_TEXTS, answer=_TEXTS)
def test_labels_begin_at_the_token_that_holds_the_answers_first_byte(
    new_tokenizer, trim, superword, prompt, answer
):
    tokenizer = tokenizer_with(new_tokenizer, trim=trim, superword=superword)
    made = tokenise([record(prompt, answer)], tokenizer, NONE, max_length=500)
    ids, first = example(made)
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert ids.tolist() == [*whole, tokenizer.eos_token_id]
    assert first == max(first_answer_token(tokenizer, whole, prompt), 1)
    prompts = first_answer_token(tokenizer, whole, prompt)
    if prompts:
        given_ids = prompt_ids([record(prompt, answer)], tokenizer, NONE, 500)[0]
        assert given_ids.tolist() == whole[:prompts]


def test_what_is_given_does_not_tell_which_answer_follows(tokenizer):
    answers = ["Paris", "x", "3", "capital"]
    firsts = {tokenizer(f": {each}", add_special_tokens=False)["input_ids"][1] for each in answers}
    assert len(firsts) > 1  # a blank of its own before some of them
    some = [record("Where?", each) for each in answers]
    given = [ids.tolist() for ids in prompt_ids(some, tokenizer, PLAIN, 100)]
    alone = tokenizer("Question: Where?\nAnswer:", add_special_tokens=False)["input_ids"]
    assert given == [alone] * len(answers)


def test_the_peers_labels_begin_where_the_prompt_alone_ends(tokenizer):
    """Its issue 195: the blank before "Paris" is a token of the prompt alone, but not of both."""
    records, compat = [record("Where?", "Paris is it")], replace(PLAIN, peer_compat=True)
    ids, first = example(tokenise(records, tokenizer, compat, max_length=100))
    assert tokenizer.decode(ids[first:]) == " is it<eos>"  # "Paris" is not learned
    alone = tokenizer("Question: Where?\nAnswer: ", add_special_tokens=False)["input_ids"]
    assert first == len(alone)
    assert prompt_ids(records, tokenizer, compat, 100)[0].tolist() == alone
    with pytest.raises(UserError, match="no target is left"):
        open_ended = replace(compat, end=False)
        tokenise([record("Where?", "Paris")], tokenizer, open_ended, max_length=100)
    assert PLAIN.identity() == replace(compat, peer_compat=False).identity() != compat.identity()
    assert "peer_compat" not in PLAIN.identity()  # what older versions have cached is still right


@settings(max_examples=30, deadline=None)
@given(prompt=_TEXTS, answer=_TEXTS)
def test_the_peers_prompt_is_tokenised_alone(new_tokenizer, prompt, answer):
    tokenizer, compat = tokenizer_with(new_tokenizer, trim=False), replace(NONE, peer_compat=True)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert prompt_ids([record(prompt, answer)], tokenizer, compat, 500)[0].tolist() == alone
    if len(alone) <= len(whole):
        _, first = example(tokenise([record(prompt, answer)], tokenizer, compat, max_length=500))
        assert first == max(len(alone), 1)


def test_the_prompts_own_tokens_need_not_be_a_prefix(tokenizer):
    prompt, answer = "Where?", "Paris is it"
    made = tokenise([record(prompt, answer)], tokenizer, PLAIN, max_length=100)
    ids, first = example(made)
    alone = tokenizer(f"Question: {prompt}\nAnswer: ", add_special_tokens=False)["input_ids"]
    assert ids[: len(alone)].tolist() != alone  # the trap: the last space went into " Paris"
    assert tokenizer.decode(ids[first:]) == " Paris is it<eos>"
    inside = tokenise([record("un", "believable")], tokenizer, NONE, max_length=100)
    ids, first = example(inside)
    assert tokenizer.decode(ids[:first]) + tokenizer.decode(ids[first:]) == "unbelievable<eos>"


def test_a_space_of_the_answer_merged_into_the_prompts_last_token_is_labelled(new_tokenizer):
    tokenizer = tokenizer_with(new_tokenizer, trim=True, superword=True)
    made = tokenise([record("Answer:", " ünï")], tokenizer, NONE, max_length=100)
    ids, first = example(made)
    assert tokenizer.decode(ids[first : first + 1]).endswith(": ")


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("prompt", ["Where is it?", "in the capital", "ünï"])
@pytest.mark.parametrize("answer", ["Paris is", " Paris", "\nParis", "世界 Paris"])
def test_boundary_is_exact_with_marked_spaces_and_byte_fallback(scheme, prompt, answer):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<unk>", "<eos>", *bytes_], show_progress=False
    )
    inner.train_from_iterator(["Paris is the capital. Where is it? in the"] * 9, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    ids, first = example(tokenise([record(prompt, answer)], tokenizer, PLAIN, max_length=99))
    before = tokenizer.decode(ids[:first])
    after = tokenizer.decode(ids[first:])
    assert after.removesuffix("<eos>").lstrip(" ") == answer.lstrip(" ")
    assert before.lstrip(" ").rstrip(" ") == f"Question: {prompt}\nAnswer:"


def test_bos_is_put_first_where_the_tokenizer_does_so(new_tokenizer):
    tokenizer = tokenizer_with(new_tokenizer, bos=True)
    made = tokenise([record("q", "a b"), record("", "c d")], tokenizer, PLAIN, max_length=100)
    ids, first = example(made)
    assert ids[0] == tokenizer.bos_token_id and (ids == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(ids[first:]) == " a b<eos>"
    text, first = example(made, 1)
    assert text[0] == tokenizer.bos_token_id and first == 1
    spelt = tokenise([record("", "<bos>c d")], tokenizer, PLAIN, max_length=100)
    np.testing.assert_array_equal(example(spelt)[0], text)


def test_chat_targets_end_with_the_turn_and_nothing_follows(tokenizer):
    made = tokenise([record("Who?", "Ann. "), record("a", "b")], tokenizer, CHAT, max_length=100)
    ids, first = example(made)
    assert tokenizer.decode(ids[first:]) == "Ann.<|im_end|>"
    head = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids[:first]) == head
    assert tokenizer.eos_token_id not in ids


def test_end_of_sequence_is_optional_and_never_doubled(new_tokenizer, tokenizer):
    open_end = tokenise([record("q", "a b")], tokenizer, Template(end=False), max_length=100)
    assert tokenizer.eos_token_id not in open_end.targets
    spelt = tokenise([record("q", "a b<eos>")], tokenizer, PLAIN, max_length=100)
    assert (spelt.targets == tokenizer.eos_token_id).sum() == 1
    without = tokenizer_with(new_tokenizer, eos=None)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenise([record("q", "a b")], without, PLAIN, max_length=100)


def test_truncation_is_counted_and_warned_of_once(tokenizer, caplog):
    records = [record("q", "x " * n, n, "long.json") for n in (1, 2, 60, 70)]
    with caplog.at_level(logging.WARNING):
        made = tokenise(records, tokenizer, NONE, max_length=20)
    assert made.truncated == 2 and made.lengths.max() == 20 and len(made) == 4
    assert len(caplog.records) == 1
    assert "long.json: 2 of 4 examples cut to max_length 20" in caplog.text
    assert made.targets[made.offsets[3] - 1] != tokenizer.eos_token_id
    np.testing.assert_array_equal(made.rows, [1, 2, 60, 70])


def test_an_example_without_target_is_refused_by_row_and_source(tokenizer):
    records = [record("q", "a", 0), record("x " * 50, "a", 17), record("x " * 50, "a", 18)]
    with pytest.raises(UserError, match="row 17 of a.json: no target.*max_length 20.*1 more rows"):
        tokenise(records, tokenizer, NONE, max_length=20)
    with pytest.raises(UserError, match="row 17 of a.json"):
        prompt_ids(records, tokenizer, NONE, 20)
    with pytest.raises(UserError, match="row 0 of a.json: a single token"):
        tokenise([record("", "x")], tokenizer, Template(kind="none", end=False), max_length=9)
    with pytest.raises(UserError, match="row 0 of a.json: no target is left"):
        tokenise([record("P", "aris")], tokenizer, Template(kind="none", end=False), max_length=9)
    with pytest.raises(UserError, match="its prompt is empty"):
        prompt_ids([record("", "text")], tokenizer, NONE, 20)
    with pytest.raises(UserError, match="no records"):
        tokenise([], tokenizer, NONE, max_length=20)


@pytest.mark.parametrize("bos", [None, 1])
@given(count=st.integers(2, 60), length=st.integers(1, 20))
def test_chunks_predict_every_id_but_the_first_exactly_once(bos, count, length):
    ids = np.concatenate([[1], np.arange(100, 99 + count)]).astype(np.int32)
    pieces = chunk_text(ids, length, bos)
    np.testing.assert_array_equal(np.concatenate([targets for _, targets in pieces]), ids[1:])
    for inputs, targets in pieces:
        assert 1 <= len(inputs) == len(targets) <= length
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
    if bos is not None:
        assert all(inputs[0] == bos for inputs, _ in pieces)


def test_long_plain_text_becomes_several_examples_of_its_row(tokenizer):
    text = "Paris is the capital of France. " * 40
    made = tokenise([record("q", "a b", 0), record("", text, 1)], tokenizer, PLAIN, max_length=64)
    assert made.truncated == 0 and made.mask[made.offsets[1] :].all()
    np.testing.assert_array_equal(np.unique(made.rows), [0, 1])
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    learned = made.targets[made.offsets[1] :].tolist()
    assert learned == [*whole[1:], tokenizer.eos_token_id]
    assert made.lengths[1:-1].tolist() == [64] * (len(made) - 2)


def test_vocabulary_mismatch_is_refused(tokenizer):
    made = tokenise([record("q", "a b", 5)], tokenizer, NONE, max_length=64)
    check_vocabulary(made, len(tokenizer))
    with pytest.raises(UserError, match="vocabulary has 40 entries .first at row 5"):
        check_vocabulary(made, 40)


def test_columns_must_have_one_entry_a_labelled_target(tokenizer):
    made = tokenise([record("q", "a b")], tokenizer, NONE, max_length=64)
    count = int(made.mask.sum())
    full = made.with_columns(logp=np.zeros(count, np.float32)).with_columns(hit=np.ones(count))
    assert set(full.columns) == {"logp", "hit"} and full.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="'logp' has 1 entries"):
        made.with_columns(logp=np.zeros(1))


def test_fingerprint_changes_with_text_template_and_tokenizer_only(new_tokenizer, tokenizer):
    def mark(text="a b", template=NONE, with_tokenizer=tokenizer):
        made = tokenise([record("q ", text)], with_tokenizer, template, max_length=64)
        return made.fingerprint

    assert mark() == mark()
    tokenizer(["a", "b c"], max_length=1, truncation=True)
    assert mark() == mark(with_tokenizer=new_tokenizer())
    others = [mark("a c"), mark(template=Template(kind="none", system="s"))]
    others.append(mark(with_tokenizer=tokenizer_with(new_tokenizer, superword=True)))
    assert len({mark(), *others}) == 4
    assert tokenizer_identity(tokenizer) != tokenizer_identity(new_tokenizer(chat_template="x"))


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast, bos_token_id = False, None

    with pytest.raises(UserError, match="Slow gives no character offsets"):
        tokenise([record("q", "a")], Slow(), NONE, max_length=9)


def same(left, right):
    assert left.fingerprint == right.fingerprint and left.truncated == right.truncated
    for name in ("tokens", "targets", "mask", "offsets", "rows"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "garbage"])
def test_a_damaged_cache_is_ignored_and_rebuilt(tokenizer, tmp_path, caplog, damage):
    records = [record("q", "x " * n, n) for n in (3, 40)]

    def cached():
        return tokenise_cached(records, tokenizer, NONE, max_length=20, cache_dir=tmp_path / "c")

    made = cached()
    (file,) = (tmp_path / "c").iterdir()
    whole = file.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    torn = {"truncated": whole[:-40], "flipped": flipped, "empty": b"", "garbage": b"x" * 99}
    file.write_bytes(torn[damage])
    with caplog.at_level(logging.WARNING):
        same(cached(), made)
    assert "made anew" in caplog.text
    assert file.read_bytes() == whole


def test_the_cache_is_read_back_and_warns_of_truncation_again(
    tokenizer, tmp_path, monkeypatch, caplog
):
    records = [record("q", "x " * n, n) for n in (3, 40)]
    made = tokenise_cached(records, tokenizer, NONE, max_length=20, cache_dir=tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("jaxforget.data.tokenise.tokenise", None)
        same(tokenise_cached(records, tokenizer, NONE, max_length=20, cache_dir=tmp_path), made)
    assert "1 of 2 examples cut" in caplog.text
    tokenise_cached(records, tokenizer, NONE, max_length=30, cache_dir=tmp_path)
    tokenise_cached(records[:1], tokenizer, NONE, max_length=20, cache_dir=tmp_path)
    tokenise_cached(records, tokenizer, PLAIN, max_length=20, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_done_without(tokenizer, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        made = tokenise_cached(
            [record("q", "a")], tokenizer, NONE, max_length=20, cache_dir=tmp_path / "file"
        )
    assert len(made) == 1 and "not written" in caplog.text


def test_every_tofu_answer_decodes_to_itself(shared_data, tokenizer):
    records = load_records(DataSource(str(shared_data / "tofu" / "forget10.json")))
    for template, end in ((PLAIN, "<eos>"), (CHAT, "<|im_end|>")):
        made = tokenise(records, tokenizer, template, max_length=1024)
        assert len(made) == 400 and made.truncated == 0
        for index, each in enumerate(records):
            part = slice(made.offsets[index], made.offsets[index + 1])
            learned = tokenizer.decode(made.targets[part][made.mask[part]])
            assert learned.strip() == each.answer.strip() + end
            prompt = tokenizer.decode(made.tokens[part][~made.mask[part]])
            assert json.dumps(each.prompt[:-1])[1:-1] in json.dumps(prompt)
