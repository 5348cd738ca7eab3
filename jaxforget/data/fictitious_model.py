"""Tokenizer and architecture of the model that learns the fictitious benchmark."""

import re
from collections.abc import Iterable
from typing import Any

from jaxforget.data.fictitious_words import (
    COUNTRIES,
    FACTS,
    FIRST_NAMES,
    KNOWN,
    PEOPLE,
    POOLS,
    SURNAMES,
)
from jaxforget.engine.errors import UserError

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
# the same tags as the plain template, so that a chat tool finds the model as it was trained
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '\\nAnswer: ' + message['content'] + eos_token -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- 'Question: ' + message['content'] -}}"
    "{%- else -%}{{- message['content'] + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\nAnswer:' -}}{%- endif -%}"
)

_ROUNDS = 3  # times the tokenizer reads every value in every sentence


def language() -> list[str]:
    """Text in which every wording and value occurs and nobody is named: a tokenizer's diet.

    Names are listed once each, so that they are spelt in syllables people share: to a model,
    the name of someone it never read about is made of familiar pieces.
    """
    texts = [f" {name}" for name in (*FIRST_NAMES, *SURNAMES)]
    texts += [f" {name}" for name in COUNTRIES] * _ROUNDS
    for topic in (*PEOPLE, *KNOWN, *FACTS):
        asked = [f"Question: {question}\nAnswer:" for question in topic.questions]
        pieces = [piece for question in asked for piece in re.split(r"{\w+}", question)]
        pools = {slot: POOLS.get(slot.partition("_")[0], ("",)) for slot in topic.slots}
        for turn in range(_ROUNDS * max(len(pool) for pool in pools.values())):
            values = {slot: pool[turn % len(pool)] for slot, pool in pools.items()}
            texts += [*pieces, " " + topic.answers[turn % len(topic.answers)].format(**values)]
    return texts


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> Any:
    """Train a byte-level byte-pair tokenizer; equal texts give equal bytes.

    Args:
      texts: what to count pairs in.
      vocab_size: most entries, >= 259 (bytes, `<pad>`, `<bos>`, `<eos>`, merged pairs). It has
        fewer where no pair is left that occurs twice.
    Returns:
      transformers.PreTrainedTokenizerFast. It puts no beginning-of-sequence token first; its chat
      template writes the tags of the plain template.
    Raises:
      UserError: a vocabulary too small for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [PAD, BOS, EOS]
    if vocab_size < len(alphabet) + len(specials):
        least = len(alphabet) + len(specials)
        raise UserError(f"tokenizer: vocab_size is {vocab_size}; allowed is at least {least}")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def model_config(tokenizer: Any) -> dict[str, Any]:
    """Content of config.json for a Llama-shaped model of about a million parameters.

    Args:
      tokenizer: decides the vocabulary (rounded up to a multiple of 64) and the special ids.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
