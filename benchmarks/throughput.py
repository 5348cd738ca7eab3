"""Whole training steps against the same steps composed as open-unlearning composes them.

    python benchmarks/throughput.py --data TOFU_FILES --peer-python PEER_ENV/bin/python

Both lanes train the same model on the same rows of TOFU (forget10, retain90, in a chat template),
all weights, 32 rows of each role a step: `jaxforget` by the path of `jaxforget unlearn`, PyTorch by
`benchmarks/peer/train.py` in an environment that has torch and transformers. For every method each
lane is one process; they take a few steps in turn, A B A B, the first turn of each for nothing
(compilation, caches). A ratio is our useful tokens a second over the peer's of the same turn,
padding counting for neither; beside it the same by the processor's seconds, which neighbours
disturb less, and our peak of resident memory over the peer's.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILES = {"forget": "forget10.json", "retain": "retain90.json"}
LANES: dict[str, dict[str, Any]] = {
    "graddiff": {"name": "graddiff"},
    "simnpo": {"name": "simnpo"},
    "npo": {"name": "npo"},
    "kl": {"name": "graddiff", "retain": "kl"},
    "undial": {"name": "undial"},
    "dpo": {"name": "dpo"},
    "rmu": {"name": "rmu", "layer": 2},
}
"""Our method of every lane of the peer."""

RMU_TRAINS = (
    r"layers/mlp/down/w"  # as the peer, but for layers behind the one it acts at, which rest
)
BATCH, LENGTH = 32, 512


def records_of(data: pathlib.Path, most: int | None) -> dict[str, list[Any]]:
    """The first rows of both roles, and refusals of the former's questions."""
    from jaxforget.data.alternates import refusals
    from jaxforget.data.sources import DataSource, load_records

    found = {name: load_records(DataSource(str(data / FILES[name])))[:most] for name in FILES}
    return {**found, "alternate": refusals(found["forget"], 0)}


def for_peer(data: pathlib.Path, most: int | None, model: str, file: pathlib.Path) -> None:
    """The same rows as texts, with their prompts rendered."""
    from jaxforget.data.template import Template, renderer
    from jaxforget.models.language_model import load

    render, sets = renderer(Template(kind="chat"), load(model).tokenizer), records_of(data, most)
    written: dict[str, list[dict[str, str]]] = {}
    for name in FILES:
        shown = [render(record) for record in sets[name]]
        written[name] = [
            {"prompt": text.text[: text.start], "answer": record.answer}
            for text, record in zip(shown, sets[name], strict=True)
        ]
    for row, record in zip(written["forget"], sets["alternate"], strict=True):
        row["refusal"] = record.answer
    file.write_text(json.dumps(written))


def ours(options: argparse.Namespace) -> None:
    """Our lane: as `peer/train.py`, numbers of steps in, lines of JSON out."""
    from jaxforget import methods
    from jaxforget.config import TrainConfig
    from jaxforget.data.template import Template
    from jaxforget.data.tokenise import tokenise
    from jaxforget.engine.mesh import MeshConfig, make_mesh
    from jaxforget.engine.optimizer import OptimizerConfig
    from jaxforget.engine.run_dir import open_run
    from jaxforget.engine.runtime import give_back_if_large, keep_freed_memory, use_compile_cache
    from jaxforget.models import Compute
    from jaxforget.models.language_model import load
    from jaxforget.studies.reference import with_reference
    from jaxforget.studies.training import train_model

    keep_freed_memory()
    use_compile_cache(ROOT / "runs" / "programs")
    lane, dtype = options.lane, options.dtype
    method = methods.from_config(LANES[lane])
    records, template = records_of(options.data, options.rows), Template(kind="chat")

    def loaded() -> Any:
        how = Compute(dtype=dtype, remat=options.remat)
        return load(options.model, dtype="float32", compute=how)

    lm = loaded()
    give_back_if_large(lm.params)  # as studies do
    with tempfile.TemporaryDirectory() as folder:
        tokenised = {
            role: tokenise(records[role], lm.tokenizer, template, max_length=LENGTH)
            for role in method.roles
        }
        sets = with_reference(lm, tokenised, method.needs, folder=pathlib.Path(folder) / "cache")
        del lm
        for turn, line in enumerate(sys.stdin):
            steps, marks = int(line), []

            def mark(progress: Any, marks: list[Any] = marks) -> None:
                metrics = progress.metrics
                tokens = metrics["tokens_per_second"] * metrics["step_ms"] / 1e3
                marks.append((time.perf_counter(), time.process_time(), tokens))

            train_model(
                loaded(),
                sets,
                method,
                run=open_run(pathlib.Path(folder) / f"run-{turn}", resume="never"),
                settings=TrainConfig(
                    steps=steps + 2,
                    batch_size=BATCH,
                    accumulate=options.accumulate,
                    compute=dtype,
                    log_every=1,
                    trainable=RMU_TRAINS if lane == "rmu" else None,
                    seed=turn,
                ),
                optimizer=OptimizerConfig(learning_rate=1e-5, moments=options.moments),
                lora=None,
                mesh=make_mesh(MeshConfig()),
                clock=time.perf_counter,
                listen=mark,
                consume=True,
            )
            # a step is told of when the next one is under way, or, where that blocks, done: so
            # many steps lie between the first and the last but one in either case
            begin, end = marks[0], marks[-2]
            told = {
                "seconds": end[0] - begin[0],
                "cpu": end[1] - begin[1],
                "tokens": sum(mark[2] for mark in marks[1:-1]),
            }
            print(json.dumps(told), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_kib": peak}), flush=True)


class Lane:
    """A process that takes steps when asked, on as many cores as it has threads."""

    def __init__(self, command: Sequence[Any], threads: int, first: int) -> None:
        cores = ",".join(map(str, range(first, first + threads)))
        prefix = ["taskset", "-c", cores] if sys.platform == "linux" else []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*prefix, *map(str, command)], **pipes)

    def steps(self, count: int) -> dict[str, float]:
        """Take steps; seconds, the processor's seconds and real tokens of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, float]:
        """Its peak of resident memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        told = self._answer()
        self._process.wait()
        return told

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a lane ended with status {self._process.wait()}")
        return json.loads(line)


def compare(lane: str, options: Any, model: str, rows: pathlib.Path) -> dict[str, Any]:
    """Both lanes of a method in turn."""
    own = [sys.executable, __file__, "--lane", lane, "--data", options.data, "--model", model]
    own += ["--dtype", options.dtype, "--accumulate", options.accumulate]
    own += ["--remat", options.remat, "--moments", options.moments]
    own += ["--rows", options.rows] if options.rows else []
    script = ROOT / "benchmarks" / "peer" / "train.py"
    peer = [options.peer_python, script, model, rows, lane, options.threads, options.dtype]
    where = options.threads, options.first_core
    lanes = {"ours": Lane(own, *where), "peer": Lane(peer, *where)}
    turns: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds + 1):
        turns.append({name: each.steps(options.steps) for name, each in lanes.items()})
    peaks = {name: each.end()["peak_kib"] for name, each in lanes.items()}
    return {"lane": lane, "turns": turns[1:], "peaks": peaks}


def told(found: dict[str, Any]) -> dict[str, Any]:
    """Medians over the turns, and their spread."""

    def ratios(unit: str) -> list[float]:
        rates = [
            {name: each["tokens"] / each[unit] for name, each in turn.items()}
            for turn in found["turns"]
        ]
        return [rate["ours"] / rate["peer"] for rate in rates]

    wall, cpu = ratios("seconds"), ratios("cpu")
    return {
        "method": found["lane"],
        "tokens/s over the peer's": round(statistics.median(wall), 2),
        "from": round(min(wall), 2),
        "to": round(max(wall), 2),
        "by processor time": round(statistics.median(cpu), 2),
        "memory over the peer's": round(found["peaks"]["ours"] / found["peaks"]["peer"], 2),
        "turns": len(wall),
    }


def main() -> None:
    """Parse; run the lanes in turn; print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="TOFU's files")
    parser.add_argument("--peer-python", help="interpreter that has torch and transformers")
    parser.add_argument("--model", help="folder that both read; none: a Llama of 3.5 M, random")
    parser.add_argument("--lanes", nargs="*", choices=list(LANES), default=list(LANES))
    parser.add_argument("--rows", type=int, help="of each set; none: all, which are scored first")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--accumulate", type=int, default=4, help="micro-batches of our steps; the peer has 4"
    )
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
    parser.add_argument("--moments", default="float32", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--steps", type=int, default=4, help="of each lane in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--first-core", type=int, default=0, help="of those that both lanes use")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "throughput")
    parser.add_argument("--lane", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lane:
        ours(options)
        return
    from rich.console import Console

    from benchmarks.evaluation import make_model
    from jaxforget.engine.files import write_json
    from jaxforget.report.tables import plain_table
    from jaxforget.studies.common import environment

    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model or str(options.out / "tiny")
    if not pathlib.Path(model).exists():
        make_model(options.data, pathlib.Path(model), 0)
    rows = options.out / "rows.json"
    for_peer(options.data, options.rows, model, rows)
    found = []
    for lane in options.lanes:
        print(f"{lane} ...", file=sys.stderr, flush=True)
        found.append(compare(lane, options, model, rows))
        chosen = ("dtype", "rows", "threads", "steps", "accumulate", "remat", "moments")
        asked = {name: getattr(options, name) for name in chosen}
        about = {**environment(), **asked, "model": pathlib.Path(model).name}
        table = [told(each) for each in found]
        write_json(options.out / "throughput.json", {**about, "table": table, "lanes": found})
    Console(width=120).print(plain_table([told(each) for each in found]))


if __name__ == "__main__":
    main()
