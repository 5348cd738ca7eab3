"""Devices as a mesh of three named axes, and the table that says which leaf lies where.

`data` replicates parameters and divides rows; `fsdp` divides both; `tensor` divides the inner
dimensions of the matrices. Nothing else in jaxforget names a device.
"""

import contextlib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import path_string

log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")

type Rules = Sequence[tuple[str, P]]

_STORED = re.compile(r"/(codes|row_max)$")

# First match on the path wins; an axis that does not divide its dimension is dropped.
DECODER_RULES: Rules = (
    (r"(^|/)(embed|head)/w$", P("tensor", "fsdp")),
    (r"(^|/)head/b$", P("tensor")),
    (r"(^|/)layers/(attn/[qkv]|mlp/(gate|up))/w$", P(None, "fsdp", "tensor")),
    (r"(^|/)layers/(attn/o|mlp/down)/w$", P(None, "tensor", "fsdp")),
    (r"(^|/)layers/(attn/[qkv]|mlp/(gate|up))/b$", P(None, "tensor")),
    (r"(^|/)layers/(attn/[qkv]|mlp/(gate|up))/lora_a$", P(None, "fsdp", None)),
    (r"(^|/)layers/(attn/[qkv]|mlp/(gate|up))/lora_b$", P(None, None, "tensor")),
    (r"(^|/)layers/(attn/o|mlp/down)/lora_a$", P(None, "tensor", None)),
    (r"(^|/)layers/(attn/o|mlp/down)/lora_b$", P(None, None, "fsdp")),
)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes.

    Attributes:
      data: replicas that divide the rows; -1 takes all devices the other axes leave, or none
        where another axis is -1 and takes them.
      fsdp: shards that divide rows, parameters and optimizer state; -1 as above.
      tensor: shards that divide the inner dimensions of every matrix; -1 as above.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh over `devices` (default: all of every process).

    Raises:
      UserError: the axes need more devices than there are, or do not divide them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(config, len(devices))
    needed = math.prod(sizes)
    if jax.process_count() > 1 and needed != len(devices):
        raise UserError(f"mesh: {config} uses {needed} of {len(devices)} devices; use them all")
    if needed != len(devices):
        log.warning("mesh: using %d of %d devices", needed, len(devices))
    grid = np.asarray(devices[:needed]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Sizes of `AXES` over so many devices, none of them -1.

    Raises:
      UserError: the axes need more devices than there are, or do not divide them.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    if config.data == -1 and -1 in sizes[1:]:
        sizes[0] = 1
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"mesh: sizes must be >= 1, at most one of them -1; got {config}")
    rest = math.prod(size for size in sizes if size != -1)
    if rest > devices:
        raise UserError(f"mesh: {config} needs {rest} devices, this run has {devices}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices // rest
    return sizes[0], sizes[1], sizes[2]


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh that a run would have over so many devices, none of which need be here."""
    sizes = axis_sizes(config, devices)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts the rows of a batch are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules = DECODER_RULES) -> Any:
    """A `NamedSharding` for every leaf of any pytree, found by the leaf's path.

    Optimizer moments inherit their parameter's rule because their paths end the same way, or would
    but for the names of what they are stored as (`moments.RowCodes`).
    Leaves that no rule names are divided along their largest dimension over `fsdp` when they are
    matrices of at least 2^16 elements, and replicated otherwise.
    """
    dropped: set[str] = set()

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name, shape = _STORED.sub("", path_string(path)), tuple(leaf.shape)
        return NamedSharding(
            mesh, _fit(_spec(name, shape, mesh, rules), shape, mesh, name, dropped)
        )

    placed = jax.tree_util.tree_map_with_path(place, tree)
    if dropped:
        log.info("kept whole, their sizes do not divide: %s", ", ".join(sorted(dropped)))
    return placed


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules) -> P:
    for pattern, spec in rules:
        if re.search(pattern, name) and len(spec) == len(shape):
            return spec
    if len(shape) < 2 or math.prod(shape) < 2**16:
        return P()
    axis = max(range(len(shape)), key=lambda i: (shape[i] % mesh.shape["fsdp"] == 0, shape[i]))
    return P(*(("fsdp" if i == axis else None) for i in range(len(shape))))


def _fit(
    spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, name: str, dropped: set[str]
) -> P:
    axes = []
    for size, axis in zip(shape, spec, strict=False):
        divides = axis is None or size % mesh.shape[axis] == 0
        if not divides and size > 1:
            dropped.add(name)
        axes.append(axis if divides else None)
    return P(*axes)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, P())


def shape_at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """A leaf without its entries, and where it lies."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def by_rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Leading axis divided over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put(tree: Any, placed: Any, *, donate: bool = False) -> Any:
    """Host arrays (whole on every process) -> device arrays with the given shardings.

    Args:
      tree: pytree of numpy or jax arrays, the same on every process.
      placed: one sharding, or a pytree of shardings of the same structure.
      donate: jax arrays of the tree are given up, so that nothing is held twice.
    """
    if isinstance(placed, NamedSharding):
        placed = jax.tree.map(lambda _: placed, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, placed, donate=donate)

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, placed)


def put_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Host batch -> devices: leaves with a leading row axis divided, scalars replicated.

    Without a mesh everything goes to the default device.
    """
    if mesh is None:
        return jax.device_put(batch)
    whole, rows = replicated(mesh), by_rows(mesh)
    placed = jax.tree.map(lambda leaf: rows if np.ndim(leaf) else whole, batch)
    return put(batch, placed)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the leaves of a pytree are placed on; None: each on a single device."""
    for leaf in jax.tree.leaves(tree):
        placed = getattr(leaf, "sharding", None)
        if isinstance(placed, NamedSharding) and placed.mesh.size > 1:
            return placed.mesh if isinstance(placed.mesh, Mesh) else None
    return None


def whole_rows(rows: int, mesh: Mesh | None) -> int:
    """At least so many rows, which the mesh divides evenly."""
    parts = 1 if mesh is None else row_shards(mesh)
    return -(-rows // parts) * parts


def in_use(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """`jax.set_mesh`, or nothing without a mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def whole(tree: Any, mesh: Mesh | None) -> Any:
    """The same values where every process can read all of them."""
    if mesh is None or jax.process_count() == 1:
        return tree
    return jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))(tree)
