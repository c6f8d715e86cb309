"""Default learning rates of trained models, by size, where a run's settings name none.

The defaults of configurations are for models of some millions of parameters, as tests and
reproductions train; they would wreck a published model. Those here are rules of thumb of others:

    supervised, 100M to 500M parameters    5e-5   transformers' TrainingArguments, and Google's
                                                  guide to tuning all of Gemma 3 270M
    supervised, more                       2e-5   TRL's SFTConfig, and Zephyr's Gemma 7B
    from rewards, 100M and more            1e-6   TRL's RLOOConfig, and the paper on WARP
    by BOND, the same                      3e-6   its paper, for Gemma 2B and 7B
    policies by pairs, 100M and more       1e-6   TRL's DPOConfig
    their value network                    9e-6   OpenRLHF's examples

    adapters, supervised, 100M and more    2e-4   QLoRA, for models up to 13B
    adapters, from rewards or pairs        10 times the rates of whole weights

Reward models keep their default at every size: it is that of the paper on WARM.
"""

import dataclasses

from kullback import lm
from kullback.experiments.runs import models, resolved, settings
from kullback.lm import gemma

# Rates of what learns from rewards and has its own, by algorithm: of whole weights, of adapters.
REWARDED = {"bond": (3e-6, 3e-5), "warp-bond": (3e-6, 3e-5)}
SMALL, MIDDLE = 100_000_000, 500_000_000  # Parameters.


def by_size(algorithm: str, num_params: int, *, adapters: bool = False) -> dict[str, float]:
    """Returns learning rates by bare name of the setting; {} keeps the configuration's.

    Args:
      algorithm: of the run.
      num_params: of the model.
      adapters: whether these alone are learnt.
    """
    entry = lm.ALGORITHMS[algorithm]
    if num_params < SMALL or entry.is_judge:
        return {}
    if entry.takes_reward or entry.reads_pairs:
        whole, of_adapters = REWARDED.get(algorithm, (1e-6, 1e-5))
        if adapters:
            return {"learning_rate": of_adapters, "value_learning_rate": 9e-5}
        return {"learning_rate": whole, "value_learning_rate": 9e-6}
    if adapters:
        return {"learning_rate": 2e-4}
    return {"learning_rate": 5e-5 if num_params <= MIDDLE else 2e-5}


def sized(named: resolved.Resolved) -> resolved.Resolved:
    """Returns the settings of a run that begins, with the learning rates of its model's size.

    A plan's own rates stay, and so do those of a preset, which has learnt nothing yet.

    Raises:
      ValueError: if the model's files are damaged.
    """
    plan = named.plan
    if plan.agent not in lm.ALGORITHMS or not plan.model or plan.model in gemma.PRESETS:
        return named
    config = models.shape(plan.model)
    if config is None:
        return named  # It is refused when the run is set up.
    num_params = gemma.num_params(config).total
    has_adapters = bool(named.config.learning.lora)
    defaults = by_size(plan.agent, num_params, adapters=has_adapters)
    hints = {name: hint for name, hint, _ in settings.fields(named.config)}
    given = settings.read(hints, plan.settings)
    rates = {
        name: defaults[bare]
        for name in hints
        if (bare := name.rpartition(".")[2]) in defaults and name not in given
    }
    if not rates:
        return named
    note = (
        f"{settings.shown(rates, list(rates))}: the default for a trained model of "
        f"{num_params / 1e6:,.0f} million parameters, a rule of thumb; --set sets another"
    )
    return dataclasses.replace(
        named,
        config=settings.replace(named.config, dict(rates)),
        by_size=rates,
        notes=(*named.notes, note),
    )
