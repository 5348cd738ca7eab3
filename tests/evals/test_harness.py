"""The harness's requests: each answer is that of its request alone, from whole distributions."""

import dataclasses
import json

import numpy as np
import pytest
from evals import small
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.evals import harness
from jaxforget.evals.suites import harness as suite
from jaxforget.evals.suites.suite import Judged


@dataclasses.dataclass
class Request:
    args: tuple


TEXTS = [record.answer for record in small.records()["retain"]]
ASKED = [
    ("The sky is ", "blue today"),
    ("The sky is", " green"),
    ("The sky is", " green and wide"),
    ("The sky is\n", "blue"),
    ("", "Nothing before"),
]


@pytest.fixture(scope="module")
def lm():
    return small.model()


@pytest.fixture(scope="module")
def asked(lm):
    return harness.Asked(Judged(lm, lm.params, max_length=128), batch_size=4)


def after(lm, ids):
    """Float64 log-probabilities of ids[1:], and which of them are the likeliest."""
    row = np.zeros((1, 512), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(small._distributions(lm.params, row, lm.config, lm.compute)[0], np.float64)
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    place = np.arange(len(ids) - 1)
    return logp[place, ids[1:]], logits[place].argmax(-1) == ids[1:]


def encoded(lm, text):
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_continuations_have_their_own_log_probability(lm, asked):
    greedy = lm.generate(lm.params, [np.asarray(encoded(lm, "The sky is"))], max_new_tokens=3)[0]
    found = asked.loglikelihood([Request(each) for each in ASKED])
    for (context, continuation), (value, _) in zip(ASKED, found, strict=True):
        ids = encoded(lm, context + continuation)
        first = len(encoded(lm, context.rstrip()))
        if not context:
            ids, first = [lm.tokenizer.bos_token_id or lm.tokenizer.eos_token_id, *ids], 1
        logp, hits = after(lm, np.asarray(ids))
        assert value == pytest.approx(logp[first - 1 :].sum(), rel=1e-4)
        assert (
            dict(zip(ASKED, found, strict=True))[context, continuation][1]
            == hits[first - 1 :].all()
        )
    window = np.concatenate([encoded(lm, "The sky is"), greedy]).astype(np.int32)
    table = asked._scored([(window, len(window) - len(greedy))])
    assert (table.hit == 1).all()  # what it would write itself is the likeliest


def test_requests_are_scored_in_one_pass_and_none_is_no_pass(asked, monkeypatch):
    passes, whole = [], harness.score_set

    def counting(*arguments, **options):
        passes.append((len(arguments[2]), options["share_prompts"]))
        return whole(*arguments, **options)

    monkeypatch.setattr(harness, "score_set", counting)
    asked.loglikelihood([Request(("The sky is", f" {word}")) for word in ("a", "b", "c", "d", "e")])
    assert passes == [(5, True)]
    assert asked.loglikelihood([]) == [] and len(passes) == 1


def test_a_long_context_loses_its_beginning_and_a_long_continuation_is_refused(lm):
    asked = harness.Asked(Judged(lm, lm.params, max_length=12))
    ids = np.asarray(encoded(lm, f"{TEXTS[0]} yes"))
    assert len(ids) > 13
    count = len(ids) - len(encoded(lm, TEXTS[0]))
    ((value, _),) = asked.loglikelihood([Request((TEXTS[0], " yes"))])
    assert value == pytest.approx(after(lm, ids[-13:])[0][-count:].sum(), rel=1e-4)
    with pytest.raises(UserError, match="allowed is 1 to max_length 12"):
        asked.loglikelihood([Request(("a", TEXTS[0] * 3))])
    with pytest.raises(UserError, match="a continuation has 0 tokens"):
        asked.loglikelihood([Request(("a", ""))])


@pytest.mark.parametrize("longest", [5, 16, 512])
def test_a_whole_text_is_scored_with_all_the_context_there_is(lm, longest):
    asked = harness.Asked(Judged(lm, lm.params, max_length=longest))
    found = asked.loglikelihood_rolling([Request((text,)) for text in TEXTS[:3]])
    for text, value in zip(TEXTS, found, strict=False):
        begin = lm.tokenizer.bos_token_id or lm.tokenizer.eos_token_id
        ids = np.asarray([begin, *encoded(lm, text)])
        want = 0.0
        for start in range(0, len(ids) - 1, longest):
            stop = min(start + longest, len(ids) - 1)
            want += after(lm, ids[max(0, stop - longest) : stop + 1])[0][start - stop :].sum()
        assert value == pytest.approx(want, rel=1e-4)


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_token_is_scored_once_in_windows_that_fit(count, longest):
    ids = np.arange(count + 1)
    windows = harness.rolling(ids, longest)
    assert np.concatenate([part[first:] for part, first in windows]).tolist() == ids[1:].tolist()
    assert all(len(part) - 1 == min(longest, count) or first == 1 for part, first in windows)
    assert all(len(part) <= longest + 1 for part, _ in windows)


def test_answers_stop_before_the_first_stop_string_in_the_order_of_the_requests(lm, asked):
    options = [{"until": ["zz"], "max_gen_toks": n} for n in (4, 9, 4)]
    prompts = ["The sky is", "Question: Who?\nAnswer:", "Once"]
    requests = [Request(each) for each in zip(prompts, options, strict=True)]
    found = asked.generate_until(requests)
    for prompt, how, text in zip(prompts, options, found, strict=True):
        ids = np.asarray(encoded(lm, prompt), np.int32)
        (one,) = lm.generate(lm.params, [ids], max_new_tokens=how["max_gen_toks"])
        assert text == lm.tokenizer.decode(one.tolist(), skip_special_tokens=True)
    assert harness.before("one two three", [" three", " two"]) == "one"
    assert harness.before("one two", "six") == harness.before("one two", None) == "one two"


def test_sampling_is_what_a_request_asks_for_and_repeats(asked):
    warm = Request(("The sky is", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}))
    cold = Request(("The sky is", {"do_sample": False, "temperature": 2.0, "max_gen_toks": 12}))
    first, greedy = asked.generate_until([warm, cold])
    second, _ = asked.generate_until([warm, cold])
    assert first == second != greedy
    with pytest.raises(UserError, match="no generation option 'num_beams'"):
        asked.generate_until([Request(("a", {"num_beams": 4}))])
    with pytest.raises(UserError, match="leave no room"):
        asked.generate_until([Request(("a", {"max_gen_toks": 128}))])


def test_results_become_metrics_with_intervals():
    given = {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4},
        "gsm": {"exact_match,strict-match": 0, "exact_match_stderr,strict-match": "N/A"},
    }
    values, intervals = harness.flat(given)
    assert values == {"arc_acc": 0.5, "gsm_exact_match_strict-match": 0}
    assert intervals == {"arc_acc": pytest.approx((0.304, 0.696))}


def test_without_the_package_it_is_told_what_to_install(lm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    for action in (
        lambda: suite.read(suite.HarnessSuite(tasks=("arc_easy",))),
        lambda: harness.adapter(Judged(lm, lm.params)),
    ):
        with pytest.raises(UserError, match=r"pip install 'jaxforget\[harness\]'"):
            action()
    with pytest.raises(UserError, match="names no task"):
        suite.read(suite.HarnessSuite(tasks=()))


TASK = """
task: small_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
metric_list: [{{metric: {metric}}}]
"""
KINDS = {
    "multiple_choice": ("answer", 'doc_to_choice: "{{choices}}"', "acc"),
    "generate_until": (
        '"{{choices[answer]}}"',
        'generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}',
        "exact_match",
    ),
    "loglikelihood_rolling": ('"{{question}}"', "", "word_perplexity"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_harness_itself_runs_its_tasks(lm, tmp_path):
    pytest.importorskip("lm_eval")
    file = tmp_path / "rows.jsonl"
    rows = [
        {"question": f"{r.prompt} ", "choices": [r.answer, TEXTS[0], TEXTS[1]], "answer": 0}
        for r in small.records()["forget"]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, (target, more, metric) in KINDS.items():
        text = TASK.format(kind=kind, file=file, target=target, more=more, metric=metric)
        (tmp_path / f"{kind}.yaml").write_text(text)
    names = tuple(f"small_{kind}" for kind in KINDS)
    settings = suite.HarnessSuite(tasks=names, include=str(tmp_path))
    judged = Judged(lm, lm.params, max_length=256)
    found = suite.evaluate(judged, suite.read(settings), settings)
    asked = harness.Asked(judged)
    pairs = [Request((row["question"], f" {text}")) for row in rows for text in row["choices"]]
    values = np.reshape([value for value, _ in asked.loglikelihood(pairs)], (-1, 3))
    want = (values.argmax(1) == 0).mean()
    assert found.metrics["small_multiple_choice_acc"] == pytest.approx(want)
    assert found.metrics["small_loglikelihood_rolling_word_perplexity"] > 1
    assert 0 <= found.metrics["small_generate_until_exact_match"] <= 1
    low, high = found.intervals["small_multiple_choice_acc"]
    assert low <= want <= high
    with pytest.raises(UserError, match="no task 'small_multiple_choise'. Did you mean"):
        wrong = dataclasses.replace(settings, tasks=("small_multiple_choise",))
        suite.read(wrong)
