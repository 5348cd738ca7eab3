"""Which modules may move: KappaTune by condition numbers, FPF by measured change.

A module is a leaf of the parameters, or one layer's part of a leaf that is stacked over layers.
Selections are dictionaries from paths to bool arrays: `[n]` for stacked leaves, `[]` for others.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.combiners.finishers import STILL
from jaxforget.combiners.terms import number, whole
from jaxforget.edits.checks import STACKED
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import matches, merge, path_string
from jaxforget.engine.types import Metrics
from jaxforget.strategies.guard import Guard, Tree, copied

type Selection = dict[str, Array]
"""Which modules are chosen, by path."""

LIKELY = r"(^|/)(embed|head)/|norm[^/]*/|/b$"
"""What FPF moves in a language model by default: embedding, output head, norms, biases."""

_stacked = matches(STACKED)


def condition_numbers(params: Tree, *, largest: int = 16384) -> dict[str, np.ndarray]:
    """Condition number sigma_max / sigma_min of every matrix, on the host in float64.

    Arrays of more than two axes are taken as matrices of their first axis by all others, after
    the layers' axis where they are stacked.

    Args:
      params: any pytree.
      largest: matrices with a longer side are left out (vocabularies).
    Returns:
      By path, float64 `[n]` for leaves stacked over layers, else `[]`; sigma_min is at least
      1e-8 sigma_max, so that singular matrices have 1e8. Norms and biases are left out.
    """
    found = {}
    for path, leaf in _flat(params).items():
        stacked = _stacked(path)
        shape = leaf.shape[1:] if stacked else leaf.shape
        if len(shape) < 2 or max(shape) > largest or 0 in shape:
            continue
        matrix = np.asarray(leaf, np.float64).reshape(-1, shape[0], int(np.prod(shape[1:])))
        # one at a time: the workspace of all layers together is as large as the model
        values = [np.linalg.svd(one, compute_uv=False) for one in matrix]
        kappas = np.array([s[0] / max(s[-1], 1e-8 * s[0]) if s[0] else np.inf for s in values])
        found[path] = kappas if stacked else kappas[0]
    return found


def lowest(
    numbers: Mapping[str, Any],
    *,
    count: int | None = None,
    share: float | None = None,
    threshold: float | None = None,
) -> dict[str, np.ndarray]:
    """The modules with the lowest numbers.

    Args:
      numbers: by path, float `[n]` or `[]`.
      count, share, threshold: exactly one of: how many modules, >= 1; which share of them, in
        (0, 1], rounded to the nearest number but at least one; all up to this number. Among equals
        the first by path and layer.
    Returns:
      By path, bool arrays of the same shapes.
    Raises:
      UserError: none or several of the three, or a value out of range.
    """
    given = [
        name
        for name, x in (("count", count), ("share", share), ("threshold", threshold))
        if x is not None
    ]
    if len(given) != 1:
        raise UserError(f"lowest: give one of count, share and threshold, got {given or 'none'}")
    paths = sorted(numbers)
    values = np.concatenate([np.ravel(numbers[path]) for path in paths]) if paths else np.zeros(0)
    if threshold is not None:
        chosen = values <= threshold
    else:
        if share is not None and number("lowest", "share", share, 0.0, 1.0) == 0:
            raise UserError("lowest: share must be above 0")
        most = count if share is None else max(1, round(share * len(values)))
        whole("lowest", "count", most, 1)
        chosen = np.zeros(len(values), bool)
        chosen[np.argsort(values, kind="stable")[:most]] = True
    ends = np.cumsum([np.size(numbers[path]) for path in paths])[:-1]
    parts = np.split(chosen, ends) if paths else []
    return {p: part.reshape(np.shape(numbers[p])) for p, part in zip(paths, parts, strict=True)}


class SelectionState(NamedTuple):
    """What a guard that only lets some modules move carries: `Selection`."""

    chosen: Selection


def only(choose: Callable[[Tree, Tree], Mapping[str, Any]] | None = None) -> Guard:
    """Only chosen modules move; the others stay bit-equal under momentum and weight decay.

    Args:
      choose: (params, frozen leaves or {}) -> selection, on the host, once before the first step;
        modules it does not name stay. None: all move until the state says otherwise.
    Returns:
      A `Guard`. State: `SelectionState`, of all modules until `prepare` or `prepared` has chosen.
      Metric `selected_share`, of the parameters.
    """

    def init(params: Tree) -> SelectionState:
        return SelectionState({path: _all(path, leaf) for path, leaf in _flat(params).items()})

    def prepare(state: SelectionState, params: Tree, frozen: Tree) -> SelectionState:
        assert choose is not None
        return SelectionState(_selection(choose(params, frozen), params))

    def update(delta: Tree, state: SelectionState, params: Tree) -> tuple[Tree, Metrics]:
        masked = masked_by(state.chosen, delta)
        sizes = {path: leaf.size for path, leaf in _flat(params).items()}
        moving = sum(
            (state.chosen[path].mean() * size for path, size in sizes.items()), jnp.zeros(())
        )
        return masked, {"selected_share": moving / max(sum(sizes.values()), 1)}

    return Guard(init=init, update=update, prepare=None if choose is None else prepare)


def masked_by(chosen: Mapping[str, Array], delta: Tree) -> Tree:
    """An update of which only the chosen modules are left; the others stay bit-equal."""

    def leaf(path: tuple[Any, ...], d: Array) -> Array:
        rows = chosen[path_string(path)]
        return jnp.where(rows.reshape(*rows.shape, *(1,) * (d.ndim - rows.ndim)), d, STILL)

    return jax.tree_util.tree_map_with_path(leaf, delta)


def kappatune(
    *,
    share: float | None = 0.2,
    count: int | None = None,
    threshold: float | None = None,
    largest: int = 16384,
) -> Guard:
    """KappaTune: only the matrices with the lowest condition numbers are trained.

    Such matrices are the least specialised. With adapters, those of the chosen matrices are
    trained. Everything else stays, norms and biases included.

    Args:
      share, count, threshold: see `lowest`; set share to None for another.
      largest: see `condition_numbers`.
    Returns:
      A `Guard` that measures the parameters before the first step (`prepare`).
    Raises:
      UserError: as `lowest`; in `prepare`, nothing that is trained is chosen.
    Source: Ludwig 2025 (arXiv 2506.16289); 0.2 is the default of its implementation in PEFT.
    """
    lowest({"check": 1.0}, count=count, share=share, threshold=threshold)

    def choose(params: Tree, frozen: Tree) -> dict[str, Any]:
        everything = merge(frozen, params) if frozen else params
        kappas = condition_numbers(_weights(everything), largest=largest)
        chosen = lowest(kappas, count=count, share=share, threshold=threshold)
        found = {}
        for path in _flat(params):
            parent, _, name = path.rpartition("/")
            weight = f"{parent}/w" if name in ("lora_a", "lora_b") else path
            if weight in chosen:
                found[path] = chosen[weight]
        if not any(np.any(rows) for rows in found.values()):
            raise UserError(
                "kappatune: none of the matrices with the lowest condition numbers is trained"
            )
        return found

    return only(choose)


def _weights(tree: Tree) -> Tree:
    """The leaves that are no adapters."""
    return {p: leaf for p, leaf in _flat(tree).items() if "lora_" not in p.rsplit("/", 1)[-1]}


class ChangeState(NamedTuple):
    """What `fpf` carries.

    Attributes:
      chosen: which modules move in a rehearsal phase.
      before: parameters at the end of the task before; `()` where modules are not chosen by change.
    """

    chosen: Selection
    before: Any


def fpf(modules: str = LIKELY, *, share: float | None = None) -> Guard:
    """Forgetting-prioritised finetuning: in a rehearsal phase only some modules move.

    Args:
      modules: regular expression on paths: which ones, until `share` has chosen.
      share: of the modules, in (0, 1]: those that changed most in a task per parameter, see
        `module_changes`, chosen when it ends (at the cost of a copy of the parameters); None: the
        expression stays in force.
    Returns:
      A `Guard`. State: `ChangeState`. It masks every update: training on the stream uses the
      same guard without `update`, as strategies with a rehearsal phase do.
    Raises:
      UserError: a share out of range; at `init`, no path matches.
    Source: Zhao et al. 2023 (arXiv 2304.04158), section 4. The paper's modules are those of
      convolutional networks; the expression for language models is ours.
    """
    if share is not None and number("fpf", "share", share, 0.0, 1.0) == 0:
        raise UserError("fpf: share must be above 0")
    named = matches(modules)

    def init(params: Tree) -> ChangeState:
        flat = _flat(params)
        if not any(map(named, flat)):
            raise UserError(f"fpf: {modules!r} matches no trained leaf, e.g. {next(iter(flat))!r}")
        chosen = {
            path: jnp.full(_all(path, leaf).shape, named(path)) for path, leaf in flat.items()
        }
        return ChangeState(chosen, () if share is None else copied(params))

    def update(delta: Tree, state: ChangeState, params: Tree) -> tuple[Tree, Metrics]:
        return masked_by(state.chosen, delta), {}

    def end_of_task(state: ChangeState, params: Tree, measured: None) -> ChangeState:
        assert share is not None
        changes = module_changes(state.before, params)
        return ChangeState(_highest(changes, share), copied(params))

    return Guard(init=init, update=update, end_of_task=None if share is None else end_of_task)


def module_changes(before: Tree, after: Tree) -> dict[str, Array]:
    """Mean absolute change of every module's parameters: (1 / |theta_l|) ||theta_l' - theta_l||_1.

    Args:
      before, after: trees of the same structure and shapes.
    Returns:
      By path, float32 `[n]` for leaves stacked over layers, else `[]`.
    Source: Zhao et al. 2023 (arXiv 2304.04158), section 3.
    """
    later = _flat(after)

    def change(path: str, old: Array) -> Array:
        gap = jnp.abs(later[path].astype(jnp.float32) - old.astype(jnp.float32))
        return gap.mean(axis=tuple(range(1, gap.ndim))) if _stacked(path) else gap.mean()

    return {path: change(path, leaf) for path, leaf in _flat(before).items()}


def _highest(changes: Mapping[str, Array], share: float) -> Selection:
    """`lowest` of the negated numbers as a traceable function."""
    paths = sorted(changes)
    values = jnp.concatenate([changes[path].ravel() for path in paths])
    most = max(1, round(share * values.size))
    rank = jnp.argsort(jnp.argsort(-values, stable=True), stable=True)
    chosen, found, start = rank < most, {}, 0
    for path in paths:
        size = changes[path].size
        found[path] = chosen[start : start + size].reshape(changes[path].shape)
        start += size
    return found


def _flat(tree: Tree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_string(path): leaf for path, leaf in leaves}


def _all(path: str, leaf: Array) -> Array:
    return jnp.ones(leaf.shape[:1] if _stacked(path) else (), bool)


def _selection(chosen: Mapping[str, Any], params: Tree) -> Selection:
    def rows(path: str, leaf: Array) -> Array:
        shape = _all(path, leaf).shape
        return jnp.broadcast_to(jnp.asarray(chosen.get(path, False), bool), shape)

    return {path: rows(path, leaf) for path, leaf in _flat(params).items()}
