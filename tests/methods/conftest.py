"""A world small enough to run every method in a second or two."""

import json

import pytest

from jaxforget.data import fictitious


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and a random model of two layers, as a user has them on disk."""
    from transformers import AutoTokenizer

    from jaxforget.models.language_model import from_scratch

    folder = tmp_path_factory.mktemp("world")
    fictitious.write(folder, forget_people=1, retain_people=12, known_people=4, facts=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
    from_scratch(config, tokenizer, 0).save_pretrained(folder / "model")
    return folder
