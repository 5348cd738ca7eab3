"""Looking into every layer at once equals looking into one at a time."""

import jax
import numpy as np
import pytest
from golden_models import load, rows

from jaxforget.engine.tree import flatten, unflatten
from jaxforget.models import decoder
from jaxforget.models.decoder import Compute
from jaxforget.models.lens import layer_logp, layer_states

EXACT = Compute("float32")
CASES = ("gemma3_text", "gpt2", "phi")


def packed(case):
    cfg, params, expected = load(case)
    tokens = [t[m.astype(bool)] for t, m in zip(expected["tokens"], expected["mask"], strict=True)]
    return cfg, params, rows(tokens[:2], tokens[2:], length=64, max_targets=48, first_target=2)


def shortened(params, layer):
    """The model whose layers behind `layer` add nothing."""
    flat = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    for path, leaf in flat.items():
        if path.startswith(("layers/attn/o", "layers/mlp/down")):
            leaf[layer + 1 :] = 0
    return unflatten(flat)


def by_segment(values, scores):
    """float64 means over the slots of each example: values `[B, T, ..]`."""
    mask, segments = np.asarray(scores.mask), np.asarray(scores.segments)
    count = scores.example.shape[1]
    found = np.zeros((len(mask), count, *values.shape[2:]))
    for row in range(len(mask)):
        for segment in range(count):
            mine = (segments[row] == segment + 1) & (mask[row] != 0)
            if mine.any():
                found[row, segment] = np.asarray(values[row], np.float64)[mine].mean(axis=0)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_lens_reads_what_a_model_without_the_later_layers_says(case):
    cfg, params, batch = packed(case)
    found = np.asarray(jax.jit(lambda p, b: layer_logp(p, b, cfg, EXACT))(params, batch))
    score = jax.jit(lambda p, b: decoder.score(p, b, cfg, EXACT))
    assert found.shape[0] == cfg.layers
    for layer in range(cfg.layers):
        scores = score(shortened(params, layer), batch)
        np.testing.assert_allclose(found[layer], by_segment(scores.logp, scores), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_states_are_means_over_the_labelled_slots_of_an_example(case):
    cfg, params, batch = packed(case)
    found = np.asarray(jax.jit(lambda p, b: layer_states(p, b, cfg, EXACT))(params, batch))
    for layer in range(cfg.layers):
        scores = decoder.score(params, batch, cfg, EXACT, residual=layer)
        np.testing.assert_allclose(found[layer], by_segment(scores.residual, scores), atol=2e-5)
