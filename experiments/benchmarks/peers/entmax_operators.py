"""Calls a second of losses of labels with their gradient: SECONDS, ROWS, VOCABULARY, SCALE.

Cross-entropy of torch, and alpha = 1.5 of entmax: by its exact algorithm, which sorts all logits
(`entmax15` and `entmax15_loss` as they come) or the largest of them and more where those do not do
(`Entmax15Loss` as it comes), and by bisection.
"""

import json
import os
import sys

import entmax
import torch
from rate import best_rate

ALPHA, HALVINGS, LARGEST = 1.5, 50, 100  # The latter two are its defaults.


def differentiator(loss_of, logits, labels):
    """Makes a function that computes the mean loss and its gradient."""

    def work():
        logits.grad = None
        loss_of(logits, labels).mean().backward()
        return 1

    return work


def main():
    """Prints rates by loss."""
    seconds, rows, vocabulary, scale = (float(word) for word in sys.argv[1:])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    logits = (scale * torch.randn(int(rows), int(vocabulary))).requires_grad_()
    labels = torch.randint(0, int(vocabulary), (int(rows),))
    losses = {
        "torch cross-entropy": torch.nn.CrossEntropyLoss(reduction="none"),
        "entmax exact": entmax.Entmax15Loss(k=None, reduction="none"),
        "entmax exact, largest first": entmax.Entmax15Loss(k=LARGEST, reduction="none"),
        "entmax bisection": entmax.EntmaxBisectLoss(alpha=ALPHA, n_iter=HALVINGS, reduction="none"),
    }
    rates = {}
    for name, loss_of in losses.items():
        work = differentiator(loss_of, logits, labels)
        work()
        rates[name] = best_rate(work, seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
