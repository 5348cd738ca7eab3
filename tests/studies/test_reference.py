"""The reference cache: what the model scores, read again as long as nothing changed."""

import dataclasses

import jax
import numpy as np
import pytest
from evals import small

from jaxforget.objectives import Needs
from jaxforget.studies import reference
from jaxforget.studies.inputs import HIDDEN, LOGP, RESIDUAL
from jaxforget.studies.reference import fingerprint, with_reference


def needs_of(layer=None, **reference):
    return Needs(
        ("forget", "retain"), {k: frozenset(v) for k, v in reference.items()}, residual=layer
    )


NEEDS = needs_of(0, forget={"logp"}, retain={"hidden", "residual"})


@pytest.fixture(scope="module")
def lm():
    return small.model()


@pytest.fixture(scope="module")
def sets():
    return {role: small.tokens(small.records()[role]) for role in ("forget", "retain")}


@pytest.fixture
def counted(monkeypatch):
    """How often a set is scored."""
    calls, score_set = [], reference.score_set

    def counting(*arguments, **options):
        calls.append(1)
        return score_set(*arguments, **options)

    monkeypatch.setattr(reference, "score_set", counting)
    return calls


def test_columns_are_what_the_starting_model_scores(lm, sets, tmp_path):
    made = with_reference(lm, sets, NEEDS, folder=tmp_path)
    assert set(made["forget"].columns) == {LOGP}
    assert set(made["retain"].columns) == {LOGP, HIDDEN, RESIDUAL}
    for role, tokenised in sets.items():
        table = reference.score_set(
            lm.score, lm.params, tokenised, hidden=True, residual=0, rows=3, length=128
        )
        for name, want in ((LOGP, table.logp), (HIDDEN, table.hidden), (RESIDUAL, table.residual)):
            if name in made[role].columns:
                np.testing.assert_allclose(made[role].columns[name], want, rtol=1e-4, atol=2e-5)


def test_a_second_call_reads_the_files(lm, sets, tmp_path, counted):
    first = with_reference(lm, sets, NEEDS, folder=tmp_path)
    again = with_reference(lm, sets, NEEDS, folder=tmp_path)
    assert len(counted) == 2
    for role in sets:
        for name, column in first[role].columns.items():
            np.testing.assert_array_equal(again[role].columns[name], column)


def test_other_parameters_data_or_layers_are_scored_again(lm, sets, tmp_path, counted):
    first, second = (needs_of(layer, retain={"residual"}) for layer in (0, 1))
    with_reference(lm, sets, first, folder=tmp_path)
    with_reference(lm, sets, second, folder=tmp_path)
    with_reference(small.model(5), sets, first, folder=tmp_path)
    fewer = {"retain": small.tokens(small.records()["retain"][:3])}
    with_reference(lm, fewer, first, folder=tmp_path)
    assert len(counted) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_files_are_made_again(lm, sets, tmp_path, counted, damage):
    needs = needs_of(forget={"logp"})
    want = with_reference(lm, sets, needs, folder=tmp_path)["forget"].columns[LOGP].copy()
    (file,) = tmp_path.rglob("*.npy")
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    again = with_reference(lm, sets, needs, folder=tmp_path)["forget"].columns[LOGP]
    np.testing.assert_array_equal(again, want)
    assert len(counted) == 2


def test_a_role_can_be_compared_with_a_model_that_knows_nothing(lm, sets, tmp_path):
    needs = dataclasses.replace(needs_of(forget={"hidden"}), random=frozenset({"forget"}))
    made = with_reference(lm, sets, needs, folder=tmp_path, seed=3)["forget"].columns
    random = lm.reinitialised(3)
    assert random.params["embed"]["w"].dtype == lm.params["embed"]["w"].dtype
    want = reference.score_set(lm.score, random.params, sets["forget"], rows=8).logp
    np.testing.assert_allclose(made[LOGP], want, rtol=1e-5, atol=1e-5)
    other = with_reference(lm, sets, needs, folder=tmp_path, seed=4)["forget"].columns
    assert np.abs(np.asarray(other[LOGP]) - want).max() > 1e-3


def test_nothing_needed_is_nothing_scored(lm, sets, tmp_path, counted):
    assert with_reference(lm, sets, needs_of(forget=()), folder=tmp_path) == sets
    assert not counted and not list(tmp_path.iterdir())


def test_the_fingerprint_sees_every_bit_and_every_name(lm):
    base = fingerprint(lm.params, "x")
    flipped = jax.tree.map(np.array, lm.params)
    flipped["final_norm"]["scale"][0] = np.nextafter(flipped["final_norm"]["scale"][0], 2)
    renamed = {**lm.params, "other": lm.params["final_norm"]}
    del renamed["final_norm"]
    assert len({base, fingerprint(flipped, "x"), fingerprint(renamed, "x")}) == 3
    assert base == fingerprint(lm.params, "x") != fingerprint(lm.params, "y")
