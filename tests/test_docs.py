"""Everything the documentation shows is run, built or looked up."""

import dataclasses
import pathlib
import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from jaxforget import cli, methods
from jaxforget import config as configs
from jaxforget.config.acquire import AcquireConfig
from jaxforget.config.stream import ContinualConfig
from jaxforget.methods import catalogue
from jaxforget.methods.__main__ import TABLES, between

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMAS = {
    "facts": AcquireConfig,
    "stream": ContinualConfig,
    "run": configs.AuditConfig,
    "forget": configs.UnlearnConfig,
    "data": configs.FinetuneConfig,
    "evaluate": configs.EvaluateConfig,
    "base": configs.SweepConfig,
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def schema_of(tree):
    return next(schema for key, schema in SCHEMAS.items() if key in tree)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_REGISTERED", {})
    names = {"__name__": "docs"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}[{number}]", "exec"), names)


def test_the_example_with_a_loop_of_ones_own_is_a_whole_program_of_forty_lines():
    *_, code = blocks(ROOT / "docs" / "extend.md", "python")
    assert "backward_transfer" in code and "ewc" in code
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    exec(compile(code, "extend.md", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_valid_configurations(page):
    for text in blocks(page, "yaml"):
        tree = yaml.safe_load(text)
        configs.build(schema_of(tree), tree, page.name)


SHIPPED = [
    file
    for file in sorted((ROOT / "configs").rglob("*.yaml"))
    if file.parent.name != "launch"  # of other programs, see test_launch.py
]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_shipped_configurations_are_valid_and_name_known_methods(file):
    config = configs.load(schema_of(yaml.safe_load(file.read_text())), file)
    if isinstance(config, configs.UnlearnConfig):
        methods.from_config(config.method)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_file_with_its_defaults(name):
    file = ROOT / "configs" / "tofu" / f"{name}.yaml"
    config = configs.load(configs.UnlearnConfig, file)
    defaults = methods.RECIPES[name].parameters()
    given = dict(config.method)
    if name == "amnesiac":  # the folder is the study's own
        given["updates"] = "updates"
    assert given == {"name": name, **dataclasses.asdict(defaults)}
    method = methods.get(name)
    assert ("retain" in method.roles) == (config.retain is not None)
    assert config.lora is None or not method.weights_only


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_have_the_options_shown(page):
    for text in blocks(page, "(?:sh|console|bash)"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] != ["jaxforget"]:
                continue
            shown = CliRunner().invoke(cli.app, [words[1], "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, line
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert option in shown.output, line


def test_make_targets_shown_in_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"make ([\w-]+)", "\n".join(blocks(PAGES[0], "(?:sh|console|bash)"))))
    assert shown and shown <= targets


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_readmes_tables_are_the_catalogues(name):
    shown = between(name).search(PAGES[0].read_text())
    assert shown is not None
    lines = shown.group(1).strip().splitlines()
    wanted = methods.markdown(TABLES[name]()).splitlines()
    assert lines == wanted, "run: python -m jaxforget.methods README.md"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
