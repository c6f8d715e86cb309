"""A learner step of a language model: 16 rows of 128 tokens, by SFT and by GKD.

`python -m kullback.experiments.benchmarks.tuning CASE` prints the peak of the memory of a process
that does nothing else. It differs from one to the next by XLA's temporaries, which are 0.4 GB for
SFT: sooner or later a small piece may lie where they were.
"""

import json
import statistics
import sys
from collections.abc import Callable

import jax
import numpy as np

from kullback.core import platform, sequences, types
from kullback.experiments.benchmarks import flops, language_models, machine, peer, rows, timing
from kullback.lm import completions, gemma, gkd, sft, tuning

ROWS, PROMPT, NEW = 16, 64, 64
KEEPING = "torch that keeps freed memory"
STEPS_OF_PEAK = 20  # Some go by until the heap has its shape.
# Case -> the ratio to the peer, as it comes, that is wanted.
CASES = {"sft": 1.0, "gkd, offline": 1 / 0.6, "gkd, on-policy": 1 / 0.6}
STUDENTS = {
    name: language_models.SMALL if name == "sft" else language_models.STUDENT for name in CASES
}
LEARNING = tuning.Config(
    batch_size=ROWS, max_prompt_length=PROMPT, max_new_tokens=NEW, reduction="token"
)


def agent(case: str, model: gemma.Model, teacher: gemma.Model) -> types.Agent:
    """Makes the agent; its loss is the mean over a batch's tokens, as the peers' is."""
    if case == "sft":
        return sft.make(model, sft.Config(learning=LEARNING))
    fraction = 1.0 if case == "gkd, on-policy" else 0.0
    config = gkd.Config(divergence="jsd-0.5", student_fraction=fraction, learning=LEARNING)
    return gkd.make(model, teacher, config)


def stepper(case: str) -> Callable[[], float]:
    """Makes a function that does one iteration of the loop over sequences and returns 1."""
    model, teacher = gemma.make(STUDENTS[case]), gemma.make(language_models.SMALL)
    learns = agent(case, model, teacher)
    params = None if case == "sft" else jax.jit(teacher.init)(jax.random.key(1))
    constants = types.Constants(teacher=params)
    loop = sequences.make(learns, source(model, learns, case), 0, constants=constants)
    return timing.advancing(loop, 1)


def source(model: gemma.Model, learns: types.Agent, case: str) -> sequences.Source:
    """Makes a source of the same rows at each step, or of samples from the same prompts."""
    num_prompt = 1 if case == "sft" else PROMPT
    stored = language_models.answered(model.config, ROWS, PROMPT + NEW, num_prompt)
    prompts = language_models.prompts(model.config, ROWS, PROMPT)
    if case != "gkd, on-policy":
        return sequences.Source(ROWS, example=stored, stored=lambda step, count: stored)
    sampling = sequences.Sampling(
        num_rows=lambda step: ROWS,
        prompts=lambda step, count: prompts,
        sample=jax.jit(completions.of_policy(learns.policy, model, NEW).sequences),
        score=lambda rows, drawn: np.zeros(ROWS, np.float32),
    )
    return sequences.Source(ROWS, example=stored, sampling=sampling)


def cost(case: str) -> int:
    """Counts the operations of a step: student forward and backward, teacher, sampling.

    The gradient of the weights costs as much as a pass, and so does that of the inputs.
    """

    def one_pass(config: gemma.Config, predicted: int) -> int:
        return flops.decoder(config, range(PROMPT + NEW)) + predicted * flops.unembedding(config)

    student, teacher = STUDENTS[case], language_models.SMALL
    if case == "sft":
        return ROWS * 3 * one_pass(student, PROMPT + NEW - 1)
    total = 3 * one_pass(student, NEW) + one_pass(teacher, NEW)
    if case == "gkd, on-policy":
        total += flops.decoder(student, range(PROMPT + NEW - 1)) + NEW * flops.unembedding(student)
    return ROWS * total


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside torch: transformers' model and TRL's loss, with all logits in memory."""
    platform.run_large_programs()
    ours = timing.rates({case: stepper(case) for case in CASES}, budget.seconds)

    def theirs() -> dict[str, float]:
        by_case = {}
        for case, student in STUDENTS.items():
            shapes = map(language_models.described, (student, language_models.SMALL))
            rates = run_peer("transformers", "tuning", budget.seconds, case, *shapes)
            by_case |= {f"transformers, {case}, {key}": rate for key, rate in rates.items()}
        return by_case

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    results = []
    for case, target in CASES.items():
        peaks = [peer.ours("tuning", case)["peak_bytes"] for _ in range(budget.rounds)]
        memory = {"peak_bytes": statistics.median(peaks), "most_peak_bytes": max(peaks)}
        of_peer = f"transformers, {case}, "
        if f"{of_peer}peak_bytes" in best:
            memory["peer_peak_bytes"] = best[f"{of_peer}peak_bytes"]
        for key, name, wanted in (("steps", "torch", target), ("kept_steps", KEEPING, None)):
            results.append(
                rows.Row(
                    name=f"step of {case}",
                    ours=best[case],
                    unit="steps/s",
                    **rows.of_peer(best, of_peer + key, name),
                    target_ratio=wanted,
                    limit_share=best[case] * cost(case) / best["sgemm"],
                    details={**memory, "sgemm": best["sgemm"]},
                )
            )
    return results


def main() -> None:
    """Prints the peak of a process that has done some steps."""
    platform.run_large_programs()
    work = stepper(sys.argv[1])
    for _ in range(STEPS_OF_PEAK):
        work()
    print(json.dumps({"peak_bytes": machine.peak_memory()}))


if __name__ == "__main__":
    main()
