"""What the steps of a stream see and at which rate, without training it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxforget import strategies
from jaxforget.config import build
from jaxforget.config.stream import ContinualConfig, ExamplesConfig, ScratchConfig
from jaxforget.data.mixture import mixed
from jaxforget.data.order import folded
from jaxforget.data.rehearsal import counts, shares
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import load_records
from jaxforget.data.stream import joined
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.engine.tree import unflatten
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models import Compute
from jaxforget.report.continual import modules as modules_figure
from jaxforget.studies.common import tokens_of
from jaxforget.studies.continual import _tasks
from jaxforget.studies.starting import scratch
from jaxforget.studies.streams.batches import batches_of, identity_of
from jaxforget.studies.streams.boundary import keep_examples
from jaxforget.studies.streams.modules import keep_modules
from jaxforget.studies.streams.ordering import ordered, scores_of
from jaxforget.studies.streams.results import check_effects, effects_of
from jaxforget.studies.streams.stream import Stream
from jaxforget.studies.streams.texts import read, texts_of
from jaxforget.studies.streams.training import learning_rate

SIZE = 20


def numbers(first):
    tokens = np.arange(first, first + 3 * SIZE, dtype=np.int32)
    offsets = np.arange(0, 3 * SIZE + 1, 3)
    return TokenisedSet(
        tokens, tokens, np.ones(len(tokens), bool), offsets, np.arange(SIZE), str(first)
    )


def stream_of(tmp_path, strategy="naive", tasks=4, **changes):
    """Four tasks of twenty examples, ten steps of four each; example n is of task n // 20."""
    about = [{"name": str(k), "data": "a", "evaluate": "a", "steps": 10} for k in range(tasks)]
    tree = {"stream": about, "run_dir": str(tmp_path), "train": {"batch_size": 4}, **changes}
    config = build(ContinualConfig, tree)
    how = strategies.from_config(config.strategy if strategy is None else strategy)
    ids = [np.arange(k * SIZE, (k + 1) * SIZE) for k in range(tasks)]
    run = RunDirectory(tmp_path)
    mesh = meshes.make_mesh(config.mesh)
    order = list(range(tasks))
    return Stream(
        config,
        None,
        joined([numbers(1000 * k) for k in range(tasks)]),
        _tasks(config, how, order, ids),
        how,
        run,
        mesh,
        None,
        None,
    )


def seen(stream, task, role="train"):
    draws = batches_of(stream, task)[0].draws
    return np.concatenate([draws(step)[role] for step in range(10)])


def test_a_law_divides_what_is_replayed_between_old_tasks(tmp_path):
    rehearsal = {"law": "power", "rate": 1.0}
    memory = {"size": 30, "share": 0.5, "batch_size": 3, "rehearsal": rehearsal}
    stream = stream_of(tmp_path, "replay", memory=memory, mesh={"data": 1})
    for task in range(3):
        keep_examples(stream, task, None)
    owners = seen(stream, 3) // SIZE
    wanted = counts(shares([3, 2, 1], "power", 1.0), 20, 1)
    assert np.bincount(owners, minlength=4).tolist() == [*wanted, 20]
    # the role draws from what is kept, ten examples of each old task
    owners = seen(stream, 3, "replay") // 10
    assert np.bincount(owners).tolist() == counts(shares([3, 2, 1], "power"), 30, 1).tolist()
    plain = stream_of(tmp_path, "replay", memory={**memory, "rehearsal": {}}, mesh={"data": 1})
    taken = seen(plain, 3)
    assert len(np.unique(taken[taken < 3 * SIZE])) == 20  # of thirty, none twice


@pytest.mark.parametrize("torn", [b"", b"PK\x03\x04", b"no archive"])
def test_a_damaged_memory_is_named(tmp_path, torn):
    stream = stream_of(tmp_path, mesh={"data": 1})
    keep_examples(stream, 0, None)
    file = stream.folder(0) / "memory.npz"
    assert len(seen(stream, 1)) == 40
    file.write_bytes(torn)
    with pytest.raises(UserError, match="memory.npz is gone or damaged"):
        seen(stream, 1)


def test_views_and_orders_reach_the_steps(tmp_path):
    stream = stream_of(tmp_path, views=4, mesh={"data": 1})
    taken = seen(stream, 0).reshape(10, 4)
    assert np.all(taken == taken[:, :1]) and len(np.unique(taken)) == 10
    order = {"kind": "folding"}
    about = [{"name": "a", "data": "a", "evaluate": "a", "steps": 10, "order": order}]
    stream = stream_of(tmp_path, tasks=1, stream=about, mesh={"data": 1})
    assert seen(stream, 0).tolist() == [*range(SIZE), *range(SIZE)]
    assert identity_of(stream, 0) != identity_of(stream_of(tmp_path, tasks=1), 0)
    joint = stream_of(tmp_path, "joint", tasks=1, stream=about, mesh={"data": 1})
    assert seen(joint, 0).tolist() != [*range(SIZE), *range(SIZE)]


def test_what_is_kept_is_the_best_in_the_order_that_is_asked_for():
    scores = np.array([0.3, 0.9, 0.1, 0.5, 0.7])
    assert ordered(ExamplesConfig("ascending", keep=0.6), scores).tolist() == [3, 4, 1]
    assert ordered(ExamplesConfig("descending"), scores).tolist() == [1, 4, 3, 0, 2]
    assert ordered(ExamplesConfig("shuffled", keep=0.6), scores).tolist() == [1, 3, 4]
    assert ordered(ExamplesConfig(layers=2), scores).tolist() == folded(scores, 2).tolist()


def test_the_rate_never_ends_until_it_is_annealed(tmp_path):
    how = {"constant": 0.25, "warmup": 4, "cooldown": 6, "anneal": 5, "final": 0.05}
    stream = stream_of(tmp_path, schedule=how, optimizer={"learning_rate": 1.0})
    rate = learning_rate(stream)
    found = [float(rate(step)) for step in range(41)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[10:36] == [0.25] * 26  # over three boundaries
    np.testing.assert_allclose(found[40], 0.05, rtol=1e-5)
    stream = stream_of(tmp_path, schedule={**how, "cooldown": 40})
    with pytest.raises(UserError, match="more than the 40 steps"):
        learning_rate(stream)
    # re-warmed and re-decayed in every task
    again = {"learning_rate": 1.0, "schedule": "cosine", "warmup_fraction": 0.2}
    rate = learning_rate(stream_of(tmp_path, optimizer=again))
    found = np.array([float(rate(step)) for step in range(40)]).reshape(4, 10)
    assert np.all(found == found[:1]) and found[0, :3].tolist() == [0.5, 1.0, 1.0]


def test_modules_are_measured_at_every_end_and_again_after_a_kill(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"layers/q/w": (2, 4, 3), "head/w": (5, 4), "norm/g": (4,)}

    def params():
        flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
        return flat, unflatten(flat)

    start, *ends = [params() for _ in range(5)]
    modules = {"modules": ["change", "condition"]}
    stream = replace(stream_of(tmp_path, measure=modules), lm=SimpleNamespace(params=start[1]))
    before, found = start[0], []
    for task, (flat, tree) in enumerate(ends):
        for _ in range(2):
            keep_modules(stream, task, tree)
        found.append(json.loads((stream.folder(task) / "modules.json").read_text()))
        for path in shapes:
            gap = np.abs(flat[path] - before[path])
            wanted = gap.mean(axis=(1, 2)) if path.startswith("layers") else gap.mean()
            np.testing.assert_allclose(found[-1]["change"][path], wanted, rtol=1e-6)
        kappas = found[-1]["condition"]
        assert set(kappas) == {"layers/q/w", "head/w"}
        np.testing.assert_allclose(kappas["head/w"], np.linalg.cond(flat["head/w"]), rtol=1e-5)
        np.testing.assert_allclose(
            kappas["layers/q/w"], [np.linalg.cond(w) for w in flat["layers/q/w"]], rtol=1e-5
        )
        before = flat
    # of the weights only those are left that the last boundary needs
    assert [p.parent.name for p in (tmp_path / "tasks").rglob("weights.npz")] == ["2"]
    named = [{"task": str(k), **row} for k, row in enumerate(found)]
    assert modules_figure("run", {"modules": named}).count("<svg") == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model from scratch and a file of texts with a number each."""
    root = tmp_path_factory.mktemp("texts")
    words = ["the cat sat on a mat", "a dog ran to the sea", "one two three four five", "zx qv"]
    rows = [{"text": words[n % 4] * (1 + n // 4), "likes": 10.0 - n} for n in range(8)]
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "clean.jsonl").write_text(json.dumps({"text": "the cat ran to the mat"}))
    about = {"name": "a", "data": str(root / "texts.jsonl"), "evaluate": "a"}
    model = ScratchConfig(vocabulary=320, width=16, layers=1, heads=2, inner=32)

    def made(score):
        tree = {"stream": [{**about, "order": {"score": score}}], "run_dir": str(root)}
        tree |= {"max_length": 64, "template": {"kind": "none", "end": False}, "mesh": {"data": 1}}
        return build(ContinualConfig, tree)

    config = made({})
    records = load_records(config.stream[0].data)
    lm = scratch(model, records, 0, Compute(), 64)
    run = RunDirectory(root)
    return root, made, lm, records, tokens_of(records, lm, config, run), run


def test_examples_are_scored_as_asked(small):
    root, made, lm, records, tokenised, run = small
    by_column = made({"by": "column", "column": "likes"})
    found = scores_of(0, lm, records, tokenised, by_column, run)
    assert found.tolist() == [10.0 - row for row in tokenised.rows]
    table = score_set(lm.score, lm.params, tokenised)
    means = [part.mean() for part in np.split(table.logp, table.offsets[1:-1])]
    likely = scores_of(0, lm, records, tokenised, made({}), run)
    np.testing.assert_allclose(likely, means, rtol=1e-5)
    # measured once: a run that goes on needs no model for it
    again = scores_of(0, None, records, tokenised, made({}), run)
    np.testing.assert_array_equal(again, likely)


@pytest.mark.slow
def test_a_proxy_tells_what_helps_a_clean_target(small):
    root, made, lm, records, tokenised, run = small
    proxy = {"steps": 3, "every": 1, "batch_size": 2, "learning_rate": 0.01}
    config = made({"by": "lqs", "target": str(root / "clean.jsonl"), **proxy})
    worth = scores_of(0, lm, records, tokenised, config, run)
    assert worth.shape == (len(tokenised),) and np.ptp(worth) > 0
    # an example that is the target itself pulls along with it, whatever the others do
    assert worth[tokenised.rows == 0].mean() > worth[tokenised.rows == 3].mean()


def mixture_of(root, **changes):
    task = {"name": "a", "data": str(root / "texts.jsonl"), "evaluate": str(root / "clean.jsonl")}
    task |= {"junk": str(root / "junk.jsonl")}
    tree = {"stream": [task], "run_dir": str(root), "max_length": 32, **changes}
    return build(ContinualConfig, tree | {"template": {"kind": "none", "end": False}})


def test_junk_is_mixed_in_and_packed_as_asked(small):
    root, _, lm, *_, run = small
    (root / "junk.jsonl").write_text("\n".join(json.dumps({"text": f"wow {n}"}) for n in range(40)))
    also = {"also": {"clean": str(root / "clean.jsonl")}}
    config = mixture_of(root, mixture={"share": 0.5, "tokens": 80}, measure=also)
    found = texts_of(read(config), lm, config, run)
    (own,) = found.train
    texts = load_records(config.stream[0].data), load_records(config.stream[0].junk)
    sizes = [tokens_of(part, lm, config, run).lengths for part in texts]
    control, junk = mixed(*sizes, 0.5, 80, (0, 0))
    assert sorted(own.lengths) == sorted([*sizes[0][control], *sizes[1][junk]])
    assert abs(sizes[1][junk].sum() - 40) <= 3
    assert list(found.also) == ["clean"] and len(found.held[0]) == len(found.also["clean"])
    packed = mixture_of(root, mixture={"share": 0.5, "tokens": 80}, packing="blocks")
    (blocks,) = texts_of(read(packed), lm, packed, run).train
    assert sorted(blocks.tokens) == sorted(own.tokens) and np.all(blocks.lengths[:-1] == 32)
    with pytest.raises(UserError, match="belong together"):
        read(mixture_of(root))
    column = {"score": {"by": "column", "column": "likes"}}
    with pytest.raises(UserError, match='score by "likelihood"'):
        stream = [{"name": "a", "data": "a", "evaluate": "a", "order": column}]
        read(mixture_of(root, stream=stream, packing="blocks"))


def test_two_groups_of_runs_are_compared_by_hedges_g():
    runs = {label: {"train": {"seed": n}} for n, label in enumerate("abcd")}
    effects = {"junk": {"treatment": ["a", "b"], "control": ["c", "d"]}}
    base = {"stream": [{"name": "a", "data": "a", "evaluate": "a"}], "run_dir": "r", "runs": runs}
    config = build(ContinualConfig, {**base, "effects": effects})
    check_effects(config)
    values = {"a": 1.2, "b": 1.4, "c": 1.0, "d": 1.1}
    found = {label: {"nll": v, "same": 2.0, "none": None} for label, v in values.items()}
    (nll,) = effects_of(found, config.effects)["junk"].items()
    pooled = np.sqrt((0.02 + 0.005) / 2)
    assert nll[0] == "nll" and nll[1]["g"] == pytest.approx((1 - 3 / 7) * 0.25 / pooled)
    assert nll[1]["low"] < nll[1]["g"] < nll[1]["high"] and nll[1]["non_trivial"]
    for groups, message in (
        ({"treatment": ["a", "e"], "control": ["c", "d"]}, "no run 'e'"),
        ({"treatment": ["a", "b"], "control": ["b", "d"]}, "both groups"),
    ):
        with pytest.raises(UserError, match=message):
            check_effects(build(ContinualConfig, {**base, "effects": {"x": groups}}))


def test_scores_that_cannot_be_had_are_refused(small):
    _, made, lm, records, tokenised, run = small
    for score, message in (
        ({"by": "column"}, "set its column"),
        ({"by": "column", "column": "like"}, "no column 'like'.*likes"),
        ({"by": "lqs"}, "needs a target"),
    ):
        with pytest.raises(UserError, match=message):
            scores_of(0, lm, records, tokenised, made(score), run)
