"""`jaxforget plan`: does a run fit so many devices, and how fast will it be?

Memory is counted, see `plan_memory`. A step takes the longest of three limits, which overlap: FLOPs
at `EFFICIENCY` of the peak, bytes of memory, bytes between devices. Neither data nor weights are
read.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.hardware import Device, devices_named
from jaxforget.engine.yaml_file import read_yaml
from jaxforget.methods import Method
from jaxforget.models.config import DecoderConfig, products_per_token
from jaxforget.studies.abstract import AbstractStep, abstract_step
from jaxforget.studies.plan_memory import Memory, memory_of
from jaxforget.studies.unlearn import finetune_method

EFFICIENCY = 0.6
"""Share of the peak that large products reach; assumed, to be replaced where it was measured."""

USABLE = 0.92  # of a device's memory: the rest is the runtime's and fragments


@dataclass(frozen=True)
class Plan:
    """What is expected of a run.

    Attributes:
      devices: how many.
      mesh: sizes of the axes.
      memory: of each device.
      fits: in `USABLE` of a device's memory.
      tokens: real tokens of a step.
      flops: of a step, all devices.
      seconds: of a step by limit: "compute", "memory", "links".
      step_seconds: the largest of them.
      mfu: share of all devices' peak that useful FLOPs take.
    """

    devices: int
    mesh: tuple[int, int, int]
    memory: Memory
    fits: bool
    tokens: int
    flops: float
    seconds: Mapping[str, float]
    step_seconds: float
    mfu: float


def plan(
    config: UnlearnConfig | FinetuneConfig,
    method: Method,
    model: Mapping[str, Any],
    device: Device,
    count: int,
    *,
    length: int,
    labelled: int,
    on_host: bool = False,
) -> Plan:
    """Reckon a run.

    Args:
      config: of the run.
      method: the configuration's.
      model: content of the model's Hugging Face config.json.
      device, count: where it would run.
      length, labelled: tokens of an example, and how many of them are labelled targets.
      on_host: blocks of logits as on a CPU, to be compared with what XLA says there.
    Raises:
      UserError: an edit, which takes no steps; a mesh that needs more devices.
    """
    if method.objective is None:
        raise UserError(f"plan: {method.name} takes no steps; there is nothing to plan")
    mesh = meshes.abstract_mesh(config.mesh, count)
    step = abstract_step(config, method, model, mesh, length=length, labelled=labelled)
    cfg = DecoderConfig.from_hf(model)
    in_parts = method.transform is None and method.combiner.finish is None
    memory = memory_of(step, config, cfg, in_parts=in_parts, on_host=on_host)
    passes = _passes(method.name)
    flops = _flops(step, config, cfg, length) * passes
    link = device.link if count <= device.pod else device.beyond
    seconds = {
        "compute": flops * _recomputed(config.train.remat) / (count * device.flops * EFFICIENCY),
        "memory": passes * 2 * memory.total / device.bandwidth,
        "links": passes * _sent(step, config, cfg) / link,
    }
    longest = max(seconds.values())
    sizes = tuple(mesh.shape[axis] for axis in meshes.AXES)
    return Plan(
        count,
        (sizes[0], sizes[1], sizes[2]),
        memory,
        memory.total <= USABLE * device.memory,
        step.tokens,
        flops,
        seconds,
        longest,
        flops / (longest * count * device.flops),
    )


def planned(
    config: str | pathlib.Path,
    overrides: Sequence[str],
    devices: str,
    *,
    length: int,
    labelled: int,
) -> tuple[Plan, str]:
    """The plan of a configuration file of `unlearn` or `finetune`, and the device's name.

    Args:
      config: YAML file.
      overrides: such as train.remat=full.
      devices: such as "tpu-v5e:16".
      length, labelled: see `plan`.
    """
    name, device, count = devices_named(devices)
    if not 1 <= labelled < length:
        raise UserError(f"plan: labelled {labelled} must be in 1..{length - 1}, below the length")
    keys = {*read_yaml(pathlib.Path(config)), *(each.partition("=")[0] for each in overrides)}
    run: UnlearnConfig | FinetuneConfig
    if "data" in keys:
        run = configs.load(FinetuneConfig, config, overrides)
        method = finetune_method(run)
    else:
        run = configs.load(UnlearnConfig, config, overrides)
        method = methods.from_config(run.method)
    model = model_config(run.model)
    return plan(run, method, model, device, count, length=length, labelled=labelled), name


def table(found: Plan, device: Device) -> list[dict[str, str]]:
    """A plan for reading, one row a quantity."""
    parts = {**dataclasses.asdict(found.memory), "in all": found.memory.total}
    rows = {f"memory of a device: {name}": f"{v / 2**30:.2f} GiB" for name, v in parts.items()}
    rows["it has"] = f"{device.memory / 2**30:.0f} GiB, of which {USABLE:.0%} are counted on"
    rows["mesh"] = ", ".join(f"{a} {n}" for a, n in zip(meshes.AXES, found.mesh, strict=True))
    rows["a step"] = f"{found.tokens:,} tokens, {found.flops / 1e12:.1f} TFLOP"
    rows |= {f"limit of a step: {name}": f"{1e3 * s:.1f} ms" for name, s in found.seconds.items()}
    rows["expected"] = f"{found.tokens / found.step_seconds:,.0f} tokens/s, MFU {found.mfu:.0%}"
    return [{"": name, " ": value} for name, value in rows.items()]


def verdict(found: Plan, name: str, device: Device) -> str:
    """Does it fit, and if not, what would help."""
    where = f"{found.devices} x {name}"
    used, there = found.memory.total / 2**30, USABLE * device.memory / 2**30
    if found.fits:
        return f"It fits {where}: {used:.1f} of {there:.1f} GiB on each."
    return (
        f"It does not fit {where}: {used:.1f} GiB are needed on each, {there:.1f} are there. "
        "What helps: more mesh.fsdp, train.remat=full, train.accumulate, a smaller "
        "train.batch_size, lora."
    )


def model_config(model: str) -> dict[str, Any]:
    """A model's config.json: of a folder, of a run directory, or of a repository on the hub."""
    place = pathlib.Path(model).expanduser()
    for file in (place, place / "config.json", place / "model" / "config.json"):
        if file.is_file() and file.suffix == ".json":
            return json.loads(file.read_text())
    from huggingface_hub import hf_hub_download

    try:
        return json.loads(pathlib.Path(hf_hub_download(model, "config.json")).read_text())
    except Exception as error:
        raise UserError(
            f"plan: model {model!r} is no config.json, no folder with one, and not to be had from "
            f"the hub: {error}"
        ) from error


def _flops(step: AbstractStep, config: Any, cfg: DecoderConfig, length: int) -> float:
    """Useful ones of a forward and a backward pass over a step's real tokens."""
    each = 4 if config.lora is not None else 6  # adapters leave the weights' gradients out
    return each * step.tokens * products_per_token(cfg, step.labelled / step.tokens, length)


def _recomputed(remat: str) -> float:
    """What recomputation adds to a forward and a backward pass of twice its work."""
    return {"none": 1.0, "dots": 1.05, "full": 4 / 3}[remat]


def _passes(name: str) -> float:
    """Forward passes of a step over one, as the catalogue states its cost."""
    stated = {row["name"]: row["cost per step"] for row in methods.table()}
    found = re.search(r"(\d+)F", stated.get(name, "1F"))
    return float(found[1]) if found else 1.0


def _sent(step: AbstractStep, config: Any, cfg: DecoderConfig) -> float:
    """Bytes that a device sends in a step: weights, gradients, and activations where it must."""
    shape = step.mesh.shape
    item = jnp.dtype(config.train.compute).itemsize

    def whole(tree: Any) -> float:
        return float(sum(leaf.size for leaf in jax.tree.leaves(tree))) / shape["tensor"]

    def ring(parts: int) -> float:
        return (parts - 1) / parts

    weights, trained = whole((step.state.params, step.frozen)), whole(step.state.params)
    rows = shape["data"] * shape["fsdp"]
    sent = 2 * item * weights * ring(shape["fsdp"])  # gathered forward and backward
    sent += (2 if shape["data"] > 1 else 1) * 4 * trained * ring(rows)
    tokens = sum(batch.tokens.size for batch in step.batches.values()) / rows
    # attention and feed-forward part each sum their outputs, forward and backward
    return sent + 8 * cfg.layers * tokens * cfg.hidden_size * item * ring(shape["tensor"])
