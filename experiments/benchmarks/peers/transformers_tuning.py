"""Steps a second of SFT and GKD in torch, and the peak of the memory: SECONDS, CASE, two shapes.

CASE is "sft", "gkd, offline" or "gkd, on-policy"; the shapes are those of student and teacher, as
config.json has them. All logits are in memory, as in transformers' and TRL's trainers. Rate and
peak are of torch as it comes; the other rate is where it keeps freed memory, as no user gets it.
"""

import json
import os
import sys

import torch
import transformers_model
from rate import both_ways

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
ROWS, PROMPT, NEW = 16, 64, 64


def descender(student):
    """Makes a function that does one step of a loss, or of SFT on the texts that it is given."""
    # The fused Adam is torch's fastest on a CPU.
    optimizer = torch.optim.Adam(student.parameters(), 3e-4, fused=True)

    def descend(text=None, loss=None):
        if text is not None:
            loss = student(input_ids=text, labels=text, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return 1

    return descend


def stepper(case, student_shape, teacher_shape):
    """Makes a function that does one step."""
    student = transformers_model.make(student_shape).train()
    descend = descender(student)
    text = torch.randint(3, student_shape["vocab_size"], (ROWS, PROMPT + NEW))
    if case == "sft":
        return lambda: descend(text)

    from trl.experimental.gkd import GKDTrainer

    teacher = transformers_model.make(teacher_shape).eval()

    def step():
        rows = text
        if case == "gkd, on-policy":
            student.eval()
            # A copy, which autograd may keep.
            rows = transformers_model.generate(student, text[:, :PROMPT], NEW).clone()
            student.train()
        logits = student(input_ids=rows, use_cache=False).logits
        with torch.no_grad():
            of_teacher = teacher(input_ids=rows, use_cache=False).logits
        labels = rows.clone()
        labels[:, :PROMPT] = -100
        return descend(
            loss=GKDTrainer.generalized_jsd_loss(
                logits[:, :-1], of_teacher[:, :-1], labels=labels[:, 1:], beta=0.5
            )
        )

    return step


def main():
    """Prints the rate and the peak in bytes."""
    seconds, case, *shapes = float(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    rate, kept, peak = both_ways(stepper(case, *shapes), seconds)
    print(json.dumps({"steps": rate, "kept_steps": kept, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
