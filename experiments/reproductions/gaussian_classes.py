"""A linear classifier of Gaussian classes, learnt with the loss of any f-divergence."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kullback.core import ranges, regularizers, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Gaussian classes with means from N(0, I), for a linear model."""

    classes: int = 20
    dimension: int = 16
    noise: float = 0.7  # Standard deviation of a class about its mean.
    num_train: int = 2_000
    num_test: int = 4_000
    steps: int = 400  # Of Adam, on all of the training set.
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "dimension", "num_train", "num_test", "steps")
        ranges.at_least(2, self, "classes")


def classifier(
    sizes: Config, divergence: regularizers.Divergence
) -> Callable[[int], dict[str, float]]:
    """Returns seed -> accuracies and mean support of a linear model's predictions."""

    @jax.jit
    def program(key: types.Key) -> dict[str, jax.Array]:
        mean_key, *keys = jax.random.split(key, 5)
        means = jax.random.normal(mean_key, (sizes.classes, sizes.dimension))

        def draw_points(label_key: types.Key, noise_key: types.Key, count: int) -> Any:
            labels = jax.random.randint(label_key, (count,), 0, sizes.classes)
            noise = jax.random.normal(noise_key, (count, sizes.dimension))
            return means[labels] + sizes.noise * noise, labels

        train = draw_points(keys[0], keys[1], sizes.num_train)
        test = draw_points(keys[2], keys[3], sizes.num_test)

        def logits(params: Any, points: jax.Array) -> jax.Array:
            return points @ params["w"] + params["b"][None]

        def loss(params: Any) -> jax.Array:
            points, labels = train
            return jnp.mean(regularizers.loss(logits(params, points), labels, divergence))

        optimizer = optax.adam(sizes.learning_rate)
        shape = sizes.dimension, sizes.classes
        params = {"w": jnp.zeros(shape), "b": jnp.zeros(sizes.classes)}

        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            params, opt_state = state
            value, gradient = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        state = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, state, length=sizes.steps)

        def accuracy(points: jax.Array, labels: jax.Array) -> jax.Array:
            return jnp.mean(jnp.argmax(logits(params, points), -1) == labels)

        predicted = regularizers.softargmax(logits(params, test[0]), divergence)
        return {
            "train_accuracy": accuracy(*train),
            "test_accuracy": accuracy(*test),
            "support": jnp.mean(jnp.sum(predicted > 0, -1)),
            "loss": losses[-1],
        }

    return lambda seed: {name: float(x) for name, x in program(jax.random.key(seed)).items()}
