"""Start the command line in several local processes that form one run."""

import os
import pathlib
import socket
import subprocess
import sys
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    output: str
    errors: str


def run(command: str, tree: dict, file: pathlib.Path, *, processes: int = 2) -> list[Ended]:
    """`jaxforget command` over 8 virtual devices, divided among local processes.

    Args:
      command: for example "unlearn".
      tree: its configuration, written to `file`.
      file: YAML.
      processes: how many, each with 8 / processes devices.
    """
    file.write_text(yaml.safe_dump(tree))
    arguments = [sys.executable, "-m", "jaxforget.cli", command, str(file), "--json"]
    address = f"127.0.0.1:{_free_port()}"
    children = [
        subprocess.Popen(
            arguments,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        ended = [(child, *child.communicate(timeout=300)) for child in children]
    finally:
        for child in children:
            child.kill()
    return [Ended(child.returncode, output, errors) for child, output, errors in ended]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
