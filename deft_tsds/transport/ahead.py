"""Where the optimum for the next weight will be, guessed from the optima for the last three.

Shares follow straight lines in the right coordinates. Let the weight of a term f change by the side of costs c. Where
r_ij > 0 at the optimum, W f'(r_ij) + c_ij is the same along a row: so f'(r_ij) is a line in 1/W, and if it is the costs
whose weight changes, a line in that. For a quadratic f these are lines of the shares, cut off at zero where candidates
leave the plan; for an entropy, of their logarithms. `Guess` tries both coordinates and both kinds of lines, and takes
the one that would have foretold the last optimum best, by KL(optimum | guess), which is what a descent has to go.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FARTHEST = 4.0  # steps of before in one to come
_LEAST = 1e-3  # what a share that comes to its end keeps: from nothing it could not return
_ROWS = 32  # tell which guess would have been best; all of them would take as long as the steps that it saves
_MOST_GROWTH = 50.0  # of a logarithm, so that its exponential is a number


class Trail(NamedTuple):
    """The last three optima, as logarithms of shares, and the weights that they belong to; the newest last."""

    log_r_MxK: tuple[jax.Array, ...] = ()
    points_W: tuple[np.ndarray, ...] = ()

    def to(self, log_r_MxK: jax.Array, point_W: np.ndarray) -> Trail:
        return Trail((*self.log_r_MxK, log_r_MxK)[-3:], (*self.points_W, point_W)[-3:])

    def ahead(self, weights_M: jax.Array, point_W: np.ndarray) -> jax.Array:
        """The guess for the next weights; the last optimum where there are not three yet."""
        if len(self.points_W) < 3:
            return self.log_r_MxK[-1]
        first, second, third = self.points_W
        return _best(weights_M, self.log_r_MxK, _steps(first, second, third), _steps(second, third, point_W))


def _steps(before_W: np.ndarray, here_W: np.ndarray, there_W: np.ndarray) -> np.ndarray:
    """How many steps like the one from before to here lead on to there, in the weights and in their inverses."""
    steps = []
    for coordinate in (lambda w: w, lambda w: 1 / w):
        with np.errstate(divide="ignore", invalid="ignore"):
            before, here, there = coordinate(before_W), coordinate(here_W), coordinate(there_W)
            steps.append(np.dot(there - here, here - before) / np.dot(here - before, here - before))
    return np.clip(np.nan_to_num(steps, posinf=0), 0, _FARTHEST)


@jax.jit
def _best(weights_M: jax.Array, ends: tuple[jax.Array, ...], steps_then: jax.Array, steps_now: jax.Array) -> jax.Array:
    _, second, third = ends
    every = max(1, len(weights_M) // _ROWS)
    weights_R, (first_R, second_R, third_R) = weights_M[::every], (end[::every] for end in ends)

    def off(guess_R):
        missed_R = jnp.sum(jnp.exp(third_R) * (third_R - guess_R), axis=1) + jax.nn.logsumexp(guess_R, axis=1)
        return jnp.dot(weights_R, missed_R)

    best = jnp.argmin(jnp.stack([off(guess()) for guess in _guesses(first_R, second_R, steps_then)]))
    return jax.lax.switch(best, _guesses(second, third, steps_now))


def _guesses(before, here, steps):
    """The optimum here, and the lines through it and the one before."""

    def of_logarithms(step):
        return lambda: here + step * (here - before)

    def of_shares(step):
        return lambda: (
            here + jnp.log(jnp.maximum(1 + step * (1 - jnp.exp(jnp.minimum(before - here, _MOST_GROWTH))), _LEAST))
        )

    return [lambda: here, *(line(step) for step in steps for line in (of_logarithms, of_shares))]
