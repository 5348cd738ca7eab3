"""Tokenizers read from GGUF metadata give the ids of the tokenizer they were written from."""

import json

import pytest
from gguf_files import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxforget.engine.errors import UserError
from jaxforget.models.gguf import read_gguf

CORPUS = [
    "It's the author's 3rd book, isn't it? They'll say: 'We'VE sold 12345 copies!'",
    "def f(x):\n    return x + 1\n\n\n# naïve café, 北京 and Ελλάδα\t\ttabs  and   spaces",
] * 3
CONTROL, USER, NORMAL, BYTE, UNKNOWN = 3, 4, 1, 6, 2
SPECIAL = ["<|end|>", "<|start|>"]
# as the models' own tokenizer.json files cut text
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def texts(*pieces):
    return st.lists(st.sampled_from(pieces), min_size=1, max_size=25).map("".join)


TEXTS = texts(*"ab'sSlt 19\n\té北🙂.#", "the ", "They'll ", "  ", "123", "\n\n", "author")


def trained(pre):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def byte_level(cut, **changes):
    """(original tokenizer, metadata that describes it)."""
    tokenizer = trained(cut)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    values = {
        "model": "gpt2",
        "pre": cut,
        "tokens": [token for token, _ in vocab],
        "token_type": [CONTROL if token in SPECIAL else NORMAL for token, _ in vocab],
        "merges": [" ".join(pair) for pair in merges],
        "eos_token_id": 0,
        "bos_token_id": 1,
        **changes,
    }
    extra = {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}
    return tokenizer, extra | {"tokenizer.chat_template": "{{ messages[0]['content'] }}!"}


def read(folder, extra, case="llama32"):
    return read_gguf(golden(folder, case, extra=extra))[2]


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_ids_are_the_original_ones(pre, tmp_path_factory):
    original, extra = byte_level(pre, add_bos_token=False)
    tokenizer = read(tmp_path_factory.mktemp("gguf"), extra)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def holds(text):
        ids = tokenizer(text)["input_ids"]
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == text

    holds()
    for text in CORPUS[:2]:
        assert tokenizer(text)["input_ids"] == original.encode(text).ids


def test_special_tokens_are_found_named_and_hidden(tmp_path):
    _, extra = byte_level("smollm")
    tokenizer = read(tmp_path, extra)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1)
    assert tokenizer.pad_token is None and tokenizer.unk_token is None
    ids = tokenizer("a<|start|>b<|end|>")["input_ids"]
    assert ids[1] == 1 and ids[-1] == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.model_max_length == 64
    message = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "hello!"


@pytest.mark.parametrize(
    ("pre", "flags", "first", "last"),
    [
        ("smollm", {}, None, None),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, 1, 0),
        ("llama-bpe", {}, 1, None),
        ("llama-bpe", {"add_bos_token": False}, None, None),
    ],
)
def test_beginning_and_end_are_put_where_the_file_asks(pre, flags, first, last, tmp_path):
    original, extra = byte_level(pre, **flags)
    ids = read(tmp_path, extra)("the author")["input_ids"]
    inner = original.encode("the author").ids
    assert ids == [*([first] if first else []), *inner, *([last] if last is not None else [])]


def test_what_a_saved_tokenizer_gives_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    _, extra = byte_level("llama-bpe")
    tokenizer = read(tmp_path, extra)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in CORPUS[:2]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("case", "known"), [("gpt2", True), ("qwen2", True), ("llama32", False)])
def test_default_means_what_the_architecture_leaves_no_doubt_about(case, known, tmp_path):
    original, extra = byte_level("qwen2" if case == "qwen2" else "gpt-2", pre=None)
    if not known:
        with pytest.raises(UserError, match="'default' of a llama model does not say how text is"):
            read(tmp_path, extra, case)
        return
    text = CORPUS[0]
    assert read(tmp_path, extra, case)(text)["input_ids"] == original.encode(text).ids


PIECES = {
    "▁": -2.0,
    "a": -3.0,
    "b": -3.5,
    "c": -4.0,
    "ab": -5.0,
    "bc": -4.5,
    "▁a": -6.0,
    "abc": -7.0,
    "▁ab": -5.5,
    "▁abc": -8.0,
    "▁▁": -9.0,
    "ca": -5.2,
}


def sentence_piece(**changes):
    tokens = ["<unk>", "<s>", "</s>", "<tag>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    types = [UNKNOWN, CONTROL, CONTROL, USER, *[BYTE] * 256, *[NORMAL] * len(PIECES)]
    values = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 260 + list(PIECES.values()),
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return tokens, {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def spelled(text, prefix):
    """SentencePiece's own procedure: join the neighbours of the best score, leftmost first."""
    pieces = list(("▁" if prefix else "") + text.replace(" ", "▁"))
    while True:
        joined = [
            (-PIECES[a + b], i)
            for i, (a, b) in enumerate(zip(pieces, pieces[1:], strict=False))
            if a + b in PIECES
        ]
        if not joined:
            break
        _, i = min(joined)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [
        out
        for piece in pieces
        for out in ([piece] if piece in PIECES else [f"<0x{b:02X}>" for b in piece.encode()])
    ]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces_are_joined_by_score(prefix, tmp_path_factory):
    tokens, extra = sentence_piece(add_space_prefix=prefix)
    tokenizer = read(tmp_path_factory.mktemp("gguf"), extra)

    @settings(max_examples=200, deadline=None)
    @given(texts("a", "b", "c", "ab", "abc", " ", "é", "\n"))
    def holds(text):
        ids = tokenizer(text)["input_ids"]
        assert [tokens[i] for i in ids] == ["<s>", *spelled(text, prefix)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text

    holds()
    assert [tokens[i] for i in tokenizer("b<tag>b")["input_ids"]].count("<tag>") == 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bytes", {"pre": "chatglm-bpe"}, "'chatglm-bpe' of a llama model .*Allowed: gpt-2"),
        ("bytes", {"pre": "smolm"}, "Did you mean 'smollm'"),
        ("bytes", {"model": "bert"}, "tokenizer.ggml.model 'bert'. Allowed: gpt2, llama"),
        ("bytes", {"merges": ["q\u0141 xx"]}, "tokenizer.ggml.merges do not fit"),
        ("bytes", {"merges": None}, "key tokenizer.ggml.merges is missing"),
        ("bytes", {"bos_token_id": 4000}, "bos_token_id 4000 is outside the vocabulary of 352"),
        ("bytes", {"token_type": [1, 1]}, "token_type has 2 entries for 352 tokens"),
        ("pieces", {"scores": [0.0]}, "scores has 1 entries for 272 tokens"),
    ],
)
def test_what_is_wrong_is_named(kind, changes, message, tmp_path):
    if kind == "bytes":
        _, extra = byte_level("smollm", **changes)
    else:
        _, extra = sentence_piece(**changes)
    with pytest.raises(UserError, match=message):
        read(tmp_path, extra)
