"""The suite: every metric made again by hand from the log-probabilities of single answers."""

import dataclasses
import zlib

import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn.metrics import roc_auc_score

from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.engine.errors import UserError
from jaxforget.evals import tofu
from jaxforget.evals.gradient_norms import gradient_norms
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
        oracle=oracle.rows,
        **OPTIONS,
    )
    ratios = [each.rows["forget"]["truth_ratio"] for each in (again, oracle)]
    assert again.metrics["forget_quality"] == pytest.approx(stats.ks_2samp(*ratios).pvalue)
    six = [again.metrics[name] for name in UTILITY_PARTS if not name.endswith("rouge")]
    assert again.metrics["model_utility"] == pytest.approx(stats.hmean(six))
    assert "retain_rouge" in again.reasons["model_utility"] and not again.generations
    strangers = {"forget": {**oracle.rows["forget"], "row": [9] * 6}}
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


@pytest.fixture(scope="module")
def against(lm):
    """(model, oracle) evaluated with a holdout set, the model with gradient norms too."""
    options = {**OPTIONS, "generate": False}
    other = small.model(3)
    oracle = tofu.evaluate(other, other.params, with_holdout(), **options)
    found = tofu.evaluate(
        lm, lm.params, with_holdout(), oracle=oracle.rows, with_gradient_norms=True, **options
    )
    return found, oracle


def with_holdout():
    forget, retain = (small.records()[name] for name in ("forget", "retain"))
    return {"forget": forget, "holdout": retain[:4]}


def attacks_by_hand(lm, record):
    """Every attack's score of one answer, scored on its own."""
    alone = score_set(lm.score, lm.params, small.tokens([record]), stats=True)
    logp, mean, second = (
        column.astype(np.float64) for column in (alone.logp, alone.mean, alone.second_moment)
    )
    loss = -logp.mean()
    body = slice(0, -1)  # the end of the text is no part of it
    standard = ((logp - mean) / np.sqrt(second - mean**2))[body]
    count = max(1, int(0.4 * len(logp[body])))
    return {
        "mia_loss": -loss,
        "mia_zlib": -loss / len(zlib.compress(record.answer.encode())),
        "mia_min_k": np.sort(logp[body])[:count].mean(),
        "mia_min_k_plus_plus": np.sort(standard)[:count].mean(),
    }


def test_membership_attacks_are_those_made_by_hand(lm, against):
    found, oracle = against
    sides = {
        name: [attacks_by_hand(lm, record) for record in records]
        for name, records in with_holdout().items()
    }
    for attack in sides["forget"][0]:
        scores = {name: [each[attack] for each in side] for name, side in sides.items()}
        for name, values in scores.items():
            np.testing.assert_allclose(found.rows[name][attack], values, rtol=2e-3, atol=1e-5)
        labels = [1] * 6 + [0] * 4
        auc = roc_auc_score(labels, [*scores["forget"], *scores["holdout"]])
        assert found.metrics[f"{attack}_auc"] == pytest.approx(auc)
        assert 0 <= found.metrics[f"{attack}_tpr"] <= 1
    assert found.rows["holdout"].keys() == found.rows["forget"].keys() - {
        "truth_ratio",
        "paper_truth_ratio",
    }


def test_the_oracle_is_reference_and_measure_of_privacy(against):
    found, oracle = against
    for name in ("forget", "holdout"):
        apart = np.subtract(oracle.rows[name]["nll"], found.rows[name]["nll"])
        np.testing.assert_allclose(found.rows[name]["mia_reference"], apart)
    ours, theirs = (1 - each.metrics["mia_min_k_auc"] for each in (found, oracle))
    assert found.metrics["privleak"] == pytest.approx(100 * (ours - theirs) / theirs)
    assert oracle.metrics["privleak"] is None and oracle.metrics["mia_reference_auc"] is None
    assert "no oracle" in oracle.reasons["privleak"]


def test_gradient_norms_join_the_attacks_on_request(lm, against):
    found, oracle = against
    records = [*with_holdout()["forget"], *with_holdout()["holdout"]]
    norms = -gradient_norms(lm.score, lm.params, small.tokens(records))
    np.testing.assert_allclose(found.rows["forget"]["mia_gradient_norm"], norms[:6], rtol=1e-5)
    np.testing.assert_allclose(found.rows["holdout"]["mia_gradient_norm"], norms[6:], rtol=1e-5)
    assert "mia_gradient_norm_auc" not in oracle.metrics


def test_a_holdout_set_needs_company_and_the_same_rows_as_the_oracles(lm, against):
    _, oracle = against
    sets, options = with_holdout(), {**OPTIONS, "generate": False}
    with pytest.raises(UserError, match="compared with evaluate.forget"):
        tofu.evaluate(lm, lm.params, {"holdout": sets["holdout"]}, **options)
    with pytest.raises(UserError, match="those of evaluate.holdout"):
        only = {"forget": sets["forget"]}
        tofu.evaluate(lm, lm.params, only, with_gradient_norms=True, **options)
    fewer = {**sets, "holdout": sets["holdout"][:3]}
    with pytest.raises(UserError, match="other rows of the holdout set"):
        tofu.evaluate(lm, lm.params, fewer, oracle=oracle.rows, **options)
    older = {"forget": {key: oracle.rows["forget"][key] for key in ("row", "truth_ratio")}}
    got = tofu.evaluate(lm, lm.params, sets, oracle=older, **options)
    assert "not evaluated with a holdout set" in got.reasons["privleak"]
    assert got.metrics["forget_quality"] is not None


def test_every_mean_has_its_interval_and_every_example_its_line(found, against):
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    assert {"forget_prob", "forget_truth_ratio", "ra_rouge", "extraction_strength"} <= set(
        found.intervals
    )
    low, high = found.intervals["forget_prob"]
    assert low < found.metrics["forget_prob"] < high
    assert {"mia_loss_auc", "holdout_prob"} <= set(against[0].intervals)
    lines = list(found.examples())
    assert len(lines) == sum(len(records) for records in small.records().values())
    first = lines[0]
    assert (first["set"], first["row"]) == ("forget", 0)
    assert first["truth"] == small.records()["forget"][0].answer and "answer" in first
    assert first["tokens"] == len(small.tokens(small.records()["forget"][:1]).targets) - sum(
        ~small.tokens(small.records()["forget"][:1]).mask
    )
    for metric in ("prob", "exact_memorization", "extraction_strength", "rouge"):
        mine = [line[metric] for line in lines if line["set"] == "forget"]
        name = metric if metric.startswith("ex") else f"forget_{metric}"
        assert np.mean(mine) == pytest.approx(found.metrics[name])


def test_peer_compat_takes_the_peers_side_everywhere(lm, found):
    options = {**OPTIONS, "max_length": 40, "generate": False, "template": Template(end=False)}
    ours, peer = (
        tofu.evaluate(lm, lm.params, with_holdout(), peer_compat=flag, **options)
        for flag in (False, True)
    )
    assert ours.metrics["privleak"] is None
    auc = peer.metrics["mia_min_k_auc"]
    assert peer.metrics["privleak"] == pytest.approx(100 * (1 - auc - 0.5) / 0.5)
    hits = [
        score_set(
            lm.score,
            lm.params,
            tokenise([r], small.tokenizer(), options["template"], max_length=40),
            stats=True,
        ).hit
        for r in with_holdout()["forget"]
    ]
    for result, end in ((ours, None), (peer, -1)):
        want = [each[:end].mean() for each in hits]
        np.testing.assert_allclose(result.rows["forget"]["exact_memorization"], want, atol=1e-6)
    assert min(peer.rows["forget"]["extraction_strength"]) > 0


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


def test_the_real_files_load_and_score(shared_data, lm):
    folder = shared_data / "tofu"
    files = {
        "forget": "forget10_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": "holdout10",
    }
    sets = {
        name: load_records(DataSource(str(folder / f"{file}.json"))) for name, file in files.items()
    }
    assert [len(records) for records in sets.values()] == [400, 400, 100, 117, 400]
    few = {name: records[:2] for name, records in sets.items()}
    found = tofu.evaluate(lm, lm.params, few, **OPTIONS | {"max_length": 512})
    assert found.metrics["model_utility"] is not None
    assert found.reasons.keys() <= {"forget_quality", "mia_reference_auc", "privleak"}
