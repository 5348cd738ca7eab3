"""UniErase: a token that means refusing, and weights that make questions to forget begin with it.

The study prepares the data sets named here; see `jaxforget.edits.material.NewToken`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.edits.keys import key_moment, keys_and_outputs, share_hit, share_said
from jaxforget.edits.material import EARLIER, FORMS, PLAIN, QUESTIONS, Edit, Material
from jaxforget.edits.new_token import DOWN, EMBED, HEAD, Noise, Stage, train_row, with_row
from jaxforget.edits.null_space import PRECISE, closed_form_edit, null_space_projector, spread
from jaxforget.edits.steering import Search, wanted_outputs
from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, flatten, merge, unflatten
from jaxforget.engine.types import Metrics

OUT_NORM = "layers/mlp_out_norm/scale"
LAYERS = 5  # edited where nobody says which, as in the published 4 to 8 of 32


@dataclass(frozen=True)
class Lessons:
    """How the token is taught, see `jaxforget.edits.new_token`.

    Attributes:
      plain: (epochs, learning rate) on the plain form.
      forms: the same on the plain and the chat form.
      robust: the same on both forms for every edited layer, which is perturbed meanwhile.
      noise: see `Noise`.
    """

    plain: tuple[int, float] = (5, 1e-3)
    forms: tuple[int, float] = (3, 1e-4)
    robust: tuple[int, float] = (2, 1e-4)
    noise: Noise = "mean"


@dataclass(frozen=True)
class Rewriting:
    """Where and how hard the weights are edited.

    Attributes:
      layers: from 0, negative from the last; None: see `chosen_layers`.
      lam: see `closed_form_edit`.
      threshold: see `null_space_projector`; None: no projector.
      preserve: data sets whose keys are preserved.
    """

    layers: tuple[int, ...] | None = None
    lam: float = 10.0
    threshold: float | None = 2e-2
    preserve: tuple[str, ...] = ("retain",)


def chosen_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The layers to edit, from 0, in order.

    Args:
      layers: from 0, negative from the last; None: five from an eighth of the depth on (4 to 8 of
        32), fewer where the model ends before.
      count: of the model's layers, >= 1.
    Raises:
      UserError: none, one twice, or one that the model has not.
    """
    if layers is None:
        return tuple(range(count // 8, min(count // 8 + LAYERS, count)))
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"method.layers: {layer}: the model has layers 0 to {count - 1} (or -{count} to -1)"
            )
    found = sorted(layer % count for layer in layers)
    if not found or len(set(found)) < len(found):
        raise UserError(f"method.layers: must name each layer once, got {list(layers)}")
    return tuple(found)


def unierase_edit(lessons: Lessons, rewriting: Rewriting, search: Search) -> Edit:
    """Teach the token, find what would make the model say it, and write that into the weights.

    Keys are what `mlp/down` multiplies at the last token of a question's prompt; the published
    ones are at the last token of its subject, which plain data do not mark. The residual is spread
    over the layers; keys and what is still missing are measured anew before each.

    Args:
      lessons: see `Lessons`.
      rewriting: see `Rewriting`.
      search: see `Search`.
    Source: UniErase (arXiv 2505.15674) and its published code; Fang et al. 2024, AlphaEdit (arXiv
      2410.02355).
    """

    def edit(material: Material) -> tuple[Params, Metrics]:
        layers = chosen_layers(rewriting.layers, _checked(material))
        token = _token(material)
        taught, metrics = _teach(material, token, layers, lessons)
        projectors = _projectors(material, layers, rewriting)
        edited, more = _rewrite(material, taught, layers, projectors, rewriting, search)
        said = share_said(material, edited, QUESTIONS)
        return edited, {**metrics, **more, "questions_begun_by_token": said}

    return edit


def _checked(material: Material) -> int:
    """The number of layers of a model that can be edited.

    Raises:
      UserError: leaves that are missing or kept, or a norm behind the edited matrix.
    """
    mine, whole = flatten(material.params), flatten(merge(material.frozen, material.params))
    for path in (EMBED, DOWN):
        if path not in whole:
            raise UserError(f"unierase: the model has no {path}, which the method changes")
    for path in (EMBED, HEAD, DOWN):
        if path in whole and path not in mine:
            raise UserError(
                f"train.trainable: leaves out {path}, which unierase changes; leave it unset"
            )
    if OUT_NORM in whole:
        raise UserError(
            "unierase: this model has a norm behind mlp/down (Gemma 2 and 3), which rescales what "
            "an edit adds; a closed-form edit of it is not defined"
        )
    return whole[DOWN].shape[0]


def _token(material: Material) -> int:
    """The token's id: what every label of the questions is."""
    first = next(iter(material.passes(QUESTIONS, singly=True)))
    return int((first.targets * (first.mask != 0)).max())


def _teach(
    material: Material, token: int, layers: Sequence[int], lessons: Lessons
) -> tuple[Params, Metrics]:
    def stage(role: str, lesson: tuple[int, float], layer: int | None = None) -> Stage:
        epochs, rate = lesson
        return Stage(material.passes(role, epochs=epochs) if epochs else (), rate, layer)

    stages = [stage(PLAIN, lessons.plain), stage(FORMS, lessons.forms)]
    stages += [stage(FORMS, lessons.robust, layer) for layer in layers]
    row, losses = train_row(
        material.score,
        material.params,
        material.frozen,
        token,
        stages,
        key=material.key,
        noise=lessons.noise,
    )
    taught = with_row(material.params, token, row)
    metrics = {
        "token_loss_before": losses[0],
        "token_steps": jnp.int32(len(losses)),
        "refusal_accuracy": share_hit(material, taught, PLAIN),
    }
    return taught, metrics


def _projectors(
    material: Material, layers: Sequence[int], rewriting: Rewriting
) -> Mapping[int, Array | None]:
    """By layer, the projector onto what the preserved keys of the starting model hardly use."""
    if rewriting.threshold is None:
        return dict.fromkeys(layers)
    found = {}
    for layer in layers:
        batches = (batch for role in rewriting.preserve for batch in material.passes(role))
        moment = key_moment(material.score, material.params, material.frozen, batches, layer)
        found[layer] = null_space_projector(moment, threshold=rewriting.threshold)
    return found


def _rewrite(
    material: Material,
    taught: Params,
    layers: Sequence[int],
    projectors: Mapping[int, Array | None],
    rewriting: Rewriting,
    search: Search,
) -> tuple[Params, Metrics]:
    """Edit the layers in order, each taking its share of what is still missing."""
    score, last = material.score, layers[-1]
    find = jax.jit(
        lambda mine, rest, batch: wanted_outputs(
            score, merge(rest, mine), batch, layer=last, search=search
        ),
        compiler_options=compiler_options(),
    )
    wanted = [find(taught, material.frozen, b) for b in material.passes(QUESTIONS, singly=True)]
    output = jnp.concatenate([each.output for each in wanted])
    valid = _valid(material)
    metrics: dict[str, Array] = {
        "search_loss": _mean(jnp.concatenate([each.loss for each in wanted]), valid)
    }
    flat, shares = flatten(taught), []
    for index, layer in enumerate(layers):
        now = unflatten(flat)
        keys, reached = keys_and_outputs(material, now, QUESTIONS, layer, last)
        seen = None
        if EARLIER in material.roles:
            earlier, _ = keys_and_outputs(material, now, EARLIER, layer, last)
            seen = jnp.matmul(earlier.T, earlier, precision=PRECISE)
        missing = (output - reached) * valid[:, None]
        projector = projectors[layer]
        weight = closed_form_edit(
            flat[DOWN][layer],
            keys,
            spread(missing, len(layers) - index),
            projector,
            seen,
            lam=rewriting.lam,
        )
        flat = {**flat, DOWN: flat[DOWN].at[layer].set(weight)}
        if projector is not None:
            free = jnp.matmul(keys, projector, precision=PRECISE)
            shares.append(jnp.square(free).sum() / jnp.square(keys).sum())
    if shares:
        metrics["free_share_of_keys"] = jnp.stack(shares).mean()
    return unflatten(flat), metrics


def _valid(material: Material) -> Array:
    """1 for rows of `QUESTIONS` that hold one, float32 `[m]`."""
    batches = material.passes(QUESTIONS, singly=True)
    return jnp.concatenate([(batch.example[:, 0] >= 0) for batch in batches]).astype(jnp.float32)


def _mean(values: Array, valid: Array) -> Array:
    return jnp.where(valid > 0, values, 0.0).sum() / valid.sum()
