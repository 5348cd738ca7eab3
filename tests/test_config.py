import pytest

from jaxforget import config as configs
from jaxforget.config import FinetuneConfig, UnlearnConfig, build, load, to_yaml
from jaxforget.engine.errors import UserError

BASE = ["model=m", "forget=f.jsonl", "run_dir=r"]


def test_the_written_configuration_reads_back_the_same(tmp_path):
    first = load(UnlearnConfig, None, [*BASE, "lora={rank: 4}", "evaluate.forget=x.json"])
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(first))
    assert load(UnlearnConfig, file) == first


def test_overrides_win_over_the_file_and_bare_strings_stand_for_mappings(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nforget: a.jsonl\nrun_dir: r\nmethod: npo\ntrain: {epochs: 2}\n")
    config = load(
        UnlearnConfig,
        file,
        ["forget.rows='0:3'", "method.beta=0.3", "optimizer.learning_rate=1e-4"],
    )
    assert config.forget.path == "a.jsonl" and config.forget.rows == "0:3"
    assert dict(config.method) == {"name": "npo", "beta": 0.3}
    assert config.train.epochs == 2 and config.optimizer.learning_rate == 1e-4


def test_another_method_drops_the_parameters_of_the_old():
    tree = ["method={name: npo, beta: 0.2}", "method.name=graddiff"]
    assert dict(load(UnlearnConfig, None, [*BASE, *tree]).method) == {"name": "graddiff"}


def test_one_data_set_or_several_can_be_given():
    one = build(FinetuneConfig, {"model": "m", "data": "a.jsonl", "run_dir": "r"})
    two = build(FinetuneConfig, {"model": "m", "data": ["a.jsonl", {"path": "b"}], "run_dir": "r"})
    assert [source.path for source in one.data] == ["a.jsonl"]
    assert [source.path for source in two.data] == ["a.jsonl", "b"]


def test_identity_leaves_out_what_does_not_change_the_numbers():
    a = load(UnlearnConfig, None, [*BASE, "train.log_every=1", "mesh.fsdp=2"])
    b = load(UnlearnConfig, None, ["model=m", "forget=f.jsonl", "run_dir=elsewhere"])
    c = load(UnlearnConfig, None, [*BASE, "train.seed=1"])
    assert configs.identity(a) == configs.identity(b) != configs.identity(c)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stesp=3", r"train.stesp: no such key. Did you mean 'steps'\?"),
        ("modle=m", r"modle: no such key. Did you mean 'model'\?"),
        ("train.steps=-1", "train.steps: .*greater than or equal to 1 .got -1"),
        ("train.batch_size=many", "train.batch_size: .*got 'many'"),
        ("train.compute=float8", "train.compute: .*'float32' or 'bfloat16'"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: .*greater than 0"),
        ("resume=maybe", "resume: .*'auto' or 'never'"),
        ("lora.rank=0", "lora.rank"),
        ("model=7", "model: .*string"),
        ("train", "must be key=value"),
        ("=3", "must be key=value"),
        ("train.steps={", "not a YAML value"),
        ("mesh.rows=2", "mesh.rows: no such key. Allowed: data, fsdp, tensor"),
    ],
)
def test_faults_name_the_key_and_what_is_allowed(override, message):
    with pytest.raises(UserError, match=message):
        load(UnlearnConfig, None, [*BASE, override])


def test_every_fault_is_told_at_once():
    with pytest.raises(UserError) as caught:
        load(UnlearnConfig, None, ["train.steps=0", "optimizer.name=adamm"])
    text = str(caught.value)
    for part in ("train.steps", "optimizer.name", "model: missing", "forget: missing"):
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not valid YAML"), ("- 1", "must be a mapping"), (b"\xff\xfe", "not UTF-8")],
)
def test_an_unreadable_file_is_named(tmp_path, content, message):
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"c.yaml: {message}"):
        load(UnlearnConfig, file)
    with pytest.raises(UserError, match="No such file"):
        load(UnlearnConfig, tmp_path / "none.yaml")
