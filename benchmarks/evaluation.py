"""The TOFU forget10 suite against the same suite composed as open-unlearning composes it.

    python benchmarks/evaluation.py --data TOFU_FILES --peer-python PEER_ENV/bin/python

A Llama of 3.5 million parameters learns TOFU for `--steps` steps (so that its answers end as real
ones do; 0: random weights, whose answers all run to the limit), then both lanes evaluate it in
turn, each in processes of its own: `jaxforget`, with the compilation of its programs and again
without, and PyTorch, `benchmarks/peer/evaluate.py`, in an environment that has torch, transformers
and rouge-score; both in the same dtype. Prints and writes the ratios of the time from model and
records to metrics, and of the processor's time, which neighbours disturb less; what both lanes
found is written beside, and has to agree.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILES = {
    "forget": "forget10_perturbed.json",
    "retain": "retain_perturbed.json",
    "real_authors": "real_authors_perturbed.json",
    "world_facts": "world_facts_perturbed.json",
    "holdout": "holdout10.json",
}
LONGEST_ANSWER, LENGTH = 200, 512
SHARED = ("forget_prob", "forget_rouge", "retain_rouge", "extraction_strength", "mia_min_k_auc")
CHAT = (
    "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: 10 Apr 2025\\n\\n' -}}"
    "{{- 'You are a helpful assistant.' -}}"
    "{%- for message in messages -%}"
    "{{- '\\n' + message['role'] + '\\n\\n' + message['content'] + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\nassistant\\n\\n' -}}{%- endif -%}"
)


def records_of(data: pathlib.Path, share: int) -> dict[str, list[Any]]:
    """The suite's sets, every `share`-th record of each."""
    from jaxforget.data.sources import DataSource, load_records

    found = {name: load_records(DataSource(str(data / file))) for name, file in FILES.items()}
    return {name: records[::share] for name, records in found.items()}


def template() -> Any:
    """Questions in the chat template of the model."""
    from jaxforget.data.template import Template

    return Template(kind="chat")


def make_model(data: pathlib.Path, folder: pathlib.Path, steps: int) -> None:
    """A tiny Llama whose tokenizer has read TOFU, and which has learned it for some steps."""
    from jaxforget.data.fictitious import model_config, train_tokenizer
    from jaxforget.data.sources import DataSource, load_records
    from jaxforget.models.language_model import from_scratch

    records = load_records(DataSource(str(data / "full.json")))
    tokenizer = train_tokenizer([f"{each.prompt} {each.answer}" for each in records] + [CHAT])
    tokenizer.chat_template = CHAT
    config = model_config(tokenizer) | {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
    }
    lm = from_scratch(config, tokenizer, 0)
    lm.save_pretrained(folder if not steps else folder / "random")
    if steps:
        _teach(data, folder, steps)


def _teach(data: pathlib.Path, folder: pathlib.Path, steps: int) -> None:
    from jaxforget.studies import finetune

    finetune(
        {
            "model": str(folder / "random"),
            "data": [str(data / "full.json")],
            "run_dir": str(folder),
            "template": {"kind": "chat"},
            "max_length": 256,
            "train": {"steps": steps, "batch_size": 64, "save_every": 0},
            "optimizer": {"learning_rate": 2e-3},
        }
    )


def taught(
    model: pathlib.Path, data: pathlib.Path, share: int, out: pathlib.Path, steps: int
) -> Any:
    """A given model that has learned the forget and retain rows that are evaluated, by adapters."""
    from jaxforget.studies import finetune

    folder, file = out / f"taught-{steps}", out / "taught.jsonl"
    records = records_of(data, share)
    rows = [
        {"question": r.prompt, "answer": r.answer} for r in records["forget"] + records["retain"]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune(
        {
            "model": str(model),
            "data": [str(file)],
            "run_dir": str(folder),
            "template": {"kind": "chat"},
            "max_length": 256,
            "train": {"steps": steps, "batch_size": 16, "save_every": 0, "log_every": 5},
            "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.05},
            "lora": {"rank": 16, "alpha": 32},
            "export_dtype": "float32",
        }
    )
    return folder


def ours(model: str, data: pathlib.Path, share: int, compute: str, batch: int) -> dict[str, Any]:
    """One process of jaxforget's lane: the suite twice, the first time with compilation."""
    from jaxforget.engine.runtime import keep_freed_memory
    from jaxforget.evals import tofu
    from jaxforget.models import Compute
    from jaxforget.models.language_model import load

    keep_freed_memory()
    lm = load(model, dtype="float32", compute=Compute(dtype=compute))
    sets = records_of(data, share)
    found: dict[str, Any] = {}
    for name in ("cold", "warm"):
        begin, cpu, marks = time.perf_counter(), time.process_time(), [("", time.perf_counter())]

        def mark(what: str, done: int, total: int, marks: list = marks) -> None:
            marks.append((what, time.perf_counter()))

        result = tofu.evaluate(
            lm,
            lm.params,
            sets,
            template=template(),
            max_length=LENGTH,
            max_new_tokens=LONGEST_ANSWER,
            batch_size=batch,
            counted=mark,
        )
        found[name] = {
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - cpu,
            "passes": _by_pass(marks),
        }
    found["metrics"] = dict(result.metrics)
    return found


def _by_pass(marks: Sequence[tuple[str, float]]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for (_, before), (what, after) in zip(marks, marks[1:], strict=False):
        spent[what] = spent.get(what, 0.0) + after - before
    return spent


def for_peer(data: pathlib.Path, share: int, model: str, file: pathlib.Path) -> None:
    """The same records as texts, with their prompts rendered."""
    from jaxforget.data.template import renderer
    from jaxforget.models.language_model import load

    render, sets = renderer(template(), load(model).tokenizer), {}
    for name, records in records_of(data, share).items():
        sets[name] = []
        for record in records:
            shown = render(record)
            row = {"prompt": shown.text[: shown.start], "answer": record.answer}
            if "perturbed_answer" in record.extra:
                row["perturbed"] = record.extra["perturbed_answer"]
            if "paraphrased_answer" in record.extra:
                row["paraphrased"] = record.extra["paraphrased_answer"]
            sets[name].append(row)
    file.write_text(json.dumps(sets))


def main() -> None:
    """Parse; make the model; run the lanes in turn; print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="TOFU's files")
    parser.add_argument("--peer-python", help="interpreter that has torch; none: our lane alone")
    parser.add_argument(
        "--model", type=pathlib.Path, help="folder or .gguf, evaluated instead of the tiny one"
    )
    parser.add_argument("--steps", type=int, default=300, help="that the tiny model learns")
    parser.add_argument(
        "--taught", type=int, default=0, help="steps in which a --model learns the rows evaluated"
    )
    parser.add_argument("--share", type=int, default=1, help="of the rows, every so manieth")
    parser.add_argument("--compute", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=64, help="answers that we write at a time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "evaluation")
    parser.add_argument("--lane", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.model or options.out / f"tiny-{options.steps}"
    model = str(folder)
    if options.lane:
        found = ours(model, options.data, options.share, options.compute, options.batch)
        pathlib.Path(options.lane).write_text(json.dumps(found))
        return
    from jaxforget.engine.files import write_json
    from jaxforget.studies.common import environment

    if not options.model and not folder.exists():
        make_model(options.data, folder, options.steps)
    if options.taught:
        folder = taught(folder, options.data, options.share, options.out, options.taught)
    plain = _plain(folder, options.out)
    model = str(plain)
    sets = options.out / "sets.json"
    for_peer(options.data, options.share, model, sets)
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(options.rounds):
        file = options.out / f"ours-{number}.json"
        again = [sys.executable, __file__, "--data", str(options.data), "--model", model]
        again += ["--share", str(options.share), "--compute", options.compute]
        again += ["--batch", str(options.batch)]
        _run([*again, "--lane", str(file)], options.threads)
        rounds["ours"].append(json.loads(file.read_text()))
        if options.peer_python:
            file = options.out / f"peer-{number}.json"
            script = ROOT / "benchmarks" / "peer" / "evaluate.py"
            given = [plain, sets, file, options.threads, options.compute]
            _run([options.peer_python, script, *given], options.threads)
            rounds["peer"].append(json.loads(file.read_text()))
    found = {**environment(), **_told(rounds, options)}
    found["table"] = [_row(found)]
    write_json(options.out / "evaluation.json", found)
    print(json.dumps(found, indent=1))


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.py` shows of it: medians of the ratios."""
    ratios = {name: each for name, each in found.items() if " over peer, " in name}
    kept = {name: found[name] for name in ("threads", "share", "compute", "batch")}
    return kept | {name: round(statistics.median(each), 3) for name, each in ratios.items()}


def _plain(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The model as a folder that transformers reads too; a .gguf file is written out as one."""
    from jaxforget.models.language_model import load

    if folder.is_dir():
        return folder / "model" if (folder / "model").is_dir() else folder
    written = out / folder.stem
    if not written.is_dir():
        load(folder, dtype="float32").save_pretrained(written)
    return written


def _run(command: Sequence[Any], threads: int) -> None:
    """A process that may use so many threads."""
    own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **own}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    cores = ",".join(map(str, range(threads)))
    prefix = ["taskset", "-c", cores] if sys.platform == "linux" else []
    subprocess.run([*prefix, *map(str, command)], check=True, env=environment)


def _told(rounds: Mapping[str, Sequence[Mapping[str, Any]]], options: Any) -> dict[str, Any]:
    def median(values: Sequence[float]) -> float:
        return round(statistics.median(values), 3)

    warm = median([each["warm"]["seconds"] for each in rounds["ours"]])
    told: dict[str, Any] = {
        "threads": options.threads,
        "share": options.share,
        "compute": options.compute,
        "batch": options.batch,
        "passes": {k: round(v, 1) for k, v in rounds["ours"][-1]["warm"]["passes"].items()},
        "compilation over evaluation": median(
            [each["cold"]["seconds"] / each["warm"]["seconds"] - 1 for each in rounds["ours"]]
        ),
        "metrics": {name: rounds["ours"][-1]["metrics"][name] for name in SHARED},
    }
    if rounds["peer"]:
        for kind in ("cold", "warm"):
            for unit in ("seconds", "cpu_seconds"):
                pairs = zip(rounds["ours"], rounds["peer"], strict=True)
                ratios = [round(ours[kind][unit] / peer[unit], 4) for ours, peer in pairs]
                told[f"{kind} over peer, {unit.replace('_', ' ')}"] = ratios
        told["peer metrics"] = {name: rounds["peer"][-1]["metrics"][name] for name in SHARED}
        told["peer passes"] = rounds["peer"][-1]["passes"]
    told["seconds, for orientation only"] = {
        "ours": warm,
        "peer": [each["seconds"] for each in rounds["peer"]],
    }
    return told


if __name__ == "__main__":
    main()
