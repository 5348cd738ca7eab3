"""Metrics on scores and generations, and the suites made of them."""

from jaxforget.evals import metrics as metrics
