"""Attacks on models that are said to have forgotten: each states its threat and its budget."""

from jaxforget.evals.attacks.attack import SETS, Attack, AuditData, Finding
from jaxforget.evals.attacks.catalogue import ATTACKS, chosen
from jaxforget.evals.attacks.weights import weight_changes

__all__ = ["ATTACKS", "SETS", "Attack", "AuditData", "Finding", "chosen", "weight_changes"]
