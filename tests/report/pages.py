"""One page of every kind that is written, from small results that no model has made."""

import pathlib
from collections.abc import Callable, Mapping

from jaxforget.report import RunSummary, write_report
from jaxforget.report.acquisition import write_acquisition
from jaxforget.report.audit import write_audit
from jaxforget.report.continual import write_continual
from jaxforget.report.meta import write_meta

ABOUT = {"versions": {"jax": "1"}, "devices": {"kind": "cpu", "count": 1}}
SAID = "<img src=x onerror=alert(1)> & a “quoted” answer, naïve"


def run(name: str, forget: float) -> RunSummary:
    """A run of unlearning."""
    return RunSummary(
        name=name,
        metrics={"forget_prob": forget, "retain_prob": 0.9, "model_utility": 0.6, "odd": None},
        seconds=1.25,
        curves=[{"step": step, "forget": 1.0 / step, "retain": 0.1} for step in (1, 2, 3)],
        generations=[{"set": "forget", "row": 0, "prompt": SAID, "truth": "A", "answer": SAID}],
        config="model: m\n",
        environment={"versions": {"jax": "1"}},
    )


def attack(label: str, *, curves: bool) -> dict:
    """An attack of an audit."""
    models = ("start", "audited", "oracle")
    line = [[step, step / 20] for step in range(0, 20, 2)]
    return {
        "label": label,
        "title": "Asking",
        "threat": "may ask",
        "budget": "one question",
        "measures": "probability",
        "source": "a paper",
        "known": {"start": 0.9, "audited": 0.2, "oracle": 0.1},
        "left": 0.125,
        "low": -0.02,
        "high": 0.31,
        "scores": {name: {"auc": 0.5} for name in models},
        "curves": {name: {"loss": line, "roc": line} if curves else {} for name in models},
        "examples": {name: [{"prompt": "Who?", "truth": "A", "answer": SAID}] for name in models},
    }


def audit(out: pathlib.Path) -> pathlib.Path:
    """An audit's."""
    results = {
        "verdict": "It has not forgotten.",
        "limits": ["Few records."],
        "attacks": [attack("ask", curves=False), attack("relearn(text=half)", curves=True)],
        "weights": {"layers/attn/q": {"distance": 0.25, "share": 1e-5}},
        **ABOUT,
    }
    return write_audit(results, out, title="Audit of runs/npo")


def meta(out: pathlib.Path) -> pathlib.Path:
    """A meta-evaluation's."""
    judged = {"faithfulness": 0.9, "relearning": 0.8, "quantisation": None, "robustness": 0.5}
    names = ("forget_prob", "forget_rouge")
    results = {
        "verdict": "forget_prob is to be trusted most.",
        "verdicts": [{"metric": name, **judged, "overall": 0.6} for name in names],
        "models": {f"m{n}": dict.fromkeys(names, n / 4) for n in range(4)},
        "pools": {"knew": ["m0", "m1"], "never knew": ["m2"]},
        "unlearned": ["m3"],
        **ABOUT,
    }
    return write_meta(results, out)


def continual(out: pathlib.Path) -> pathlib.Path:
    """A comparison of runs on a stream of tasks."""

    def one(shift: float) -> dict:
        return {
            "metrics": {"learned_nll": 2.0 + shift, "backward_transfer": -0.5 - shift},
            "matrix": {
                "nll": [[3.0, 3.1], [2.0, 3.0 + shift], [2.5 + shift, 2.1]],
                "tasks": ["law", "code"],
                "trained": ["start", "law", "code"],
            },
            "looks": [{"step": step, "nll": [2.0, 3.0 - step / 10]} for step in range(4)],
            "ends": [2, 4],
            **ABOUT,
        }

    return write_continual({"naive": one(0.2), "replay": one(0.0)}, out, title="Continual study")


def acquisition(out: pathlib.Path) -> pathlib.Path:
    """A study of injected facts."""
    times = [0, 1, 10, 100]
    fit = {"constant": 0.2, "intercept": 0.9, "r2": 0.9, "threshold": 5000, "law": "power"}
    around = {"mean": [1.0, 0.9, 0.7, 0.5], "low": [0.9] * 4, "high": [1.0] * 4}
    group = {
        "mode": "once",
        "kind": "verbatim",
        "gain": 0.5,
        "curve": {"steps": times, "logp": [-3.0, -2.0, -2.5, -2.8]},
        "retention": {**fit, "probes": 12, "times": times, **around},
    }
    left = {"recall": {"times": times, "left": [1.0, 0.8, None, 0.4]}}
    keyword = {"mode": "once", "category": "animals", "times": times[1:]}
    keyword |= {"memory": [2.0, 1.5, 1.0], "priming": [0.4, None, 0.1]}
    found = {"before": -0.25, "before_p": 0.04, "after": 0.1, "after_p": 0.5}
    results = {
        "groups": [group],
        "recall": {"once": left},
        "priming": {"groups": [keyword], "correlation": found},
        **ABOUT,
    }
    return write_acquisition(results, out, title="Factual acquisition")


PAGES: Mapping[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "run": lambda out: write_report([run("npo", 0.2)], out),
    "comparison": lambda out: write_report([run("npo", 0.2), run("oracle", 0.1)], out),
    "audit": audit,
    "meta": meta,
    "continual": continual,
    "acquisition": acquisition,
}
