"""A tokenised data set: flat arrays, one example after another."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jaxforget.engine.errors import UserError


@dataclass(frozen=True)
class TokenisedSet:
    """Examples as tokens and shifted targets; n examples, N tokens, M labelled targets.

    Example i is the slice `offsets[i]:offsets[i + 1]` of the flat arrays.

    Attributes:
      tokens: int32 `[N]`, input ids.
      targets: int32 `[N]`, the id that follows each input in its example.
      mask: bool `[N]`, True where the target is to be learned or scored ("labelled").
      offsets: int64 `[n + 1]`.
      rows: int64 `[n]`, row of the source file each example came from.
      fingerprint: hexadecimal; equal where tokens, labels, template and tokenizer are.
      columns: arrays `[M, ...]` with one entry a labelled target, in flat order (for example
        reference log-probabilities); they do not enter the fingerprint.
      truncated: examples that were cut to the length limit.
      entities: whom each example is about, see `jaxforget.data.pairing`; None: nobody has said.
        They do not enter the fingerprint.
    """

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    fingerprint: str
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    truncated: int = 0
    entities: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 `[n]`."""
        return np.diff(self.offsets)

    @functools.cached_property
    def label_offsets(self) -> np.ndarray:
        """Where each example's entries begin in `columns`, int64 `[n + 1]`."""
        labelled = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.mask, dtype=np.int64)])
        return labelled[self.offsets]

    @functools.cached_property
    def label_counts(self) -> np.ndarray:
        """Labelled targets of each example, int64 `[n]`."""
        return np.diff(self.label_offsets)

    def with_columns(self, **columns: np.ndarray) -> "TokenisedSet":
        """This set with further (or replaced) columns, each `[M, ...]`."""
        labelled = int(self.label_offsets[-1])
        for name, column in columns.items():
            if len(column) != labelled:
                raise ValueError(f"column {name!r} has {len(column)} entries, not {labelled}")
        return replace(self, columns={**self.columns, **columns})


def fingerprint_of(arrays: Mapping[str, np.ndarray], *identities: str) -> str:
    """SHA-256 over named arrays (name, dtype, shape, bytes) and further strings."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for identity in identities:
        digest.update(f"\n{len(identity)} {identity}".encode())
    return digest.hexdigest()


def example_ids(tokenised: TokenisedSet) -> np.ndarray:
    """A number for each example that is equal where its tokens and labels are; int64 `[n]`, >= 0.

    It is the same in every set and run that uses the same tokenizer, template and length.
    """
    found = np.empty(len(tokenised), np.int64)
    for index in range(len(tokenised)):
        part = slice(*tokenised.offsets[index : index + 2])
        digest = hashlib.blake2b(digest_size=8)
        for array in (tokenised.tokens, tokenised.targets, tokenised.mask):
            digest.update(np.ascontiguousarray(array[part]).tobytes())
        found[index] = int.from_bytes(digest.digest()) >> 1
    return found


def check_vocabulary(tokenised: TokenisedSet, vocab_size: int) -> None:
    """Raise UserError where a token has no row in a model's embedding of `vocab_size` rows."""
    highest = max(int(tokenised.tokens.max(initial=0)), int(tokenised.targets.max(initial=0)))
    if highest < vocab_size:
        return
    at = int(np.argmax(np.maximum(tokenised.tokens, tokenised.targets) >= vocab_size))
    row = int(tokenised.rows[np.searchsorted(tokenised.offsets, at, side="right") - 1])
    raise UserError(
        f"the tokenizer gives id {highest} but the model's vocabulary has {vocab_size} entries "
        f"(first at row {row}); tokenizer and model do not belong together"
    )
