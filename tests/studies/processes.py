"""Start the command line in several local processes that form one run."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import yaml

LIMIT = 120  # seconds for all processes of a run


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
                "PYTHONFAULTHANDLER": "1",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes} "
                "--xla_backend_optimization_level=0",
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
    deadline = time.monotonic() + LIMIT
    return [_wait(child, deadline) for child in children]


def _wait(child: subprocess.Popen, deadline: float) -> Ended:
    try:
        output, errors = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler tells where it hangs
        output, errors = child.communicate()
    return Ended(child.returncode, output, errors)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
