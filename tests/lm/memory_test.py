"""Tests of lm/memory.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import trees, types
from kullback.lm import (
    chunked,
    gemma,
    gemma_config,
    layers,
    lora,
    memory,
    narrow_weights,
    preferences,
    quantisation,
    reward_model,
    sft,
    tuning,
)
from kullback.lm.batches import Sequences

CONFIG = dataclasses.replace(gemma.PRESETS["tiny"], vocab_size=32_768, pattern=2, num_layers=4)
SETTING = memory.Setting(rows=8, width=64, micro_batches=1, chunk=512, remat=False)


def shapes(agent: types.Agent) -> types.LearnerState:
    return jax.eval_shape(agent.learner.init, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_the_sum_is_what_xla_reports(remat: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "LARGE", 2**20)
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 2**20)
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 2**18)
    learning = tuning.Config(batch_size=8, max_prompt_length=32, max_new_tokens=32)
    config = dataclasses.replace(CONFIG, remat=remat)
    agent = sft.make(gemma.make(config), config=sft.Config(learning=learning))
    state, rows = shapes(agent), np.zeros((8, 64), np.int32)
    batch = types.Batch.of(Sequences(rows, rows > 0, rows, rows, np.zeros(8, np.int32)))
    program = jax.jit(agent.learner.step, donate_argnums=0).lower(state, batch).compile()
    analysis = program.memory_analysis()
    assert analysis is not None
    reported = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    setting = dataclasses.replace(SETTING, remat=remat)
    needs = memory.of_learning(config, state, types.NO_CONSTANTS, setting)
    assert 0.85 * reported < needs.total < 1.15 * reported
    assert 0 < needs.moments - 2 * needs.parameters < 64  # Besides Adam's moments its counts.
    assert needs.frozen == 0


def reward_agent(config: gemma.Config, **fields: Any) -> types.Agent:
    learning = tuning.Config(
        batch_size=4, max_prompt_length=32, max_new_tokens=32, first_moment_dtype="bfloat16"
    )
    settings = reward_model.Config(learning=learning, **fields)
    return reward_model.make(gemma.make(config), settings)


PAIRS = dataclasses.replace(SETTING, rows=4, chunk=0, per_row=2)


@pytest.mark.slow
def test_the_sum_of_a_reward_model_is_what_xla_reports():
    config = dataclasses.replace(CONFIG, vocab_size=512, num_layers=8)
    agent = reward_agent(config)
    state, rows = shapes(agent), np.zeros((4, 64), np.int32)
    answer = Sequences(rows, rows > 0, rows, rows, np.zeros(4, np.int32))
    batch = types.Batch.of(preferences.Pairs(answer, answer))
    program = jax.jit(agent.learner.step, donate_argnums=0).lower(state, batch).compile()
    analysis = program.memory_analysis()
    assert analysis is not None
    reported = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    needs = memory.of_learning(config, state, types.NO_CONSTANTS, PAIRS)
    assert 0.85 * reported < needs.total < 1.15 * reported


def test_what_learns_and_how_decide_the_memory_of_a_reward_model():
    def needs(setting: memory.Setting, **fields: Any) -> memory.Needs:
        state = shapes(reward_agent(CONFIG, **fields))
        return memory.of_learning(CONFIG, state, types.NO_CONSTANTS, setting)

    pairs, texts = needs(PAIRS), needs(dataclasses.replace(PAIRS, per_row=1))
    assert pairs.activations == pytest.approx(2 * texts.activations, rel=0.01)
    assert pairs.logits == 0 and pairs.gradients == pairs.parameters
    assert 0 < pairs.moments - 1.5 * pairs.parameters < 64
    head = needs(dataclasses.replace(PAIRS, networks=0), trains="head")
    assert head.gradients == head.activations == 0 and head.moments < 1e-3 * head.parameters


@pytest.mark.slow
def test_the_sum_of_adapters_is_what_xla_reports(monkeypatch: pytest.MonkeyPatch):
    """The base is there once, and neither gradients nor moments are of its size.

    The backward pass reads fewer arrays than that of all weights.
    """
    monkeypatch.setattr(layers, "LARGE", 2**20)
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 2**20)
    settings = lora.Config(rank=4, train_tokens=("<eos>", 7))
    learning = tuning.Config(batch_size=8, max_prompt_length=32, max_new_tokens=32, lora=settings)
    agent = sft.make(gemma.make(CONFIG), config=sft.Config(learning=learning))
    state, rows = shapes(agent), np.zeros((8, 64), np.int32)
    batch = types.Batch.of(Sequences(rows, rows > 0, rows, rows, np.zeros(8, np.int32)))
    base = jax.eval_shape(gemma.make(CONFIG).init, jax.random.key(0))
    constants = types.Constants(base=trees.joined(base, lora.row_ids((1, 7))))
    step = jax.jit(agent.learner.step, donate_argnums=0)
    analysis = step.lower(state, batch, constants).compile().memory_analysis()
    assert analysis is not None
    reported = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    setting = dataclasses.replace(SETTING, adapters=settings)
    needs = memory.of_learning(CONFIG, state, constants, setting)
    assert needs.parameters == 4 * lora.num_params(CONFIG, settings)
    assert needs.gradients < needs.frozen / 10
    assert 0.8 * reported < needs.total < 1.2 * reported
    whole = memory.of_learning(CONFIG, state, constants, SETTING)
    assert needs.activations < 0.85 * whole.activations


def test_frozen_models_and_target_parameters_count():
    agent = sft.make(gemma.make(CONFIG))
    state = shapes(agent)
    alone = memory.of_learning(CONFIG, state, types.NO_CONSTANTS, SETTING)
    frozen = types.Constants(teacher=jnp.zeros((1000,)), start=jnp.zeros((24,), jnp.bfloat16))
    of_reward = (None, {"w": jnp.zeros((3,))})
    anchored = state._replace(targets={"anchor": state.params})
    both = memory.of_learning(CONFIG, anchored, (frozen, of_reward), SETTING)
    assert both.frozen == 4060
    assert both.moments == alone.moments + alone.parameters
    assert both.total == alone.total + 4060 + alone.parameters


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "q4_0"])
def test_a_base_in_few_bits_counts_its_codes_and_the_block_that_is_open(
    storage: gemma_config.Storage,
):
    """Codes, scales and norms are there; of the float matrices nothing but the largest block."""
    config = dataclasses.replace(CONFIG, embed_dim=32, hidden_dim=64)
    settings = lora.Config(rank=4)
    state = shapes(sft.make(gemma.make(config, settings)))
    base = jax.tree.map(
        lambda x: jnp.zeros(x.shape), jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    )
    narrow = narrow_weights.narrowed(base, quantisation.of_storage(storage))
    setting = dataclasses.replace(SETTING, adapters=settings)
    whole, few = (
        memory.of_learning(config, state, types.Constants(base=x), setting) for x in (base, narrow)
    )
    numbers = sum(x.size for x in jax.tree.leaves(base))
    assert whole.frozen == 4 * numbers
    norms = sum(x.size for x in jax.tree.leaves(base) if x.size <= 4 * 32 * 2)
    bits = {"bfloat16": 16, "int8": 8, "q4_0": 4}[storage]
    codes = bits * (numbers - norms) // 8
    table = 4 * 32 * 32_768 // 2  # The table in two blocks, of float32.
    assert 0 < few.frozen - codes - table < 0.2 * codes
    assert few._replace(frozen=0) == whole._replace(frozen=0)


def test_a_step_that_does_not_fit_is_refused_with_one_that_does():
    state = shapes(sft.make(gemma.make(CONFIG)))

    def needs(setting: memory.Setting) -> memory.Needs:
        return memory.of_learning(CONFIG, state, types.NO_CONSTANTS, setting)

    wanted, thrifty = needs(SETTING), needs(dataclasses.replace(SETTING, remat=True))
    assert thrifty.total < wanted.total
    memory.require(needs, SETTING, wanted.total)
    with pytest.raises(ValueError, match=r"learning takes .* GB|MB .*--model-flag remat=True"):
        memory.require(needs, SETTING, thrifty.total)
    with pytest.raises(ValueError, match="take an optimiser with smaller moments"):
        memory.require(needs, SETTING, wanted.parameters)


def test_thriftier_settings_divide_the_rows():
    others = list(SETTING.thriftier())
    assert [other.micro_batches for other in others] == [1, 2, 4, 8]
    assert all(other.remat for other in others)
