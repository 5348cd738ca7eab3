"""The launch recipes start what they say, with what each platform gives them."""

import json
import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

from jaxforget import config as configs

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "launch"
TELL = """#!/usr/bin/env python3
import json, os, sys
mine = ("JAX_COORD", "JAX_NUM_P", "JAX_PROCESS", "JAXFORGET")
asked = {name: value for name, value in os.environ.items() if name.startswith(mine)}
print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], asked]))
"""


@pytest.fixture
def told(tmp_path):
    """Runs a script where `jaxforget`, `srun` and `xpk` only tell how they were called."""
    for name in ("jaxforget", "srun", "xpk"):
        (tmp_path / name).write_text(TELL)
        (tmp_path / name).chmod(0o755)

    def run(*command, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX")}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            env={**kept, **environment, "PATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return run


def check_command(words, run_dir):
    """It is one that jaxforget would accept."""
    name, config, *overrides = words
    assert name == "unlearn"
    loaded = configs.load(configs.UnlearnConfig, ROOT / config, overrides)
    assert loaded.run_dir == run_dir and loaded.mesh.fsdp == -1


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (
            "skypilot-gpu",
            {
                "JAX_COORDINATOR_ADDRESS": "10.0.0.1:12345",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
            },
        ),
        ("skypilot-tpu", {"JAXFORGET_DISTRIBUTED": "1"}),
    ],
)
def test_skypilot(told, recipe, wanted):
    task = yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())
    given = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": str(task.get("num_nodes", 1)),
        "SKYPILOT_NODE_RANK": "1",
    }
    name, words, asked = told("bash", "-c", task["run"], **given, **task["envs"])
    assert name == "jaxforget" and asked == wanted
    check_command(words, "/runs/npo")
    assert "/runs" in task["file_mounts"]
    extra = {"skypilot-gpu": "cuda", "skypilot-tpu": "tpu"}[recipe]
    assert f".[{extra}]" in shlex.split(task["setup"])


def test_slurm(told):
    given = ("configs/tofu/npo.yaml", "run_dir=/shared/npo", "mesh.fsdp=-1")
    name, words, asked = told(str(FOLDER / "slurm.sh"), *given)
    assert name == "srun" and asked == {"JAXFORGET_DISTRIBUTED": "1"}
    assert words[1] == "jaxforget"
    check_command(words[2:], "/shared/npo")


def test_xpk(told):
    given = ("configs/tofu/npo.yaml", "method.beta=0.2", "mesh.fsdp=-1")
    name, words, _ = told(str(FOLDER / "xpk.sh"), *given, CLUSTER="c", IMAGE="i", NAME="n")
    assert name == "xpk" and words[words.index("--docker-image") + 1] == "i"
    _, inner, asked = told("bash", "-c", words[words.index("--command") + 1])
    assert asked == {"JAXFORGET_DISTRIBUTED": "1"}
    check_command(inner, "/runs/n")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        told(str(FOLDER / "xpk.sh"), *given, CLUSTER="c")
    assert "container image" in refused.value.stderr
