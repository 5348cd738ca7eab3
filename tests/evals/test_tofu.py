"""The suite: every metric made again by hand from the log-probabilities of single answers."""

import dataclasses

import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids
from jaxforget.engine.errors import UserError
from jaxforget.evals import tofu
from jaxforget.evals.metrics import UTILITY_PARTS
from jaxforget.evals.teacher_forced import score_set

OPTIONS = {"template": Template(), "max_length": 128, "max_new_tokens": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def lm():
    return small.model()


@pytest.fixture(scope="module")
def found(lm):
    return tofu.evaluate(lm, lm.params, small.records(), **OPTIONS)


def nll(lm, record, answer):
    """Mean negative log-likelihood of one answer, scored on its own."""
    tokens = small.tokens([dataclasses.replace(record, answer=answer, extra={})])
    return -float(score_set(lm.score, lm.params, tokens).logp.astype(np.float64).mean())


def by_hand(lm):
    values, ratios = {}, {}
    for name, records in small.records().items():
        short = tofu.SHORT[name]
        right = np.array([nll(lm, r, r.answer) for r in records])
        wrong = np.array([[nll(lm, r, w) for w in r.extra["perturbed_answer"]] for r in records])
        judged = right
        prob = np.exp(-right)
        if "paraphrased_answer" in records[0].extra:
            judged = np.array([nll(lm, r, r.extra["paraphrased_answer"]) for r in records])
            values[f"{short}_paraphrase_prob"] = np.exp(-judged).mean()
            values[f"{short}_prob"] = prob.mean()
        else:
            values[f"{short}_raw_prob"] = prob.mean()
            values[f"{short}_prob"] = (prob / (prob + np.exp(-wrong).sum(1))).mean()
        ratios[name] = np.exp(-wrong.mean(1)) / np.exp(-judged)
        r = ratios[name]
        values[f"{short}_truth_ratio"] = (
            np.minimum(r, 1 / r) if name == "forget" else np.maximum(0, 1 - r)
        ).mean()
    return values, ratios


def test_likelihood_metrics_equal_those_made_by_hand(lm, found):
    values, ratios = by_hand(lm)
    for name, want in values.items():
        assert found.metrics[name] == pytest.approx(want, rel=2e-4, abs=1e-6), name
    for name, want in ratios.items():
        np.testing.assert_allclose(found.rows[name]["truth_ratio"], want, rtol=2e-3)
        assert found.rows[name]["row"] == [record.row for record in small.records()[name]]


def test_generated_answers_are_those_of_each_prompt_alone_and_scored_by_recall(lm, found):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    asked = [(name, r) for name, records in small.records().items() for r in records]
    for made, (name, record) in zip(found.generations, asked, strict=True):
        assert (made["set"], made["row"], made["truth"]) == (name, record.row, record.answer)
    made, (_, record) = found.generations[1], asked[1]
    (prompt,) = prompt_ids([record], lm.tokenizer, Template(), 128)
    (alone,) = lm.generate(lm.params, [prompt], max_new_tokens=6)
    text = lm.tokenizer.decode(alone.tolist(), skip_special_tokens=True).strip()
    assert made["answer"] == text
    for name, records in small.records().items():
        mine = [each for each in found.generations if each["set"] == name]
        want = [scorer.score(m["truth"], m["answer"])["rougeL"].recall for m in mine]
        assert found.metrics[f"{tofu.SHORT[name]}_rouge"] == pytest.approx(np.mean(want))
        assert len(mine) == len(records)


def test_model_utility_is_the_harmonic_mean_of_nine(found):
    nine = [found.metrics[name] for name in UTILITY_PARTS]
    assert len(nine) == 9
    want = stats.hmean(nine) if min(nine) > 0 else 0.0
    assert found.metrics["model_utility"] == pytest.approx(want)


def test_forget_quality_compares_truth_ratios_with_the_oracle(lm, found):
    assert found.metrics["forget_quality"] is None
    assert "no oracle" in found.reasons["forget_quality"]
    other = small.model(3)
    oracle = tofu.evaluate(other, other.params, small.records(), generate=False, **OPTIONS)
    again = tofu.evaluate(
        lm,
        lm.params,
        small.records(),
        generate=False,
        utility_over="available",
        oracle=oracle.rows["forget"],
        **OPTIONS,
    )
    ratios = [each.rows["forget"]["truth_ratio"] for each in (again, oracle)]
    assert again.metrics["forget_quality"] == pytest.approx(stats.ks_2samp(*ratios).pvalue)
    six = [again.metrics[name] for name in UTILITY_PARTS if not name.endswith("rouge")]
    assert again.metrics["model_utility"] == pytest.approx(stats.hmean(six))
    assert "retain_rouge" in again.reasons["model_utility"] and not again.generations
    strangers = {**oracle.rows["forget"], "row": [9] * 6}
    with pytest.raises(UserError, match="other rows of the forget set"):
        tofu.evaluate(lm, lm.params, small.records(), generate=False, oracle=strangers, **OPTIONS)


def test_memorisation_is_that_of_the_forget_answers(lm, found):
    hits, logp = [], []
    for record in small.records()["forget"]:
        alone = score_set(lm.score, lm.params, small.tokens([record]), stats=True)
        hits.append(alone.hit[:-1])
        logp.append(alone.logp)
    exact = np.mean([each.mean() for each in hits])
    assert found.metrics["exact_memorization"] == pytest.approx(exact, abs=1e-6)
    want = np.exp(-np.concatenate(logp).astype(np.float64).mean())
    assert found.metrics["forget_perplexity"] == pytest.approx(want, rel=1e-4)


def test_sets_without_wrong_answers_have_fewer_metrics_and_a_reason(lm):
    plain = [dataclasses.replace(r, extra={}) for r in small.records()["forget"]]
    got = tofu.evaluate(lm, lm.params, {"forget": plain}, generate=False, **OPTIONS)
    assert "forget_truth_ratio" not in got.metrics and got.metrics["forget_prob"] > 0
    assert "no perturbed answers" in got.reasons["forget_quality"]
    some = [small.records()["forget"][0], *plain[1:]]
    with pytest.raises(UserError, match="no column 'p"):
        tofu.evaluate(lm, lm.params, {"forget": some}, generate=False, **OPTIONS)


def test_unknown_and_empty_sets_are_refused(lm):
    with pytest.raises(UserError, match="no set 'forgot'"):
        tofu.evaluate(lm, lm.params, {"forgot": small.records()["forget"]}, **OPTIONS)
    with pytest.raises(UserError, match="evaluate.retain: the set is empty"):
        tofu.evaluate(lm, lm.params, {"retain": []}, **OPTIONS)
