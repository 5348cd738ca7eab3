"""The reference cache: what the model scores, read again as long as nothing changed."""

import jax
import numpy as np
import pytest
from evals import small

from jaxforget.studies import reference
from jaxforget.studies.reference import fingerprint, with_reference
from jaxforget.studies.training import HIDDEN, LOGP, RESIDUAL

NEEDS = {"forget": frozenset({"logp"}), "retain": frozenset({"hidden", "residual"})}


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
    made = with_reference(lm, sets, NEEDS, folder=tmp_path, layer=0)
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
    first = with_reference(lm, sets, NEEDS, folder=tmp_path, layer=0)
    again = with_reference(lm, sets, NEEDS, folder=tmp_path, layer=0)
    assert len(counted) == 2
    for role in sets:
        for name, column in first[role].columns.items():
            np.testing.assert_array_equal(again[role].columns[name], column)


def test_other_parameters_data_or_layers_are_scored_again(lm, sets, tmp_path, counted):
    needs = {"retain": frozenset({"residual"})}
    with_reference(lm, sets, needs, folder=tmp_path, layer=0)
    with_reference(lm, sets, needs, folder=tmp_path, layer=1)
    with_reference(small.model(5), sets, needs, folder=tmp_path, layer=0)
    fewer = {"retain": small.tokens(small.records()["retain"][:3])}
    with_reference(lm, fewer, needs, folder=tmp_path, layer=0)
    assert len(counted) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_files_are_made_again(lm, sets, tmp_path, counted, damage):
    needs = {"forget": frozenset({"logp"})}
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


def test_nothing_needed_is_nothing_scored(lm, sets, tmp_path, counted):
    assert with_reference(lm, sets, {"forget": frozenset()}, folder=tmp_path) == sets
    assert not counted and not list(tmp_path.iterdir())


def test_the_fingerprint_sees_every_bit_and_every_name(lm):
    base = fingerprint(lm.params, "x")
    flipped = jax.tree.map(np.array, lm.params)
    flipped["final_norm"]["scale"][0] = np.nextafter(flipped["final_norm"]["scale"][0], 2)
    renamed = {**lm.params, "other": lm.params["final_norm"]}
    del renamed["final_norm"]
    assert len({base, fingerprint(flipped, "x"), fingerprint(renamed, "x")}) == 3
    assert base == fingerprint(lm.params, "x") != fingerprint(lm.params, "y")
