"""Random projection of long vectors to d numbers that keeps inner products on average, with no matrix in memory.

A vector x [P] is cut into blocks x_b of d numbers. With H the Hadamard matrix [d, d] of signs (Sylvester's), and D_b
and E_b diagonal matrices of independent random signs,

    S x = d^(-1/2) sum_b E_b H D_b x_b.

Every entry of S [d, P] is +-1/sqrt(d) with equal chances: a Rademacher projection, whose d P signs come from 2 P random
bits. These are drawn anew, block by block, in every call: nothing of size d P is ever made, and a block costs two small
matrix products. Blocks are rotated as wholes (E_b H D_b / sqrt(d) is orthogonal), and two blocks meet under independent
signs, so

    E <S x, S y> = <x, y>,
    Var <S x, S y> = (1/d) sum_{b != c} (|x_b|^2 |y_c|^2 + <x_b, y_b> <x_c, y_c>) <= (|x|^2 |y|^2 + <x, y>^2) / d.

The bound is that of a Gaussian matrix. A coordinate that holds much of x is spread over all d numbers, so there is no
collision that a count-sketch would suffer from.

Reference: Balabanov et al., "Block subsampled randomized Hadamard transform", arXiv 2210.11295, with all rows kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_PIECE = 2**16  # coordinates taken at once, of each vector: fewer wait for the loop, more leave the cache


def project(x_BxP: jax.Array, key: jax.Array, *, dimension: int) -> jax.Array:
    """Project B vectors by the same S, which `key` decides together with `dimension`.

    Args:
        x_BxP: float32; zeros at the end of P change nothing.
        key: JAX random key.
        dimension: d, a power of two of at least 32.

    Returns:
        float32 [B, d].

    Raises:
        ValueError: `dimension` is no such number.
    """
    check_dimension(dimension)
    rows, length = x_BxP.shape
    at_once = max(1, min(_PIECE // dimension, -(-length // dimension)))
    pieces = -(-length // (at_once * dimension))
    padded_BxP = jnp.pad(x_BxP, ((0, 0), (0, pieces * at_once * dimension - length)))
    # H = H_I x H_J, the Kronecker product: on a block laid out as [I, J], one factor works along each axis. What comes
    # out is [J, I], which spares a transposition and only names the d numbers otherwise.
    log2 = dimension.bit_length() - 1
    h_IxI, h_JxJ = _hadamard(1 << log2 // 2), _hadamard(1 << log2 - log2 // 2)
    shape = (rows, at_once, len(h_IxI), len(h_JxJ))

    def add_piece(piece, sum_BxJxI):
        first = piece * at_once
        x = jax.lax.dynamic_slice_in_dim(padded_BxP, first * dimension, at_once * dimension, axis=1).reshape(shape)
        before, after = _signs(key, first + jnp.arange(at_once), dimension)
        mixed = jnp.einsum("bnij,jk->bnik", x * before.reshape(shape[1:]), h_JxJ, precision="highest")
        mixed = jnp.einsum("bnik,ih->bnkh", mixed, h_IxI, precision="highest")
        return sum_BxJxI + jnp.sum(mixed * after.reshape(mixed.shape[1:]), axis=1)

    sum_BxJxI = jnp.zeros((rows, len(h_JxJ), len(h_IxI)), jnp.float32)
    sum_BxJxI = jax.lax.fori_loop(0, pieces, add_piece, sum_BxJxI)
    return sum_BxJxI.reshape(rows, dimension) / np.float32(dimension) ** 0.5


def check_dimension(dimension: int) -> None:
    """Raise ValueError where `project` would."""
    if dimension < 32 or dimension & (dimension - 1):
        raise ValueError(f"dimension is {dimension}: give a power of two of at least 32, such as 512 or 8192.")


def _signs(key: jax.Array, blocks_n: jax.Array, dimension: int) -> tuple[jax.Array, jax.Array]:
    """The diagonals of D_b and E_b, float32 [n, d] each: bits of a key that the number of the block decides."""
    shape = (2, dimension // 32)
    bits = jax.vmap(lambda b: jax.random.bits(jax.random.fold_in(key, b), shape, jnp.uint32))(blocks_n)
    ones = (bits[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    before, after = jnp.moveaxis(1 - 2 * ones.astype(jnp.float32), 1, 0).reshape(2, len(blocks_n), dimension)
    return before, after


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of a power of two, float32: the sign is the parity of the bits that row and column share."""
    numbers = np.arange(size)
    return np.where(np.bitwise_count(numbers[:, None] & numbers) % 2, -1, 1).astype(np.float32)
