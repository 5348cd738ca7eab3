"""A new token is known everywhere at once, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxforget as jf
from jaxforget.data.fictitious_model import language, model_config, train_tokenizer
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten
from jaxforget.models.language_model import from_scratch
from jaxforget.models.vocabulary import with_tokens

TOKEN = "[UNL]"


def small(vocabulary, **changes):
    """A model of one layer whose embedding has `vocabulary` rows more than the tokenizer."""
    tokenizer = train_tokenizer(language()[:50], 300)
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8, "intermediate_size": 24}
    config = model_config(tokenizer) | sizes | {"num_attention_heads": 2} | changes
    return from_scratch(config | {"vocab_size": len(tokenizer) + vocabulary}, tokenizer, 0)


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_opens_with_the_token_in_every_place(tmp_path, spare, tied):
    transformers = pytest.importorskip("transformers")
    lm = small(spare, tie_word_embeddings=tied)
    rows, known = lm.config.vocab_size, len(lm.tokenizer)
    grown, (token,) = with_tokens(lm, [TOKEN])
    assert token == known and grown.config.vocab_size == max(rows, known + 1)
    assert TOKEN not in lm.tokenizer.get_vocab() and lm.config.vocab_size == rows
    grown.save_pretrained(tmp_path / "model")
    again = jf.load(tmp_path / "model")
    assert again.config == grown.config and again.hf_config["vocab_size"] == grown.config.vocab_size
    for path, leaf in flatten(again.params).items():
        np.testing.assert_array_equal(leaf, flatten(grown.params)[path])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer(f"I{TOKEN}don't")["input_ids"].count(token) == 1
    assert tokenizer.decode([token], skip_special_tokens=True) == ""
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").vocab_size == (
        grown.config.vocab_size
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_new_row_is_the_mean_and_the_others_stay(tied):
    lm = small(0, tie_word_embeddings=tied)
    grown, (token,) = with_tokens(lm, [TOKEN])
    before, after = flatten(lm.params), flatten(grown.params)
    mean = np.mean(np.float64(before["embed/w"]), axis=0)
    for path in {"embed/w", "head/w"} & set(after):
        np.testing.assert_allclose(after[path][token], mean, atol=1e-6)
        np.testing.assert_array_equal(after[path][:token], before[path])
        after[path] = before[path]
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_a_bias_of_the_head_grows_and_narrow_weights_stay_narrow():
    lm = small(0, tie_word_embeddings=False)
    head = {**lm.params["head"], "b": jnp.arange(lm.config.vocab_size, dtype=jnp.float32)}
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), {**lm.params, "head": head})
    grown, ids = with_tokens(dataclasses.replace(lm, params=narrow), [TOKEN, "[UNL-2]"])
    assert [ids[1] - ids[0], grown.params["head"]["b"].shape] == [1, (ids[1] + 1,)]
    assert grown.params["embed"]["w"].dtype == jnp.bfloat16
    mean = (lm.config.vocab_size - 1) / 2
    np.testing.assert_allclose(np.float32(grown.params["head"]["b"])[-2:], mean, rtol=1e-2)


def test_what_is_no_new_token_is_refused():
    lm = small(0)
    with pytest.raises(UserError, match="the tokenizer has it already"):
        with_tokens(lm, [lm.tokenizer.eos_token])
    with pytest.raises(UserError, match="must not be blank"):
        with_tokens(lm, [" x"])
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        with_tokens(dataclasses.replace(lm, tokenizer=None), [TOKEN])
