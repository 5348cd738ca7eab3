"""Configurations and command lines that cannot be meant."""

import pytest
import yaml
from cli.conftest import check_refusal

OVERRIDES = {
    "misspelt_key": (["train.stesp=3"], ("train.stesp: no such key", "Did you mean 'steps'?")),
    "misspelt_top_key": (["optimiser.name=sgd"], ("optimiser", "Did you mean 'optimizer'?")),
    "wrong_type": (["train.batch_size=many"], ("train.batch_size", "integer", "'many'")),
    "mapping_for_text": (["model={a: 1}"], ("model", "string")),
    "negative_steps": (["train.steps=-1"], ("train.steps", "greater than or equal to 1", "-1")),
    "zero_batch": (["train.batch_size=0"], ("train.batch_size", "greater than or equal to 1")),
    "zero_learning_rate": (["optimizer.learning_rate=0"], ("optimizer.learning_rate", "than 0")),
    "nan_learning_rate": (["optimizer.learning_rate=.nan"], ("optimizer.learning_rate", "nan")),
    "infinite_learning_rate": (["optimizer.learning_rate=.inf"], ("optimizer.learning_rate",)),
    "warmup_above_one": (["optimizer.warmup_fraction=1.5"], ("warmup_fraction", "0.99")),
    "unknown_optimizer": (["optimizer.name=adam"], ("optimizer.name", "'adamw'", "'lion'")),
    "unknown_schedule": (["optimizer.schedule=step"], ("optimizer.schedule", "'cosine'")),
    "option_the_optimizer_ignores": (["optimizer.momentum=0.9"], ("optimizer.momentum", "sgd")),
    "bad_dtype": (["dtype=fp32"], ("dtype", "'float32' or 'bfloat16'", "'fp32'")),
    "bad_compute_dtype": (["train.compute=float8"], ("train.compute", "'bfloat16'")),
    "bad_resume": (["resume=maybe"], ("resume", "'auto' or 'never'")),
    "bad_template": (["template.kind=chatty"], ("template.kind", "'plain', 'chat' or 'none'")),
    "bad_rows": (["forget.rows=1:30"], ("forget.rows", "'start:stop' in quotes")),
    "unknown_method": (["method=nop"], ("no method 'nop'", "Did you mean 'npo'?")),
    "unknown_method_argument": (
        ["method={name: npo, retain: none, bta: 1}"],
        ("method.bta", "Did you mean 'beta'?"),
    ),
    "method_argument_out_of_range": (
        ["method={name: npo, beta: -1}"],
        ("method.beta", "greater than 0", "-1"),
    ),
    "method_without_a_name": (["method={beta: 1}"], ("method: needs a name", "npo")),
    "method_without_its_retain_set": (["method=graddiff"], ("retain", "'graddiff'", "needs")),
    "override_without_equals": (["train.steps"], ("'train.steps'", "key=value")),
    "override_that_is_no_yaml": (["train.steps={"], ("'train.steps={'", "not a YAML value")),
    "override_into_a_value": (["train.steps.x=1"], ("train.steps.x=1", "train.steps")),
    "mesh_larger_than_the_machine": (["mesh.data=1", "mesh.fsdp=64"], ("64 devices", "has 8")),
    "mesh_of_zero": (["mesh.data=0"], ("mesh", ">= 1")),
    "lora_and_trainable": (
        ["lora.rank=2", "train.trainable=attn"],
        ("train.trainable and lora", "one of them"),
    ),
    "lora_that_matches_nothing": (
        ["lora={rank: 2, targets: conv}"],
        ("lora.targets 'conv'", "layers/attn/q"),
    ),
    "lora_rank_above_the_width": (["lora.rank=33"], ("lora.rank 33", "layers/")),
    "trainable_that_matches_nothing": (
        ["train.trainable=conv"],
        ("train.trainable 'conv'", "embed/w"),
    ),
    "trainable_that_is_no_expression": (["train.trainable=("], ("train.trainable '('", "regular")),
    "rows_too_short_to_pack": (["train.row_length=8"], ("the forget set", "packed length 8")),
    "max_length_above_the_context": (["max_length=65"], ("max_length", "65", "64")),
    "suite_without_sets": (["evaluate.generate=false"], ("evaluate", "forget, retain")),
    "suite_set_that_is_not_there": (["evaluate.forget=none.jsonl"], ("none.jsonl", "no such")),
    "oracle_that_is_not_there": (
        ["evaluate={forget: FORGET, oracle: no/run}"],
        ("evaluate.oracle", "no/run", "No such file"),
    ),
}


@pytest.mark.parametrize("kind", OVERRIDES)
def test_an_override_that_cannot_be_meant_is_refused(kind, refused, world):
    overrides, says = OVERRIDES[kind]
    forget = str(world.root / "forget.jsonl")
    refused("unlearn", *(each.replace("FORGET", forget) for each in overrides), says=says)


def test_an_override_never_discards_a_list(refused, world):
    data = f"data=[{world.root / 'forget.jsonl'}, {world.root / 'retain.jsonl'}]"
    refused("finetune", data, "data.rows='0:1'", says=("data.rows='0:1'", "list"))


FILES = {
    "bad_syntax": ("model: m\ntrain: {steps: 3\nforget: f\n", ("not valid YAML", "line 3")),
    "tabs": ("train:\n\tsteps: 3\n", ("not valid YAML", "line 2")),
    "no_mapping": ("- model\n- forget\n", ("must be a mapping", "list")),
    "empty": ("", ("model: missing", "forget: missing")),
    "twice_the_same_key": ("model: a\nforget: f\nmodel: b\n", ("'model'", "twice", "line 3")),
    "twice_the_same_inner_key": (
        "model: a\ntrain:\n  steps: 3\n  steps: 4\n",
        ("'steps'", "twice", "line 4"),
    ),
    "key_that_is_no_text": ("model: a\nforget: f\n1: b\n", ("study.yaml: 1: ", "strings")),
    "not_utf8": (b"model: caf\xe9\n", ("not UTF-8",)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_configuration_is_refused_by_its_name_and_line(kind, refused, tmp_path):
    content, says = FILES[kind]
    file = tmp_path / "study.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("unlearn", config=str(file), says=("study.yaml", *says))


def test_a_configuration_that_is_not_there_or_a_folder_is_refused(refused, tmp_path):
    refused("unlearn", config=str(tmp_path / "no.yaml"), says=("no.yaml", "No such file"))
    refused("evaluate", config=str(tmp_path), says=(str(tmp_path), "Is a directory"))


def test_every_fault_of_a_configuration_is_told_at_once(refused):
    says = ("train.steps", "optimizer.name", "mesh.row: no such key")
    refused("unlearn", "train.steps=0", "optimizer.name=adam", "mesh.row=2", says=says)


@pytest.mark.parametrize("missing", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_half_a_description_of_a_multi_process_run_is_refused(missing, refused, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    for name in {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} - {missing}:
        monkeypatch.setenv(name, "0")
    refused("unlearn", says=("missing", missing))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["unlern", "c.yaml"], ("unlern", "No such command")),
        (["unlearn"], ("config", "Missing argument")),
        (["unlearn", "c.yaml", "--jsn"], ("--jsn", "--json")),
        (["quickstart", "--seed", "-1"], ("--seed", "greater than")),
    ],
    ids=["unknown_command", "missing_argument", "unknown_option", "option_out_of_range"],
)
def test_a_command_line_that_cannot_be_meant_is_refused_with_its_usage(words, says, cli):
    got = cli(*words)
    assert got.code == 2 and got.out == "" and "Traceback" not in got.err
    assert "Usage: " in got.err
    for part in says:
        assert part in got.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit"], ("RUN", "run directory")),
        (["audit", "--meta", "run_dir=runs/meta", "modles=2"], ("modles: no such key", "'models'")),
        (["audit", "--meta", "models=1"], ("models", "greater than or equal to 2")),
        (["audit", "--meta", "no.yaml", "models=2"], ("no.yaml", "No such file")),
    ],
)
def test_an_audit_of_nothing_or_of_metrics_by_a_wrong_configuration_is_refused(words, says, cli):
    check_refusal(cli(*words), says)


def test_a_refusal_is_one_message_whatever_else_is_asked_for(cli, world, tmp_path):
    for more in (["--quiet"], ["--json"], ["-q", "--json"]):
        got = cli("unlearn", world.config("unlearn"), f"run_dir={tmp_path}", "model=none/x", *more)
        check_refusal(got, ("none/x",))


def test_debug_shows_where_a_refusal_comes_from(world, tmp_path):
    from cli.conftest import call

    from jaxforget.engine.errors import UserError

    with pytest.raises(UserError, match="no/model"):
        call(
            "unlearn", world.config("unlearn"), f"run_dir={tmp_path}", "model=./no/model", "--debug"
        )


def test_the_written_configuration_is_what_ran(run_dir, world):
    written = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert written["train"]["steps"] == 4 and written["model"] == str(world.model)


def test_a_model_too_large_for_the_memory_is_refused_with_advice(refused, monkeypatch):
    def too_large(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmap of it")

    monkeypatch.setattr("jaxforget.config.load", too_large)
    refused("unlearn", says=("out of memory: ", "9 bytes", "train.batch_size", "mesh.fsdp"))


def test_a_fault_of_ours_is_one_message_with_code_1(cli, world, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("surprise")

    monkeypatch.setattr("jaxforget.config.load", broken)
    got = cli("unlearn", world.config("unlearn"), f"run_dir={tmp_path}")
    assert got.code == 1 and got.err == "error: KeyError: 'surprise'\n(--debug shows where)\n"


def test_an_interrupted_run_says_how_to_go_on(cli, world, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxforget.config.load", interrupted)
    got = cli("unlearn", world.config("unlearn"), f"run_dir={tmp_path}")
    assert got.code == 130 and "same command again to resume" in got.err
