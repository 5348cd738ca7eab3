"""`jaxforget continual`: a stream of tasks, what is learned of each and what is kept."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget import config as configs
from jaxforget import strategies
from jaxforget.config.stream import ContinualConfig, ScratchConfig
from jaxforget.data.fictitious import train_tokenizer
from jaxforget.data.pack import pack_all
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import load_records
from jaxforget.data.stream import chosen, joined
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.evals import forgetting
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel, from_scratch, load
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    longest,
    opened,
    peak_bytes,
    tokens_of,
)
from jaxforget.studies.recovery import recovered_nll
from jaxforget.studies.stream import Measure, Stream, Streamed, Task, read_looks, train_stream

PER_RUN = (
    "strategy",
    "memory",
    "order",
    "optimizer",
    "optimizer_reset",
    "schedule",
    "train",
    "lora",
    "model",
    "scratch",
    "measure",
)
"""Keys that `runs` may set."""


def continual(
    config: ContinualConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train on a stream of tasks, once or once for every entry of `runs`.

    Args:
      config: a `ContinualConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      `Result` of the only run; of several the metrics by run, without parameters.
    Raises:
      UserError: anything the user can mend; nothing already written is harmed.
    """
    config = configs.resolve(ContinualConfig, config)
    if not config.runs:
        return _one(config, events)
    members = {label: _member(config, label) for label in config.runs}
    if config.reference is not None and config.reference not in members:
        hint = did_you_mean(config.reference, members)
        raise UserError(f"reference: there is no run {config.reference!r}. {hint}")
    with opened(config) as run:
        found = {}
        for label, member in members.items():
            told = dataclasses.replace(
                events, stage=lambda text, label=label: events.stage(f"{label}: {text}")
            )
            found[label] = dict(_one(member, told).metrics)
        if config.reference is not None:
            _compare(found, config.reference)
        results = {
            "method": "continual",
            "metrics": {
                f"{label}/{k}": v
                for label, row in found.items()
                for k, v in row.items()
                if not isinstance(v, (list, dict))
            },
            "runs": found,
            **environment(),
            "config_sha256": config_digest(config),
        }
        write_results(run, results)
        _page(run, list(members))
        return Result(None, found, run)


def _member(config: ContinualConfig, label: str) -> ContinualConfig:
    """The configuration of one of several runs."""
    tree, given = configs.as_tree(config), config.runs[label]
    if not label or "/" in label or label in ("tasks", "cache"):
        raise UserError(f"runs: {label!r} cannot be the name of a folder")
    for key in given:
        if key.split(".")[0] not in PER_RUN:
            raise UserError(f"runs.{label}.{key}: {did_you_mean(key, PER_RUN)}")
    tree |= {"runs": {}, "reference": None, "run_dir": f"{config.run_dir}/{label}"}
    return configs.build(ContinualConfig, configs.overridden(tree, given), f"runs.{label}")


def _one(config: ContinualConfig, events: Events) -> Result:
    strategy = strategies.from_config(config.strategy)
    with opened(config) as run:
        finished = finished_run(run, config)
        if finished is not None:
            return finished
        watch = Stopwatch()
        events.stage("reading data")
        records = [(load_records(task.data), load_records(task.evaluate)) for task in config.stream]
        lm = starting_model(config, [record for train, _ in records for record in train])
        train = [tokens_of(part, lm, config, run) for part, _ in records]
        held = [tokens_of(part, lm, config, run) for _, part in records]
        held = [_limited(each, config.measure.limit) for each in held]
        order = order_of(config, train, lm.config.vocab_size)
        stream = _stream(config, strategy, lm, train, held, order, run)
        events.stage(f"training ({strategy.name})")
        streamed = train_stream(stream, watch.seconds, events.progress)
        events.stage("exporting the model")
        after = dataclasses.replace(lm, params=streamed.params)
        on_first(lambda: after.save_pretrained(run.model, dtype=config.export_dtype))
        recovered = None
        if config.measure.recovery is not None and len(stream.tasks) > 1:
            events.stage("training again on earlier tasks")
            sets = [(train[place], held[place]) for place in order]
            recovered = recovered_nll(after, sets[:-1], config, stream.mesh)
        results = _results(config, stream, streamed, order, recovered)
        write_results(run, results)
        _page(run, [])
        return Result(streamed.params, results["metrics"], run)


def finished_run(run: RunDirectory, config: Any) -> Result | None:
    """What a run with this very configuration has left; None where there is more to do."""
    if not run.results.exists() or not run.model.exists():
        return None
    results = json.loads(run.results.read_text())
    if results.get("config_sha256") != config_digest(config):
        return None
    return Result(load(run.model).params, results["metrics"], run)


def starting_model(config: Any, records: Sequence[Record]) -> LanguageModel:
    """The configured model, or one from scratch whose tokenizer is made from these records.

    Raises:
      UserError: not exactly one of `model` and `scratch`; a model without a tokenizer.
    """
    compute = Compute(dtype=config.train.compute, remat=config.train.remat)
    if (config.model is None) == (config.scratch is None):
        raise UserError("set one of model and scratch, and not both")
    if config.model is not None:
        lm = load(config.model, dtype=config.dtype, compute=compute)
        if lm.tokenizer is None:
            raise UserError(f"model: {config.model} has no tokenizer; add its tokenizer.json")
    else:
        assert config.scratch is not None
        lm = scratch(config.scratch, records, config.train.seed, compute, config.max_length)
    longest(config, lm)
    return lm


def scratch(
    config: ScratchConfig,
    records: Sequence[Record],
    seed: int,
    compute: Compute,
    length: int | None = None,
) -> LanguageModel:
    """A model that knows nothing but how these records are spelt."""
    if config.width % config.heads:
        raise UserError(f"scratch: {config.heads} heads do not divide a width of {config.width}")
    texts = [f"{record.prompt}{record.answer}" for record in records]
    tokenizer = train_tokenizer(texts, config.vocabulary)
    return from_scratch(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": config.width,
            "intermediate_size": config.inner,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.heads,
            "head_dim": config.width // config.heads,
            "hidden_act": "silu",
            "max_position_embeddings": max(512, length or 0),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "dtype": "float32",
        },
        tokenizer,
        seed,
        compute,
    )


def _limited(tokenised: TokenisedSet, limit: int | None) -> TokenisedSet:
    if limit is None or limit >= len(tokenised):
        return tokenised
    return chosen(tokenised, np.arange(limit))


def order_of(config: ContinualConfig, sets: Sequence[TokenisedSet], vocabulary: int) -> list[int]:
    """Tasks in the order in which they are trained, as places in the configuration."""
    places = list(range(len(sets)))
    if config.order in ("given", "reversed"):
        return places if config.order == "given" else places[::-1]
    if config.order == "random":
        return np.random.default_rng(config.train.seed).permutation(len(sets)).tolist()
    apart, sign = distances(sets, vocabulary), 1 if config.order == "similar" else -1
    found, left = [0], set(places[1:])
    while left:
        last = found[-1]
        found.append(min(left, key=lambda place: (sign * apart[last, place], place)))
        left.remove(found[-1])
    return found


def distances(sets: Sequence[TokenisedSet], vocabulary: int) -> np.ndarray:
    """Jensen-Shannon divergence of the tasks' distributions of tokens, `[N, N]`, nats, 0..log 2."""
    counts = [np.bincount(each.targets[each.mask], minlength=vocabulary) for each in sets]
    p = np.stack([count / count.sum() for count in counts])

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(-1)

    mixed = entropy(0.5 * (p[:, None] + p[None]))
    return np.maximum(mixed - 0.5 * (entropy(p)[:, None] + entropy(p)[None]), 0)


def _stream(
    config: ContinualConfig,
    strategy: strategies.Strategy,
    lm: LanguageModel,
    train: Sequence[TokenisedSet],
    held: Sequence[TokenisedSet],
    order: Sequence[int],
    run: RunDirectory,
) -> Stream:
    ordered = [train[place] for place in order]
    whole, bounds = joined(ordered), np.cumsum([0, *map(len, ordered)])
    names = [config.stream[place].name for place in order]
    ids = [np.arange(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    steps = [_steps(config, place, len(train[place])) for place in order]
    if strategy.data == "joint":
        tasks = [Task("all", np.arange(len(whole)), sum(steps))]
    elif strategy.data == "cumulative":
        tasks = [Task(n, np.arange(bounds[k + 1]), steps[k]) for k, n in enumerate(names)]
    else:
        tasks = [Task(n, i, s) for n, i, s in zip(names, ids, steps, strict=True)]
    kept = [held[place] for place in order]
    mesh = meshes.make_mesh(config.mesh)
    rows = meshes.whole_rows(config.measure.batch_size, mesh)
    return Stream(
        config,
        lm,
        whole,
        tasks,
        strategy,
        run,
        mesh,
        _row_measure(lm, kept, rows, mesh),
        _probe_measure(lm, kept, config.measure.probe, mesh),
    )


def _steps(config: ContinualConfig, place: int, examples: int) -> int:
    settings = config.train
    own = config.stream[place].steps or settings.steps
    return own or max(1, math.ceil(settings.epochs * examples / settings.batch_size))


def _row_measure(lm: LanguageModel, held: Sequence[TokenisedSet], rows: int, mesh: Any) -> Measure:
    """Mean NLL of every task's held-out set, in one pass over all of them."""
    whole, bounds = joined(held), np.cumsum([0, *map(len, held)])

    def measure(params: Params) -> Any:
        table = score_set(
            lm.score, params, whole, rows=rows, put=lambda batch: meshes.put_rows(batch, mesh)
        )
        cuts = table.offsets[bounds]
        parts = [table.logp[a:b].astype(np.float64) for a, b in zip(cuts, cuts[1:], strict=False)]
        return {
            "nll": [float(-part.mean()) for part in parts],
            "tokens": [len(part) for part in parts],
        }

    return measure


def _probe_measure(
    lm: LanguageModel, held: Sequence[TokenisedSet], count: int, mesh: Any
) -> Measure:
    """Mean NLL of every task's probe, one compiled program over all of them."""
    probes = [_limited(each, count) for each in held]
    whole = joined(probes)
    owner = np.repeat(np.arange(len(probes)), [len(each) for each in probes])
    length = max(64, -(-int(whole.lengths.max()) // 64) * 64)
    rows = meshes.whole_rows(-(-int(whole.lengths.sum()) // length), mesh)
    batches = pack_all(whole, rows=rows, length=length)
    placed: list[Any] = []

    def means(params: Params, batches: Any, owner: Any) -> Any:
        sums, tokens = jnp.zeros(len(probes)), jnp.zeros(len(probes))
        for batch in batches:
            scores = lm.score(params, batch)
            example = jnp.take_along_axis(
                batch.example, jnp.maximum(scores.segments - 1, 0), axis=1
            )
            task = owner[jnp.maximum(example, 0)]
            sums = sums.at[task.ravel()].add((scores.logp * scores.mask).ravel())
            tokens = tokens.at[task.ravel()].add(scores.mask.ravel())
        return -sums / jnp.maximum(tokens, 1)

    compiled = jax.jit(means, compiler_options=compiler_options())

    def measure(params: Params) -> Any:
        if not placed:
            placed.extend(meshes.put_rows(batch, mesh) for batch in batches)
        found = meshes.whole(compiled(params, placed, jnp.asarray(owner)), mesh)
        return np.asarray(found, np.float64).tolist()

    return measure


def _results(
    config: ContinualConfig,
    stream: Stream,
    streamed: Streamed,
    order: Sequence[int],
    recovered: Sequence[float] | None,
) -> dict[str, Any]:
    rows = _rows(stream)
    nll = np.asarray([row["nll"] for row in rows])
    names = [config.stream[place].name for place in order]
    matrix = {
        "tasks": names,
        "nll": nll.tolist(),
        "tokens": rows[0]["tokens"],
        "trained": ["start", *(task.name for task in stream.tasks)],
    }
    looks = read_looks(stream.run)
    metrics = _metrics(nll) | _stability(looks, stream, config)
    if recovered is not None:
        metrics |= _regained(nll, recovered)
    return {
        "method": stream.strategy.name,
        "model": config.model or "scratch",
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in metrics.items()
        },
        "matrix": matrix,
        "looks": looks,
        "ends": stream.ends,
        "recovered_nll": recovered,
        "throughput": {
            "tokens_per_second": streamed.tokens_per_second,
            "step_ms": streamed.step_ms,
            "steps": streamed.steps,
            "step_bytes": streamed.step_bytes,
            "peak_bytes": peak_bytes(),
        },
        "seconds": streamed.seconds,
        **environment(),
        "config_sha256": config_digest(config),
    }


def _rows(stream: Stream) -> list[dict[str, Any]]:
    files = [stream.run.path / "tasks" / "start.json"]
    files += [stream.folder(task) / "row.json" for task in range(len(stream.tasks))]
    if stream.rehearsal_steps:
        files[-1] = stream.run.path / "tasks" / "final.json"
    return [json.loads(file.read_text()) for file in files]


def _metrics(nll: np.ndarray) -> dict[str, float]:
    """Of scores that are minus the mean NLL, equal weight for every task."""
    scores = -nll
    found = {
        "mean_nll": float(nll[-1].mean()),
        "perplexity": float(np.exp(nll[-1]).mean()),
        "start_nll": float(nll[0].mean()),
    }
    if len(nll) == nll.shape[1] + 1 and nll.shape[1] > 1:
        found |= {
            "backward_transfer": forgetting.backward_transfer(scores),
            "forward_transfer_from_start": forgetting.forward_transfer(scores),
            "forgetting": forgetting.forgetting(scores),
            "learned_nll": float(np.mean([nll[i + 1, i] for i in range(nll.shape[1])])),
        }
    return found


def _regained(nll: np.ndarray, recovered: Sequence[float]) -> dict[str, float]:
    """Backward transfer as it would be after the few steps of recovery."""
    own = [nll[i + 1, i] for i in range(len(recovered))]
    change = float(np.mean(np.asarray(own) - np.asarray(recovered)))
    return {
        "recovered_nll": float(np.mean(recovered)),
        "backward_transfer_after_recovery": change,
    }


def _stability(
    looks: Sequence[Mapping[str, Any]], stream: Stream, config: ContinualConfig
) -> dict[str, float]:
    every = config.measure.every
    if not every or len(stream.tasks) < 2 or stream.strategy.data == "joint":
        return {}
    curves = -np.asarray([row["nll"] for row in looks])
    ends = [end // every for end in stream.ends]
    found = {
        "probe_mean_score": float(curves[ends[-1]].mean()),
        "min_score": forgetting.worst(curves[: ends[-1] + 1], ends),
        "worst_case_score": forgetting.worst_case(curves[: ends[-1] + 1], ends),
    }
    for window in config.measure.windows:
        found[f"windowed_forgetting_{window}"] = float(
            forgetting.windowed_forgetting(curves, window).mean()
        )
        found[f"windowed_plasticity_{window}"] = float(
            forgetting.windowed_plasticity(curves, window).mean()
        )
    return found


def _compare(found: dict[str, dict[str, Any]], reference: str) -> None:
    for row in found.values():
        row["above_reference_nll"] = row["mean_nll"] - found[reference]["mean_nll"]
        if "learned_nll" in row:
            row["intransigence"] = row["learned_nll"] - found[reference]["mean_nll"]


def _page(run: RunDirectory, labels: Sequence[str]) -> None:
    if jax.process_index() == 0:
        from jaxforget.report.continual import write_continual

        folders = [run.path / label for label in labels] or [run.path]
        results = {
            label: json.loads((folder / "results.json").read_text())
            for label, folder in zip(labels or [run.path.name], folders, strict=True)
        }
        write_continual(results, run.report, title=f"Continual study {run.path.name}")


def table_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A row a run of a finished study of several, for the terminal; none of a single one."""
    found = json.loads(run.results.read_text()).get("runs", {})
    names = ("mean_nll", "learned_nll", "backward_transfer", "forgetting", "min_score")
    return [{"run": label, **{n: row.get(n) for n in names}} for label, row in found.items()]
