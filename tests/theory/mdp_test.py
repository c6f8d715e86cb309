"""Tests of theory/mdp.py and theory/precision.py."""

import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.theory import garnet, mdp, solve
from kullback.theory.mdp import MDP

# State 0: action 0 stays, action 1 goes to 1 with 3/4. State 1 stays.
DENSE = np.array([[[1, 0], [0.25, 0.75]], [[0, 1], [0, 1]]], float)
REWARD = np.array([[0.0, 1.0], [2.0, 3.0]])


def test_golden_expectation():
    got = mdp.make(DENSE, REWARD, 0.5).expect(np.array([4.0, 8.0]))
    np.testing.assert_allclose(got, [[4, 0.25 * 4 + 0.75 * 8], [8, 8]])


def test_dense_and_sparse_are_the_same_process(garnets: MDP):
    one = jax.tree.map(lambda x: x[0], garnets)
    dense = np.zeros((12, 3, 12))
    for s, a, n in np.ndindex(12, 3, 3):
        dense[s, a, one.successors[s, a, n]] += one.probabilities[s, a, n]
    full = mdp.make(dense, one.reward, one.discount)
    v, policy = np.arange(12.0), np.random.default_rng(0).dirichlet(np.ones(3), 12)
    np.testing.assert_allclose(full.expect(v), one.expect(v), rtol=1e-13)
    np.testing.assert_allclose(full.expect(v), dense @ v, rtol=1e-13)
    expected = np.einsum("sa,sat->st", policy, dense)
    for process in (full, one):
        np.testing.assert_allclose(process.transitions(policy), expected, atol=1e-15)
        followed = process.follow(jnp.full(12, 2))
        np.testing.assert_allclose(followed.expect(v)[:, 0], dense[:, 2] @ v, rtol=1e-13)


def test_a_successor_may_come_twice():
    twice = mdp.make([[[0.5, 0.5]]], [[1.0]], 0.5, successors=[[[0, 0]]])
    np.testing.assert_allclose(twice.transitions(np.ones((1, 1))), [[1.0]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"discount": 1.0}, "discount must lie in [0, 1), got 1.0"),
        ({"discount": [0.9, 0.8]}, "discount must have shape ()"),
        ({"discount": None}, "discount must be real numbers, got object"),
        ({"discount": "a"}, "discount must be real numbers"),
        ({"probabilities": DENSE + 0j}, "probabilities must be real numbers, got complex128"),
        ({"reward": [["a", "b"], ["c", "d"]]}, "reward must be real numbers"),
        ({"reward": [[1.0], [2.0, 3.0]]}, "reward must be an array of numbers"),
        ({"probabilities": np.zeros((0, 2, 0))}, "a state, an action and a successor at least"),
        ({"probabilities": np.zeros((2, 0, 2))}, "a state, an action and a successor at least"),
        ({"probabilities": np.zeros((0, 2, 2, 2))}, "a state, an action and a successor at least"),
        (
            {"probabilities": np.stack([DENSE] * 3), "reward": np.zeros((2, 2))},
            "reward must have shape (3, 2, 2)",
        ),
        (
            {"probabilities": np.stack([DENSE] * 3), "reward": np.zeros((4, 2))},
            "reward must have shape (3, 2, 2)",
        ),
        ({"probabilities": np.stack([DENSE] * 2)}, "reward of shape (2, 2) is ambiguous"),
        ({"probabilities": DENSE[:, :, :1]}, "need `successors`"),
        ({"probabilities": DENSE[0]}, "must be [S, A, N]"),
        ({"reward": np.zeros((3, 2))}, "reward must have shape (2, 2)"),
        ({"reward": [[0, 1], [np.nan, 0]]}, "reward of state 1 and action 0 must be finite"),
        ({"initial": [0.5, 0.6]}, "initial must be a distribution"),
        (
            {"probabilities": [[[1, 0], [0.25, 0.7]], [[0, 1], [0, 1]]]},
            "the sum of the probabilities of state 0 and action 1 must be 1 within 1e-06, got "
            "0.95; divide each row by its sum",
        ),
        (
            {"probabilities": [[[1, 0], [0.25, 0.75]], [[-1, 2], [0, 1]]]},
            "a probability of state 1 and action 0 must be >= 0, got -1.0",
        ),
        (
            {"probabilities": [[[1, 0], [np.nan, 1]], [[0, 1], [0, 1]]]},
            "a probability of state 0 and action 1 must be >= 0, got nan",
        ),
        (
            {"successors": [[[0, 1], [0, 1]], [[0, 1], [2, 1]]]},
            "a successor of state 1 and action 1 must be in [0, 2), got 2",
        ),
        ({"successors": np.zeros((2, 2, 2))}, "successors must be integers, got float64"),
    ],
)
def test_what_is_no_process_is_refused(change: dict, message: str):
    arguments = {"probabilities": DENSE, "reward": REWARD, "discount": 0.9} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        mdp.make(**arguments)


def test_what_float32_rounded_is_normalised():
    dirichlet = np.random.default_rng(0).dirichlet(np.ones(50), (50, 4)).astype(np.float32)
    process = mdp.make(dirichlet, np.ones(50), 0.9, initial=np.full(50, 1 / 50, np.float32))
    sums = np.asarray(dirichlet.astype(np.float64)).sum(-1)
    assert np.max(np.abs(sums - 1)) > 1e-8  # There was something to do.
    np.testing.assert_allclose(np.sum(process.probabilities, -1), 1, rtol=1e-14)
    np.testing.assert_allclose(np.sum(process.initial), 1, rtol=1e-14)
    np.testing.assert_allclose(process.probabilities, dirichlet / sums[..., None], rtol=1e-14)
    with pytest.raises(ValueError, match="must be 1 within 1e-06"):
        mdp.make(0.99999 * dirichlet, np.ones(50), 0.9)


def test_a_discount_may_be_an_array_of_one():
    assert mdp.make(DENSE, REWARD, np.array([[0.9]])).discount.shape == ()
    batch = mdp.make(np.stack([DENSE] * 3), np.stack([REWARD] * 3), 0.9)
    np.testing.assert_array_equal(batch.discount, [0.9] * 3)
    # A reward [M, S] is of states.
    batch = mdp.make(np.stack([DENSE] * 3), [[1, 2], [3, 4], [5, 6]], 0.9)
    np.testing.assert_array_equal(batch.reward[1], [[3, 3], [4, 4]])


def test_keys_are_typed():
    mdp.check_key(jax.random.key(0))
    for make in (mdp.check_key, garnet.make):
        with pytest.raises(ValueError, match=r"got uint32 of shape \(2,\).*jax\.random\.key"):
            make(jax.random.PRNGKey(0))


def test_a_wrong_process_of_a_batch_is_named():
    batch = np.stack([DENSE, DENSE])
    batch[1, 0, 1] = 0.7, 0.7
    with pytest.raises(ValueError, match="state 0 and action 1 of process 1"):
        mdp.make(batch, np.stack([REWARD, REWARD]), [0.9, 0.9])


@pytest.mark.parametrize("sparse", [False, True])
def test_what_was_saved_is_loaded(tmp_path: pathlib.Path, garnets: MDP, sparse: bool):
    process = garnets if sparse else mdp.make(DENSE, REWARD, 0.9, initial=[0.25, 0.75])
    mdp.save(tmp_path / "process", process)  # No suffix is added.
    loaded = mdp.load(tmp_path / "process")
    jax.tree.map(np.testing.assert_array_equal, loaded, process)
    assert loaded._fields == process._fields and loaded.reward.dtype == np.float64


def test_pickles_and_other_files_are_refused(tmp_path: pathlib.Path):
    path = tmp_path / "x.npz"
    np.savez(path, probabilities=np.array([{}], object), reward=REWARD, discount=0.9)
    with pytest.raises(ValueError, match="plain arrays"):
        mdp.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.npz is no \.npz file of plain arrays"):
        mdp.load(path)
    whole = io.BytesIO()
    np.savez_compressed(whole, probabilities=np.arange(900.0), reward=REWARD, discount=0.9)
    path.write_bytes(whole.getvalue()[:600])
    with pytest.raises(ValueError, match="plain arrays"):
        mdp.load(path)
    changed = bytearray(whole.getvalue())
    changed[200:220] = b"\xff" * 20
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="plain arrays"):
        mdp.load(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="plain arrays"):
        mdp.load(path)
    np.save(tmp_path / "x.npy", REWARD)
    with pytest.raises(ValueError, match="plain arrays"):
        mdp.load(tmp_path / "x.npy")
    np.savez(path, probabilities=DENSE, discount=0.9)
    with pytest.raises(ValueError, match=r"lacks \['reward'\]"):
        mdp.load(path)
    np.savez(path, probabilities=DENSE, discount=0.9, reward=REWARD, gamma=1)
    with pytest.raises(ValueError, match=r"has \['gamma'\]"):
        mdp.load(path)


def test_what_a_file_holds_is_refused_by_its_name(tmp_path: pathlib.Path):
    path = tmp_path / "own.npz"
    np.savez(path, probabilities=DENSE, reward=REWARD, discount=1.5)
    with pytest.raises(ValueError, match=r"own\.npz holds no process: discount must lie"):
        mdp.load(path)


def test_a_file_is_whole_or_not_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path, process = tmp_path / "own.npz", mdp.make(DENSE, REWARD, 0.9)
    mdp.save(path, process)

    def fail(file, **fields) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        mdp.save(path, process._replace(discount=np.float64(0.5)))
    assert mdp.load(path).discount == 0.9 and list(tmp_path.iterdir()) == [path]


def test_samples_come_with_their_probabilities():
    for process in (
        mdp.make(DENSE, REWARD, 0.9),
        mdp.make(DENSE, REWARD, 0.9, successors=[[[0, 1], [0, 1]]] * 2),
    ):
        drawn = process.sample(jax.random.key(0), 4_000)
        assert drawn.successors is not None and drawn.probabilities.shape == (2, 2, 4_000)
        shares = np.mean(np.asarray(drawn.successors)[..., None] == [0, 1], 2)
        np.testing.assert_allclose(shares, DENSE, atol=0.03)  # Four standard deviations.
        assert shares[0, 0, 1] == shares[1, 0, 0] == 0  # What cannot happen does not.


def test_double_precision_ends_with_the_call():
    process = mdp.make(DENSE, REWARD, 0.9)
    v = solve.policy_iteration(process).v
    assert isinstance(v, np.ndarray) and v.dtype == np.float64
    assert jnp.zeros(1).dtype == jnp.float32
    # float32 arguments are computed with in float64.
    single = process._replace(reward=process.reward.astype(np.float32))
    np.testing.assert_allclose(solve.policy_iteration(single).v, v, rtol=1e-14)
