"""Every metric under one roof: pure functions on NumPy arrays or texts, in float64 on the host.

Per-example functions take flat per-target arrays and `offsets` (example i owns the slice
`offsets[i]:offsets[i + 1]`) or one value an example; aggregates return a float. `peer_compat`
reproduces a known fault of open-unlearning, for comparison with published numbers.
"""

from jaxforget.evals.likelihood import (
    closeness,
    closer_to_one,
    mean_nll,
    option_probability,
    paper_truth_ratio,
    perplexities,
    perplexity,
    probability,
    probability_mean,
    sequence_probability,
    true_better,
    truth_ratio,
)
from jaxforget.evals.memorisation import (
    exact_memorization,
    extraction_strength,
    knowledge_memorization,
    verbatim_memorization,
)
from jaxforget.evals.privacy import (
    balanced_accuracy,
    mia_gradient_norm,
    mia_loss,
    mia_min_k,
    mia_min_k_plus_plus,
    mia_reference,
    mia_zlib,
    privleak,
    roc_auc,
    tpr_at_fpr,
)
from jaxforget.evals.rouge import rouge
from jaxforget.evals.short_answers import exact_matches, token_f1
from jaxforget.evals.statistics import (
    UTILITY_PARTS,
    Interval,
    bootstrap,
    forget_quality,
    generalisation,
    harmonic_mean,
    relative_difference,
)
from jaxforget.evals.text import (
    distinct_n,
    generation_entropy,
    gibberish_heuristics,
    gibberish_rate,
    ngram_entropy,
    refusal_rate,
    refusals,
    repetition_rate,
    safe_answer_refusal_rate,
)

__all__ = [
    "UTILITY_PARTS",
    "Interval",
    "balanced_accuracy",
    "bootstrap",
    "closeness",
    "closer_to_one",
    "distinct_n",
    "exact_matches",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "generalisation",
    "generation_entropy",
    "gibberish_heuristics",
    "gibberish_rate",
    "harmonic_mean",
    "knowledge_memorization",
    "mean_nll",
    "mia_gradient_norm",
    "mia_loss",
    "mia_min_k",
    "mia_min_k_plus_plus",
    "mia_reference",
    "mia_zlib",
    "ngram_entropy",
    "option_probability",
    "paper_truth_ratio",
    "perplexities",
    "perplexity",
    "privleak",
    "probability",
    "probability_mean",
    "refusal_rate",
    "refusals",
    "relative_difference",
    "repetition_rate",
    "roc_auc",
    "rouge",
    "safe_answer_refusal_rate",
    "sequence_probability",
    "token_f1",
    "tpr_at_fpr",
    "true_better",
    "truth_ratio",
    "verbatim_memorization",
]
