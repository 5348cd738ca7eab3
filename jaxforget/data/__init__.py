"""Records, tokens, packed batches. Knows nothing of models."""

from jaxforget.data.batches import PairedBatches, prefetch
from jaxforget.data.pack import choose_length, pack, pack_all, rows_needed
from jaxforget.data.records import Record, overlap, refuse_overlap, variants
from jaxforget.data.sets import TokenisedSet, check_vocabulary
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise, tokenise_cached

__all__ = [
    "DataSource",
    "PairedBatches",
    "Record",
    "Template",
    "TokenisedSet",
    "check_vocabulary",
    "choose_length",
    "load_records",
    "overlap",
    "pack",
    "pack_all",
    "prefetch",
    "prompt_ids",
    "refuse_overlap",
    "rows_needed",
    "tokenise",
    "tokenise_cached",
    "variants",
]
