"""What accelerators can do, from their makers' data sheets; rates are peaks."""

from dataclasses import dataclass

from jaxforget.engine.errors import UserError, did_you_mean

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device, and how it is linked to its neighbours.

    Attributes:
      flops: dense matrix products in bfloat16, FLOP/s.
      memory: bytes of it.
      bandwidth: of its memory, bytes/s.
      link: bytes/s that it sends to its neighbours at once, within `pod` devices.
      beyond: bytes/s where a mesh is larger than that.
      pod: devices that are linked directly.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    beyond: float
    pod: int


DEVICES = {
    "tpu-v4": Device(275e12, 32 * _GIB, 1.2e12, 150e9, 6e9, 4096),
    "tpu-v5e": Device(197e12, 16 * _GIB, 0.82e12, 100e9, 6e9, 256),
    "tpu-v5p": Device(459e12, 95 * _GIB, 2.77e12, 300e9, 6e9, 8960),
    "tpu-v6e": Device(918e12, 32 * _GIB, 1.64e12, 224e9, 6e9, 256),
    "a100": Device(312e12, 80 * _GIB, 2.0e12, 300e9, 25e9, 8),
    "h100": Device(989e12, 80 * _GIB, 3.35e12, 450e9, 50e9, 8),
    "h200": Device(989e12, 141e9, 4.8e12, 450e9, 50e9, 8),
}
"""By name: TPUs' links are half of what is stated for both directions, GPUs' NVLink and one
400 Gbit/s (A100: 200) network card each."""


def devices_named(text: str) -> tuple[str, Device, int]:
    """(name, device, how many) from text such as "tpu-v5e:16" or "h100".

    Raises:
      UserError: an unknown device, or no count of at least 1 behind the colon.
    """
    name, _, count = text.partition(":")
    if name not in DEVICES:
        raise UserError(f"devices: {name!r}. {did_you_mean(name, DEVICES)}")
    if count and not (count.isdigit() and int(count) > 0):
        raise UserError(f"devices: {text!r}; allowed is a name and a count, such as '{name}:8'")
    return name, DEVICES[name], int(count or 1)
