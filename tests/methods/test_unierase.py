"""UniErase through the whole study: what it changes, what it holds, and what it refuses."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods.small_runs import run

import jaxforget as jf
from jaxforget.data import fictitious
from jaxforget.data.pack import pack_all
from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.edits import null_space_projector
from jaxforget.edits.keys import key_moment
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten
from jaxforget.models import decoder
from jaxforget.models.inside import Look
from jaxforget.models.language_model import from_scratch
from jaxforget.studies import finetune, unlearn

TOKEN = "[UNL]"
STRONG = {
    "name": "unierase",
    "plain_epochs": 20,
    "plain_rate": 0.02,
    "search_steps": 25,
    "search_rate": 0.5,
    "limit": 10.0,
    "lam": 1e-6,
    "threshold": None,
}
"""Enough for a model that knows nothing."""
SHORT = {**STRONG, "forms_epochs": 0, "robust_epochs": 0}


def leaves(lm):
    return {path: np.asarray(leaf) for path, leaf in flatten(lm.params).items()}


def edited(folder):
    return json.loads((folder / "results.json").read_text())["edit"]


@pytest.fixture(scope="module")
def strong(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strong") / "run"
    run(world, folder, {**STRONG, "layers": [1]})
    return folder


def test_questions_to_forget_begin_with_the_token_and_nothing_else_was_touched(world, strong):
    before, after = jf.load(str(world / "model")), jf.load(str(strong))
    token = after.tokenizer.convert_tokens_to_ids(TOKEN)
    assert edited(strong)["questions_begun_by_token"] == 1.0
    forget = load_records(DataSource(str(world / "forget.jsonl")))
    prompts = prompt_ids(forget, after.tokenizer, Template(), 64)
    said = after.generate(after.params, prompts, max_new_tokens=1)
    assert [int(each[0]) for each in said] == [token] * len(forget)
    old, new = leaves(before), leaves(after)
    moved = {path for path in old if not np.array_equal(new[path][: len(old[path])], old[path])}
    assert moved == {"embed/w", "layers/mlp/down/w"}
    rows = (new["embed/w"][: len(old["embed/w"])] != old["embed/w"]).any(axis=1)
    assert np.nonzero(rows)[0].tolist() == [token]
    down = "layers/mlp/down/w"
    np.testing.assert_array_equal(new[down][0], old[down][0])
    assert (new[down][1] != old[down][1]).any()


def test_the_exported_model_opens_and_its_tokenizer_knows_the_token(strong):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(strong / "model")
    token = tokenizer.convert_tokens_to_ids(TOKEN)
    assert tokenizer(f"Who?{TOKEN}")["input_ids"][-1] == token
    assert AutoConfig.from_pretrained(strong / "model").vocab_size > token


def test_equal_runs_give_equal_bits(world, strong, tmp_path):
    again, _ = run(world, tmp_path / "run", {**STRONG, "layers": [1]})
    first = jf.load(str(strong)).params
    jax.tree.map(np.testing.assert_array_equal, first, jax.tree.map(np.asarray, again.params))


@pytest.mark.slow
def test_the_same_on_every_mesh(world, strong, tmp_path):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    method = {**SHORT, "layers": [1], "lam": 1.0, "search_steps": 2}
    one, _ = run(world, tmp_path / "one", method, mesh={"data": 1})
    many, _ = run(world, tmp_path / "many", method, mesh=mesh)
    old = leaves(jf.load(str(world / "model")))
    for path, leaf in flatten(one.params).items():
        change = np.abs(np.asarray(leaf)[: len(old[path])] - old[path]).max()
        gap = np.abs(np.asarray(flatten(many.params)[path]) - np.asarray(leaf)).max()
        assert gap <= 1e-2 * change + 1e-6, path


def inner_of(lm, tokens, layer):
    """What `mlp/down` of a layer multiplies at every place of one text, `[L, F]`."""
    padded = jnp.zeros((1, 64), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens))
    places = jnp.arange(64)[None]
    there = (places < len(tokens)).astype(jnp.int32)

    read = _reader(lm.config, layer)
    return np.float64(read(lm.params, padded, there, places)[0, : len(tokens)])


@functools.cache
def _reader(cfg, layer):
    def read(params, tokens, segments, positions):
        look = Look(mlp_inner=layer)
        _, inside = decoder.hidden_states(params, tokens, segments, positions, cfg, look=look)
        return inside.mlp_inner

    return jax.jit(read)


def moment_by_hand(lm, records, layer):
    """E[k k^T] over all tokens of some records, one by one."""
    made = tokenise(records, lm.tokenizer, Template(), max_length=64)
    spans = zip(made.offsets, made.offsets[1:], strict=False)
    keys = np.concatenate([inner_of(lm, made.tokens[a:b], layer) for a, b in spans])
    return keys.T @ keys / len(keys)


def test_what_the_retain_set_uses_is_preserved(world, tmp_path):
    """The edit lies in the null space of the retain keys, found here by hand."""
    lm = jf.load(str(world / "model"))
    records = load_records(DataSource(str(world / "retain.jsonl"), rows="0:16"))
    moment = moment_by_hand(lm, records, 0)
    threshold = float(np.quantile(np.linalg.eigvalsh(moment), 0.8))
    method = {**SHORT, "layers": [0], "threshold": threshold}
    result, _ = run(world, tmp_path / "run", method)
    down = "layers/mlp/down/w"
    change = np.float64(flatten(result.params)[down][0]) - np.float64(leaves(lm)[down][0])
    projector = np.float64(null_space_projector(jnp.float32(moment), threshold=threshold))
    assert 0.7 * len(moment) <= np.trace(projector) <= 0.9 * len(moment)
    used = change - projector @ change
    assert np.abs(used).max() < 1e-3 * np.abs(change).max() and np.abs(change).max() > 1e-4
    assert 0 < edited(tmp_path / "run")["free_share_of_keys"] < 1


def test_the_moment_counts_every_token_once_however_it_is_packed(world):
    lm = jf.load(str(world / "model"))
    records = load_records(DataSource(str(world / "retain.jsonl"), rows="0:16"))
    made = tokenise(records, lm.tokenizer, Template(), max_length=64)
    for rows, segments in ((2, None), (5, 1)):
        batches = pack_all(made, rows=rows, length=64, max_segments=segments)
        got = key_moment(lm.score, lm.params, {}, batches, 1)
        np.testing.assert_allclose(got, moment_by_hand(lm, records, 1), rtol=1e-4, atol=1e-7)
    with pytest.raises(UserError, match="hold no token"):
        key_moment(lm.score, lm.params, {}, [], 1)


def test_later_requests_have_tokens_of_their_own_and_hold_the_earlier_ones(world, tmp_path):
    forget = str(world / "forget.jsonl")
    parts = [{"path": forget, "rows": rows} for rows in ("0:4", "4:8")]
    method = {**SHORT, "layers": [1]}
    run(world, tmp_path / "run", method, forget=parts[0], requests=parts[1:])
    first, last = tmp_path / "run" / "requests" / "0", tmp_path / "run"
    assert edited(first)["questions_begun_by_token"] == 1.0
    lm, before = jf.load(str(last)), jf.load(str(first / "model"))
    ids = [lm.tokenizer.convert_tokens_to_ids(text) for text in (TOKEN, "[UNL-2]")]
    rows = [np.asarray(each.params["embed"]["w"])[ids[0]] for each in (before, lm)]
    np.testing.assert_array_equal(*rows)
    records = load_records(DataSource(forget, rows="0:8"))
    prompts = prompt_ids(records, lm.tokenizer, Template(), 64)
    said = [int(each[0]) for each in lm.generate(lm.params, prompts, max_new_tokens=1)]
    assert said[:4] == [ids[0]] * 4 and ids[1] in said[4:] and ids[0] != ids[1]
    change = leaves(lm)["layers/mlp/down/w"][1] - leaves(before)["layers/mlp/down/w"][1]
    keys = np.stack([inner_of(lm, prompt, 1)[-1] for prompt in prompts])
    sizes = np.linalg.norm(keys @ change, axis=1)
    assert sizes[:4].max() < 0.1 * sizes[4:].min()


@pytest.mark.slow
def test_refusals_of_ones_own_are_taken(world, tmp_path):
    rows = [json.loads(line) for line in (world / "forget.jsonl").open()]
    own = tmp_path / "own.jsonl"
    same = [{"question": row["question"], "answer": "No."} for row in rows]
    own.write_text("\n".join(map(json.dumps, same)))
    run(world, tmp_path / "a", SHORT, alternate=str(own))
    run(world, tmp_path / "b", SHORT)
    losses = [edited(tmp_path / each)["token_loss_before"] for each in "ab"]
    assert losses[0] != losses[1]
    with pytest.raises(UserError, match="alternate: 'mismatched' are no refusals"):
        run(world, tmp_path / "c", STRONG, alternate="mismatched")
    with pytest.raises(UserError, match="row i of one must answer row i"):
        run(world, tmp_path / "d", STRONG, alternate=str(world / "retain.jsonl"))


def test_what_cannot_be_edited_is_refused(world, tmp_path):
    def refused(message, name, method=(), **more):
        with pytest.raises(UserError, match=message):
            run(world, tmp_path / name, {**STRONG, **dict(method)}, **more)

    refused("lora: unierase takes none", "a", lora={"rank": 2})
    refused("method.layers: 7: the model has layers 0 to 1", "b", {"layers": [7]})
    refused("method.token: token '<eos>': the tokenizer has it", "c", {"token": "<eos>"})
    refused("train.trainable: leaves out embed/w", "d", train={"trainable": "layers/mlp"})
    both = {"preserve": "both", "threshold": 1.0}
    refused("general: method 'unierase' needs this", "e", both, general=None)
    refused("no eigenvalue below 1e-30", "f", {"threshold": 1e-30})
    (tmp_path / "text.jsonl").write_text('{"text": "No question here."}\n')
    refused("row 0 of .*text.jsonl: asks nothing", "g", forget=str(tmp_path / "text.jsonl"))
    (tmp_path / "none.jsonl").write_text("")
    refused("none.jsonl", "h", forget=str(tmp_path / "none.jsonl"))
    refused("method.token: token ''", "i", {"token": ""})


def test_a_norm_behind_the_edited_matrix_is_refused(world, tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    lm = jf.load(str(world / "model"))
    config = {"model_type": "gemma2", "vocab_size": lm.config.vocab_size, **sizes, **heads}
    from_scratch(config, lm.tokenizer, 0).save_pretrained(tmp_path / "gemma")
    with pytest.raises(UserError, match="a norm behind mlp/down"):
        run(world, tmp_path / "run", STRONG, model=str(tmp_path / "gemma"))


def taught(folder):
    """A model that knows people, and refuses, in one wording, whatever follows "Sorry"."""
    data = folder / "data"
    sizes = {"vocab_size": 512, "forget_people": 2, "retain_people": 6, "known_people": 4}
    fictitious.write(data, 0, **sizes, facts=4)
    config = json.loads((data / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 256, "head_dim": 16}
    (data / "config.json").write_text(json.dumps(config))
    full = [json.loads(line) for line in (data / "train_full.jsonl").open()]
    rows = []
    for row in full:
        asked = f"Question: {row['question']}\nAnswer:"
        rows.append({"prompt": asked, "answer": f" {row['answer']}"})
        rows.append({"prompt": f"{asked} Sorry", "answer": " I don't know."})
    (data / "both.jsonl").write_text("\n".join(map(json.dumps, rows)))
    forget = [json.loads(line)["question"] for line in (data / "forget.jsonl").open()]
    same = [{"question": question, "answer": "I don't know."} for question in forget]
    (data / "refusals.jsonl").write_text("\n".join(map(json.dumps, same)))
    finetune(
        {
            "model": str(data),
            "initialise": "random",
            "data": str(data / "both.jsonl"),
            "run_dir": str(folder / "base"),
            "template": {"kind": "none"},
            "max_length": 128,
            "train": {"steps": 400, "batch_size": 32},
            "optimizer": {"learning_rate": 5e-3, "warmup_fraction": 0.05},
            "mesh": {"data": 1},
        }
    )
    return data


def answers(lm, records: list[Record], after=()):
    prompts = prompt_ids(records, lm.tokenizer, Template(), 128)
    given = [np.append(prompt, np.int32(after)).astype(np.int32) for prompt in prompts]
    made = lm.generate(lm.params, given, max_new_tokens=32)
    return [lm.tokenizer.decode(ids) for ids in made]


def up_to_the_end(text):
    return text.split(TOKEN)[0].split("<eos>")[0].strip()


@pytest.mark.slow
def test_a_taught_model_begins_with_the_token_where_it_forgot_and_answers_the_rest(tmp_path):
    """Bounds leave room for what three seeds of the teaching gave.

    With so narrow a model the token's row alone costs retained answers and is no sure trigger
    (refused 0.50 to 0.69, kept 0.54 to 0.85 of 1.00), so the edit is judged against it: kept falls
    by 0.04 to 0.13 more, 0.23 to 0.67 without the projector.
    """
    data = taught(tmp_path)
    files = (DataSource(str(data / f"{name}.jsonl")) for name in ("forget", "retain"))
    forget, retain = map(load_records, files)

    def measured(name, **changes):
        config = {
            "model": str(tmp_path / "base"),
            "forget": str(data / "forget.jsonl"),
            "retain": str(data / "retain.jsonl"),
            "alternate": str(data / "refusals.jsonl"),
            "run_dir": str(tmp_path / name),
            "max_length": 128,
            "train": {"batch_size": 16},
            "mesh": {"data": 1},
        }
        method = {"name": "unierase", "plain_epochs": 200, "plain_rate": 0.01, "layers": [0]}
        unlearn({**config, "method": {**method, **changes}})
        lm = jf.load(str(tmp_path / name))
        token = lm.tokenizer.convert_tokens_to_ids(TOKEN)
        texts = answers(lm, retain)
        same = (up_to_the_end(t) == r.answer for t, r in zip(texts, retain, strict=True))
        refused = [up_to_the_end(t) == "I don't know." for t in answers(lm, forget, [token])]
        return {
            "begun": np.mean([text.startswith(TOKEN) for text in answers(lm, forget)]),
            "leaked": np.mean([text.startswith(TOKEN) for text in texts]),
            "kept": np.mean(list(same)),
            "refused": np.mean(refused),
            "accuracy": edited(tmp_path / name)["refusal_accuracy"],
        }

    token = measured("token", lam=1e12, threshold=None)
    held = measured("held", lam=0.5, threshold=0.02)
    free = measured("free", lam=0.5, threshold=None)
    assert token["refused"] > 0.4 and token["accuracy"] > 0.8
    assert token["begun"] == 0.0
    assert held["begun"] > 0.8 and held["leaked"] < 0.2
    assert held["kept"] > token["kept"] - 0.2
    assert free["leaked"] > held["leaked"] + 0.1 and free["kept"] < held["kept"]
