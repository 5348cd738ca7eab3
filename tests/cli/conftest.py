"""The command line called in this process, and what every refusal must look like."""

import dataclasses
import logging
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest
from cli.world import KEPT, World, build, digest

from jaxforget import cli as command_line


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def call(*args: str) -> int:
    """`jaxforget ARGS` in this process; returns its exit code."""
    old, sys.argv = sys.argv, ["jaxforget", *map(str, args)]
    try:
        command_line.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory) -> pathlib.Path:
    """Directory of a run that ended; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert call("unlearn", world.config("unlearn"), f"run_dir={folder}", "-q") == 0
    shutil.rmtree(folder / "cache")
    return folder


@pytest.fixture
def run_dir(finished, tmp_path) -> pathlib.Path:
    """A copy of a finished run: what a careless command might damage."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def cli(capsys):
    def run(*args: str) -> Outcome:
        capsys.readouterr()
        code = call(*args)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    yield run
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def refused(cli, world, run_dir):
    """Runs a command that must be refused; checks all that holds for every refusal.

    The run directory holds an earlier export, checkpoints and results of which no byte may
    change, and neither may the inputs. Returns the message.
    """

    def run(command: str, *args: str, says: tuple[str, ...], config: str | None = None) -> str:
        (run_dir / ".identity.json").unlink(missing_ok=True)  # or it would be refused for itself
        before = digest(run_dir, KEPT), digest(world.root)
        config = world.config(command) if config is None else config
        got = cli(command, config, f"run_dir={run_dir}", *args)
        check_refusal(got, says)
        assert "training" not in got.err  # nothing is computed that would be thrown away
        assert (digest(run_dir, KEPT), digest(world.root)) == before
        return got.err

    return run


def check_refusal(got: Outcome, says: tuple[str, ...], progress: tuple[str, ...] = ()) -> None:
    """One message with these parts, no traceback, nothing on stdout; before it only progress."""
    assert got.code == 2, got
    assert got.out == ""
    before, said, message = f"\n{got.err}".partition("\nerror: ")
    assert said and "\nerror: " not in message, got.err
    for line in filter(None, before.split("\n")):
        assert line.endswith(" ...") or line.startswith(("WARNING: ", *progress)), got.err
    assert "Traceback" not in message
    for part in says:
        assert part in message, f"{part!r} is not in: {message}"


def command(
    *args: object, file_limit: int | None = None, environment: Mapping[str, str] | None = None
) -> Outcome:
    """`jaxforget ARGS` in a process of its own, as a shell runs it.

    With `file_limit` the kernel refuses to write any file beyond so many bytes, whoever asks:
    Python, Rust or C++, in whatever thread.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit or -1, file_limit or -1))

    done = subprocess.run(
        [sys.executable, "-m", "jaxforget.cli", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        preexec_fn=limit if file_limit else None,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
