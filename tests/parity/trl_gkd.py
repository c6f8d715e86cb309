"""Writes what TRL's generalised JSD gives on random logits: FOLDER (trl_gkd.npz).

For an environment with trl and torch (CPU). Arrays: student and teacher logits float32 [B, T, V],
labels int64 [B, T], -100 where a token does not count (in one sequence nowhere). For each row of
settings [n, 2], beta and temperature: loss float64 [n], the mean over all tokens that count, from
logits cast to float64; its gradient with respect to the student's logits float64 [n, B, T, V];
float32_loss [n] from the float32 logits.
"""

import pathlib
import sys

import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer

B, T, V = 4, 6, 11
# Beta 0 and 1 are TRL's names for KL(teacher || student) and KL(student || teacher).
SETTINGS = [(b, 1.0) for b in (0.0, 0.1, 0.5, 0.9, 1.0)] + [(0.0, 2.0), (0.3, 0.7), (1.0, 0.5)]


def main():
    """Writes the file."""
    folder = pathlib.Path(sys.argv[1])
    rng = np.random.default_rng(0)
    student, teacher = (3 * rng.normal(size=(2, B, T, V))).astype(np.float32)
    labels = rng.integers(0, V, (B, T))
    for row, (start, end) in enumerate([(0, 6), (2, 5), (1, 2), (0, 0)]):
        labels[row, :start] = labels[row, end:] = -100
    losses, gradients, float32_losses = [], [], []
    for beta, temperature in SETTINGS:
        settings = {"labels": torch.tensor(labels), "beta": beta, "temperature": temperature}
        logits = torch.tensor(student.astype(np.float64), requires_grad=True)
        loss = GKDTrainer.generalized_jsd_loss(
            logits, torch.tensor(teacher.astype(np.float64)), **settings
        )
        loss.backward()
        losses.append(loss.item())
        gradients.append(logits.grad.numpy())
        float32_losses.append(
            GKDTrainer.generalized_jsd_loss(
                torch.tensor(student), torch.tensor(teacher), **settings
            ).item()
        )
    np.savez_compressed(
        folder / "trl_gkd.npz",
        student=student,
        teacher=teacher,
        labels=labels,
        settings=np.array(SETTINGS),
        loss=np.array(losses),
        gradient=np.stack(gradients),
        float32_loss=np.array(float32_losses, np.float32),
    )


if __name__ == "__main__":
    main()
