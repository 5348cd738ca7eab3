"""How the gradients of several terms become one direction. Nothing here knows a model."""

from jaxforget.combiners.sums import check_terms, weighted_sum

__all__ = ["check_terms", "weighted_sum"]
