"""Applies a one-example evaluator to every row of a data set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vae_jax import compilation, numerics
from vae_jax.types import PRNGKey, PyTree


def over_examples(
    evaluator: Callable[[PRNGKey, PyTree, Array], PyTree],
    *,
    batch_size: int,
    value: Callable[[Array], Array] = lambda x: x,
    mesh: Mesh | None = None,
) -> Callable[..., PyTree]:
    """Compiles (key, params, data [N, *X], first=0) -> results stacked on N.

    Row i uses fold_in(key, first + i), so that a data set may be evaluated block by
    block. With threefry keys, JAX's default, the result therefore does not depend on
    batch_size, and the first rows of a data set give the same with and without the
    others. Keys of "rbg" and "unsafe_rbg" draw the noise of rows side by side as one
    block from the first row's key (`jax.random`): each row's is fresh still, but
    another with another batch_size, by as much as with another key. Memory holds one
    batch of intermediate values at a time.

    Args:
        evaluator: (key, params, x) -> any tree of arrays, for one example; params may
            hold more that is the same for all of them.
        batch_size: rows evaluated side by side; 1 evaluates them in turn.
        value: turns one raw row into x, where the data are kept as integers.
        mesh: devices among which the rows are shared out; the results lie on each.

    Raises:
        ValueError: if batch_size is below one.
    """
    numerics.check_positive(batch_size=batch_size)

    def of_rows(
        key: PRNGKey, params: PyTree, index: Array, data: Float[Array, "N *X"]
    ) -> PyTree:
        def one(row: tuple[Array, Array]) -> PyTree:
            i, raw = row
            return evaluator(jax.random.fold_in(key, i), params, value(raw))

        size = None if batch_size == 1 else batch_size
        return jax.lax.map(one, (index, data), batch_size=size)

    def run(
        key: PRNGKey, params: PyTree, data: Float[Array, "N *X"], first: int = 0
    ) -> PyTree:
        return of_rows(key, params, first + jnp.arange(len(data)), data)

    if mesh is None:
        return compilation.program(run)
    (axis,), size = mesh.axis_names, mesh.size
    rows, same = PartitionSpec(axis), PartitionSpec()
    of_shards = jax.shard_map(
        of_rows,
        mesh=mesh,
        in_specs=(same, same, rows, rows),
        out_specs=rows,
        check_vma=False,  # an evaluator may scan from constants by itself
    )

    def run_shared(
        key: PRNGKey, params: PyTree, data: Float[Array, "N *X"], first: int = 0
    ) -> PyTree:
        num = len(data)
        index = jnp.arange(num + -num % size) % num  # some rows twice, to fill up
        results = of_shards(key, params, first + index, data[index])
        return jax.tree.map(lambda leaf: leaf[:num], results)

    return compilation.program(run_shared, layout=NamedSharding(mesh, same))
