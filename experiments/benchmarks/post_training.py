"""A step of GRPO, PPO and DPO beside TRL's trainers: 16 texts of 64 + 64 tokens, float32.

GRPO and PPO have the policy and the reward model of `reinforce`. GRPO has four texts of each
prompt; PPO one, four epochs, and a value network of the policy's shape. TRL's last PPO is that of
version 1.12, so its peer has an environment of its own. A step writes, scores and learns; it is
measured without writing and scoring, too. DPO has 8 pairs and what the reference says of them,
which either side computes before it is timed. Both begin with the same weights, so that their
losses before the first step must agree.

`python -m kullback.experiments.benchmarks.post_training CASE SECONDS` is our side, in a process
that does nothing else: it prints steps a second and the peak of the memory.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from kullback.core import loops, names, platform, sequences, types
from kullback.experiments.benchmarks import (
    flops,
    language_models,
    machine,
    peer,
    published,
    reinforce,
    rows,
    timing,
)
from kullback.lm import dpo, gemma, preferences, tuning, variants
from kullback.lm.formats import hugging_face

PAIRS, PROMPT, NEW = 8, 64, 64
LEARNING = tuning.Config(batch_size=PAIRS, max_prompt_length=PROMPT, max_new_tokens=NEW)
TRL, KEEPING = "trl", "trl that keeps freed memory"
LOSS_DIFFERENCE = 1e-4  # Most, between the two sides' losses of one batch, nats.
GB = 1e9


class Case(NamedTuple):
    """An algorithm."""

    peer: str  # Environment of its TRL.
    target_ratio: float  # To TRL as it comes.
    variant: variants.Name = "reinforce"  # Of the policy gradient; of stored pairs it has no say.
    sizes: reinforce.Sizes | None = None  # None for stored pairs.


CASES = {
    "grpo": Case("transformers", 2.0, "grpo", reinforce.SIZES),  # Half of the peer's time.
    "ppo": Case("trl_ppo", 2.0, "ppo", reinforce.SIZES._replace(prompts=16, samples=1)),
    "dpo": Case("transformers", 1.0),
}


def pairs(config: gemma.Config) -> preferences.Pairs:
    """Draws pairs of random text, all of one length; the last id ends each answer, as for peers."""
    draw, end = np.random.default_rng(0).integers, config.vocab_size - 1
    prompt = draw(3, end, (PAIRS, PROMPT), np.int32)  # Special ids are below, and the end.
    ends = np.full((PAIRS, 1), end, np.int32)
    chosen, rejected = (
        np.concatenate([prompt, draw(3, end, (PAIRS, NEW - 1), np.int32), ends], 1)
        for _ in range(2)
    )
    return preferences.Pairs(*(language_models.whole(x, PROMPT) for x in (chosen, rejected)))


def initial(config: gemma.Config, seed: int) -> types.Params:
    """Returns random parameters; seed 0 is the policy of DPO, 1 its reference."""
    return jax.jit(gemma.make(config).init)(jax.random.key(seed))


def of_pairs(config: gemma.Config) -> loops.Loop:
    """Returns the loop of DPO."""
    model, drawn = gemma.make(config), pairs(config)
    policy, reference = (initial(config, seed) for seed in (0, 1))
    agent = dpo.make(model, dpo.Config(learning=LEARNING))
    read = jax.jit(functools.partial(dpo.log_probabilities, model, chunk=LEARNING.chunk))
    logs = [read(reference, x) for x in drawn]
    batch = dpo.Referred(drawn, np.stack(logs, 1))
    source = sequences.Source(PAIRS, example=batch, stored=lambda step, count: batch)
    return sequences.make(agent, source, 0, params=lambda: policy)


def ours(case: str, seconds: float) -> dict[str, float]:
    """Measures our side of a case: steps a second and the peak; of DPO the first loss, too."""
    sizes, variant = CASES[case].sizes, CASES[case].variant
    if sizes is None:
        loop = of_pairs(language_models.SMALL)
        _, (row,) = loop.rows(loop.advance(loop.init(), 1))
        rate = timing.best_rate(timing.advancing(loop, 1), seconds)
        return {"rate": rate, "peak_bytes": machine.peak_memory(), "loss": row["loss"]}
    rate = timing.best_rate(reinforce.small(sizes, variant), seconds)
    peak = machine.peak_memory()  # Of whole steps alone.
    learner_rate = timing.best_rate(reinforce.small(sizes, variant, is_kept=True), seconds)
    return {"rate": rate, "peak_bytes": peak, "learner_rate": learner_rate}


def cost(case: str) -> int:
    """Counts the operations of a step: of DPO, both answers of each pair, forward and backward."""
    policy, sizes = language_models.SMALL, CASES[case].sizes
    if sizes is not None:
        return reinforce.cost(policy, sizes, reinforce.SCORER, CASES[case].variant)
    one_pass = flops.decoder(policy, range(PROMPT + NEW)) + NEW * flops.unembedding(policy)
    return 3 * 2 * PAIRS * one_pass


def request(case: str, seconds: float, folder: pathlib.Path) -> tuple[object, ...]:
    """Returns the arguments of the peer's program; the folder gets what it reads of DPO."""
    config, sizes = language_models.SMALL, CASES[case].sizes
    if sizes is not None:
        shapes = map(language_models.described, (config, reinforce.SCORER))
        settings = sizes.settings(CASES[case].variant)
        return seconds, case, json.dumps([*sizes, settings.kl_coefficient]), *shapes
    for seed, name in enumerate(("policy", "reference")):
        if not (folder / name).is_dir():
            hugging_face.save(folder / name, config, initial(config, seed))
    texts = (np.asarray(x.tokens) for x in pairs(config))
    (folder / "pairs.json").write_text(json.dumps([x.tolist() for x in texts]))
    beta = dpo.Config().objective.beta
    return seconds, case, json.dumps([PAIRS, PROMPT, beta]), folder


def run(budget: timing.Budget, run_peer: peer.Peer, case: str) -> list[rows.Row]:
    """Measures one case.

    Args:
      budget: of each side.
      run_peer: runs a peer's program.
      case: a name of CASES.

    Raises:
      PeerError: if our side fails; a peer's failure is said in its rows.
    """
    if case not in CASES:
        raise ValueError(names.unknown("case", case, CASES))
    failures: list[str] = []
    peer.ENVIRONMENTS.mkdir(exist_ok=True)  # A disk, where /tmp may be memory.
    with tempfile.TemporaryDirectory(dir=peer.ENVIRONMENTS) as folder:
        arguments = request(case, budget.seconds, pathlib.Path(folder).absolute())

        def theirs() -> dict[str, float]:
            try:
                figures = run_peer(CASES[case].peer, "post_training", *arguments)
            except peer.PeerError as error:
                failures.append(f"{case}: {error}")
                return {}
            return {f"{TRL}, {key}": value for key, value in figures.items()}

        def our_side() -> dict[str, float]:
            return peer.ours("post_training", case, budget.seconds)

        best = timing.interleave([machine.sgemm(), our_side, theirs], budget.rounds)
    return compared(case, best, *failures[:1])


def compared(case: str, best: dict[str, float], failure: str = "") -> list[rows.Row]:
    """Returns rows of whole steps, learner steps and memory, beside TRL; of DPO, of the losses.

    Args:
      case: a name of CASES.
      best: our figures, the peer's after "trl, ", and "sgemm", the machine's, FLOP/s.
      failure: why there are none of the peer's.
    """
    told = {key.removeprefix(f"{TRL}, "): x for key, x in best.items() if key.startswith(TRL)}
    kept = {key.removeprefix("kept_"): x for key, x in told.items() if key.startswith("kept_")}
    sides = {TRL: published.Side(told, failure)} if told or failure else {}
    sides |= {KEEPING: published.Side(kept)} if kept else {}
    name = f"step of {case.upper()}"
    step = rows.Row(
        name=name,
        ours=best["rate"],
        unit="steps/s",
        target_ratio=CASES[case].target_ratio,
        limit_share=best["rate"] * cost(case) / best["sgemm"],
        details={"sgemm": best["sgemm"]},
    )
    results = published.beside(step, sides, "rate")
    if "learner_rate" in best:
        rate = best["learner_rate"]
        row = rows.Row(name=f"{name}, without writing and scoring", ours=rate, unit="steps/s")
        results += published.beside(row, sides, "learner_rate")
    memory = {"name": f"{name}, peak memory", "ours": best["peak_bytes"] / GB, "unit": "GB"}
    row = rows.Row(**memory, lower_is_better=True)
    results += published.beside(row, sides, "peak_bytes", GB)
    if "loss" in best and "loss" in told:
        difference = abs(best["loss"] - told["loss"])
        row = dataclasses.replace(row, name=f"{name}, first loss against TRL's", unit="nats")
        details = {"loss": best["loss"], "peer_loss": told["loss"]}
        row = dataclasses.replace(row, ours=difference, target=LOSS_DIFFERENCE, details=details)
        results.append(row)
    return results


def main() -> None:
    """Prints the figures of our side."""
    platform.run_large_programs()
    case, seconds = sys.argv[1:]
    print(json.dumps(ours(case, float(seconds))))


if __name__ == "__main__":
    main()
