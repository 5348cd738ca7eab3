"""Activation steering: does a push along one direction bring the answers back?"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le, Len

from jaxforget.data.alternates import refusals
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.evals.attacks.attack import AuditData, Finding, of_each, partners
from jaxforget.evals.attacks.known import Known, answers, known, overlap, shown, tokens_of
from jaxforget.evals.attacks.layers import by_example, one_label
from jaxforget.models.lens import layer_states


@dataclass(frozen=True)
class Steering:
    """Settings of the steering attack.

    Attributes:
      direction: "retain": mean state behind the questions of the retain set, of as many as there
        are to forget, less that behind the forget set's; "answer": mean state over those retain
        records' answers less that over refusals of the same questions.
      depths: where it is added: behind this share of the layers, in (0, 1].
      strengths: multiples of the difference that are tried, besides none at all.
    """

    direction: Literal["retain", "answer"] = "retain"
    depths: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], Len(1)] = (0.25, 0.5, 0.75)
    strengths: Annotated[tuple[float, ...], Len(1)] = (0.5, 1.0, 2.0, 4.0)


def steer(lm: Any, data: AuditData, settings: Steering) -> Finding:
    """The forget probability of the model steered at the best layer and strength.

    One layer and one strength are chosen for all records, by the mean probability on the forget
    records themselves: the worst case.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `Steering`.
    Returns:
      Curves `prob_layer_N` over strengths (0 is the model as it is); scores `prob_before`,
      `layer`, `strength`, and `rouge` of the greedy answers at the chosen setting.
    Source: difference of means as in Rimsky et al. 2023 (arXiv 2312.06681), added to every
      position; pairs of means, layers and strengths are chosen here.
    """
    directions = _directions(lm, data, settings.direction)
    tokenised = tokens_of(lm, data.forget, data)
    before = known(lm, lm.params, tokenised, data)
    count = len(directions)
    chosen = sorted({max(0, round(depth * count) - 1) for depth in settings.depths})
    found: dict[tuple[int, float], Known] = {(chosen[0], 0.0): before}
    curves: dict[str, list[tuple[float, float]]] = {}
    for layer in chosen:
        points = [(0.0, float(before.prob.mean()))]
        for strength in settings.strengths:
            pushed = steered(lm.params, layer, strength * directions[layer])
            found[layer, strength] = known(lm, pushed, tokenised, data)
            points.append((strength, float(found[layer, strength].prob.mean())))
        curves[f"prob_layer_{layer}"] = sorted(points)
    best = max(found, key=lambda setting: float(found[setting].prob.mean()))
    layer, strength = best
    params = steered(lm.params, layer, strength * directions[layer])
    texts = answers(lm, params, data.forget, data)
    scores = {
        "prob_before": float(before.prob.mean()),
        "layer": float(layer),
        "strength": strength,
        "rouge": float(overlap(data.forget, texts).mean()),
    }
    rows = shown(data.forget, data.forget, texts)
    return of_each(found[best].prob, scores=scores, curves=curves, examples=rows)


def steered(params: Params, layer: int, by: np.ndarray) -> Params:
    """Parameters of the same model with a vector added to what one layer gives, at every position.

    It is a bias of the layer's last operation, made where the architecture has none.

    Args:
      params: of the whole model; only the bias is new in the result.
      layer: counted from 0.
      by: `[D]`.
    """
    flat = flatten(params)
    last = "mlp_out_norm/bias" if "layers/mlp_out_norm/scale" in flat else "mlp/down/b"
    path, count = f"layers/{last}", flat["layers/attn_norm/scale"].shape[0]
    bias = flat.get(path, jnp.zeros((count, len(by)), jnp.float32)).astype(jnp.float32)
    flat[path] = bias.at[layer].add(jnp.asarray(by, jnp.float32))
    return unflatten(flat)


def _directions(lm: Any, data: AuditData, direction: str) -> np.ndarray:
    """Difference of means in every layer, float32 `[layers, D]`."""
    retain = partners(data)
    if direction == "retain":
        sets = [one_label(tokens_of(lm, each, data), 0) for each in (retain, data.forget)]
    else:
        sets = [tokens_of(lm, each, data) for each in (retain, refusals(retain, data.seed))]
    towards, away = (by_example(layer_states, lm, lm.params, each, data) for each in sets)
    return towards.mean(axis=0) - away.mean(axis=0)


def budget(settings: Steering) -> str:
    """What it costs the attacker."""
    tried = len(settings.depths) * len(settings.strengths)
    return f"two means of hidden states, and {tried} places and strengths tried"
