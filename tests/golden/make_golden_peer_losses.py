"""Writes peer_losses.npz: open-unlearning's losses and their gradients, computed with PyTorch.

    python make_golden_peer_losses.py        # needs torch and numpy

The formulas are written down here as the peer's trainers compose them.
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional as F

B, T, V, BETA = 3, 9, 120, 0.7


def sequence_losses(z, y):
    losses = F.cross_entropy(
        z[:, :-1].transpose(-1, -2), y[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.sum(-1)


def token_losses(z, y):
    flat, labels = z[:, :-1].reshape(-1, V), y[:, 1:].reshape(-1)
    losses = F.cross_entropy(flat, labels, ignore_index=-100, reduction="none")
    return losses[labels != -100]


def gain(z, ref, y):
    return sequence_losses(ref, y) - sequence_losses(z, y)


def undial(z, ref, y):
    shifted = y[:, 1:]
    mask = torch.zeros(B, T - 1, V, dtype=z.dtype)
    rows, columns = torch.arange(B).view(-1, 1, 1), torch.arange(T - 1).view(1, -1, 1)
    mask[rows, columns, shifted.unsqueeze(-1)] = 1.0
    soft = F.softmax(ref[:, :-1] - mask * BETA, dim=-1)
    losses = F.cross_entropy(z[:, :-1].reshape(-1, V), soft.reshape(-1, V), reduction="none")
    return losses.mean()


def spread(z, y):
    mask = y != -100
    value = (z.max(-1).values - z.mean(-1)) ** 2
    return (value * mask).sum() / mask.sum()


def weighted(z, y, b1, b2):
    losses = token_losses(z, y)
    p = torch.exp(-losses).detach()
    return -(p**b1 * (1 - p) ** b2 * losses).mean()


def main():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    arrays = {"z": draw(B, T, V), "ref": draw(B, T, V), "za": draw(B, T, V), "refa": draw(B, T, V)}
    labels = {}
    for name in ("y", "ya"):
        y = torch.randint(0, V, (B, T), generator=generator)
        for row, (start, stop) in enumerate(((3, 8), (2, 9), (5, 7))):
            y[row, :start], y[row, stop:] = -100, -100
        labels[name] = y
    y, ya = labels["y"], labels["ya"]
    cases = {
        "nll": lambda z: F.cross_entropy(z[:, :-1].reshape(-1, V), y[:, 1:].reshape(-1)),
        "kl_retain": lambda z: F.kl_div(
            F.log_softmax(z, -1).view(-1, V),
            F.log_softmax(arrays["ref"], -1).view(-1, V),
            reduction="batchmean",
            log_target=True,
        ),
        "npo": lambda z: (-2 / BETA * F.logsigmoid(-BETA * gain(z, arrays["ref"], y))).mean(),
        "dpo": lambda z: (
            -2
            / BETA
            * F.logsigmoid(
                BETA * (gain(arrays["za"], arrays["refa"], ya) - gain(z, arrays["ref"], y))
            )
        ).mean(),
        "simnpo": lambda z: (
            -2
            / BETA
            * F.logsigmoid(BETA * (sequence_losses(z, y) / (y[:, 1:] != -100).sum(-1) - 0.3))
        ).mean(),
        "undial": lambda z: undial(z, arrays["ref"], y),
        "wga": lambda z: weighted(z, y, 1.5, 0.0),
        "satimp": lambda z: weighted(z, y, 1.5, 0.5),
        "spread": lambda z: spread(z, y),
    }
    found = {name: array.numpy() for name, array in {**arrays, **labels}.items()}
    for name, loss in cases.items():
        z = arrays["z"].clone().requires_grad_()
        value = loss(z)
        value.backward()
        found[f"{name}_value"], found[f"{name}_gradient"] = value.detach().numpy(), z.grad.numpy()
    compact = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in found.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("peer_losses.npz"), **compact)


if __name__ == "__main__":
    main()
