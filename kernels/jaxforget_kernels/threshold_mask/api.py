"""The public function: checks, then the form that runs."""

from collections.abc import Sequence

from jax import Array

from jaxforget_kernels.threshold_mask import xla


def threshold_mask(arrays: Sequence[Array], count: int) -> list[Array]:
    """Mark the entries of largest magnitude over several arrays together.

    Args:
      arrays: float, of any shapes, dtypes and shardings; below 2^31 entries each.
      count: how many entries to mark, static, 0 to all of them.
    Returns:
      Arrays of bool like `arrays`. All entries that tie with the last one are marked, so that there
      may be more than `count`; NaN counts as larger than infinity.
    Raises:
      ValueError: no such count, or an array of too many entries.
    """
    total = sum(array.size for array in arrays)
    if not 0 <= count <= total:
        raise ValueError(f"count must be in 0..{total}, the entries there are; got {count}")
    for index, array in enumerate(arrays):
        if array.size >= 2**31:
            raise ValueError(f"array {index} has {array.size} entries, 2^31 or more")
    return xla.threshold_mask(arrays, count)
