"""Small byte-level tokenizers trained in the test, and sets made of random tokens."""

import numpy as np
import pytest

from jaxforget.data.sets import TokenisedSet

_TEXT = [
    "Question: Where was the author Basil Mahfouz born?\nAnswer: The author was born in Kuwait.",
    "Question: unbelievable, isn't it?\n\nAnswer: The answer is unbelievable:\n\n- yes;\n\n- no.",
    "Paris Paris Paris is the capital of France, the capital is Paris.",
    "你好 世界 naïve café crème — “quoted” 😀 😀 a\u2028b",
] * 8
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
)


def make_tokenizer(*, superword=False, trim=True, bos=False, eos="<eos>", chat_template=CHAT):
    """A byte-level BPE tokenizer of a few hundred entries; the options are its habits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    # without the usual split at spaces, tokens may end in white space and span words
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not superword)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token=eos, unk_token="<unk>"
    )
    tokenizer.chat_template = chat_template
    if bos:
        tokenizer.add_bos_token = True
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


def make_set(lengths, labels, seed=0, rows=None):
    """A set of random tokens with the last `labels[i]` targets of example i labelled."""
    rng = np.random.default_rng(seed)
    lengths, total = np.asarray(lengths), int(np.sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.concatenate(
        [np.arange(n) >= n - k for n, k in zip(lengths, labels, strict=True)] or [np.zeros(0, bool)]
    )
    made = TokenisedSet(
        tokens=rng.integers(1, 900, total).astype(np.int32),
        targets=rng.integers(1, 900, total).astype(np.int32),
        mask=mask,
        offsets=offsets,
        rows=np.arange(len(lengths)) if rows is None else np.asarray(rows),
        fingerprint=f"random-{seed}",
    )
    count = int(mask.sum())
    return made.with_columns(
        logp=rng.normal(size=count).astype(np.float32),
        hidden=rng.normal(size=(count, 3)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def new_tokenizer():
    return make_tokenizer


@pytest.fixture(scope="session")
def new_set():
    return make_set
