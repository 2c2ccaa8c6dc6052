"""Mixed tables: parts and their sum, the units of x, what q sees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import networks, posteriors, priors, tables, vae
from vae_jax.types import Params

SETTINGS = {"min_std": 0.05, "degrees": 4.0, "dispersion": "column"}
NAN = float("nan")


def _rows(num_rows=400, seed=0):
    """A column of each family, in the order of `tables.FAMILIES`."""
    rng = np.random.default_rng(seed)
    level = rng.choice(3, size=num_rows, p=[0.2, 0.5, 0.3]) / 2
    return np.stack(
        [
            1000.0 + 30.0 * rng.normal(size=num_rows),
            -0.02 + 0.001 * rng.standard_t(4, size=num_rows),
            np.exp(2.0 + 0.7 * rng.normal(size=num_rows)),
            rng.poisson(700.0, size=num_rows),
            rng.poisson(rng.gamma(2.0, 3.0, size=num_rows)),
            rng.poisson(4.0, size=num_rows) * rng.integers(0, 2, size=num_rows),
            rng.random(num_rows) < 0.9,
            level,
            1.0 - level,
        ],
        axis=1,
    )


def _columns(rows):
    families = enumerate(tables.FAMILIES)
    return [tables.fit(f, rows[:, i], num_levels=_levels(f)) for i, f in families]


def _levels(family):
    return {"bernoulli": 2, "categorical": 3, "ordinal": 3}.get(family, 0)


@pytest.mark.slow
def test_at_zero_every_column_has_its_own_law(x64):
    rows = _rows()
    table = tables.likelihood(_columns(rows), **SETTINGS)
    params = table.init(jax.random.key(0))
    terms = jax.vmap(lambda x: table.log_prob_terms(params, jnp.zeros(table.width), x))
    got = np.asarray(terms(jnp.asarray(rows)))
    reals, t, logs, counts = rows[:, 0], rows[:, 1], np.log(rows[:, 2]), rows[:, 3]
    scale = np.exp(np.log(0.05) + np.log1p(1 / 0.05))  # where min_std puts one
    exact = {
        0: stats.norm.logpdf(reals, reals.mean(), reals.std()),
        1: stats.t.logpdf(t, 4.0, t.mean(), t.std() * scale),
        2: stats.lognorm.logpdf(
            rows[:, 2], 0.05 + logs.std(), scale=np.exp(logs.mean())
        ),
        3: stats.poisson.logpmf(counts, counts.mean()),
        4: stats.nbinom.logpmf(rows[:, 4], 1.0, 1 / (1 + rows[:, 4].mean())),
        6: stats.bernoulli.logpmf(rows[:, 6], (rows[:, 6].sum() + 0.5) / 401),
    }
    for place, expected in exact.items():
        np.testing.assert_allclose(got[:, place], expected, rtol=1e-7, err_msg=place)
    for place in (7, 8):
        shares = [((rows[:, place] == k / 2).sum() + 0.5) / 401.5 for k in range(3)]
        expected = np.log(shares)[(2 * rows[:, place]).astype(int)]
        np.testing.assert_allclose(got[:, place], expected, rtol=1e-9)
    means = table.mean(params, jnp.zeros(table.width))
    np.testing.assert_allclose(means[3:6], rows[:, 3:6].mean(0), rtol=1e-9)
    # The number of the whole is their sum, and a density as soon as one of them is.
    assert table.quantity(rows) == "log-density"
    assert table.quantity(np.where(rows > 20.0, NAN, rows)) == "log-density"


@pytest.mark.slow
def test_a_row_costs_what_its_columns_cost_one_by_one():
    """Families of several columns, between one another."""
    all_rows, places = _rows(), [0, 3, 7, 0, 4, 7, 3, 1]
    columns = [_columns(all_rows)[i] for i in places]
    x = jnp.asarray(all_rows[np.arange(8), places], jnp.float32)
    table = tables.likelihood(columns, **SETTINGS)
    params, h = table.init(jax.random.key(0)), jnp.zeros(table.width)
    terms, means = table.log_prob_terms(params, h, x), table.mean(params, h)
    assert table.quantity(table.sample(jax.random.key(1), params, h)[None])
    for place, column in enumerate(columns):
        one = tables.likelihood([column], **SETTINGS)
        params, h = one.init(jax.random.key(0)), jnp.zeros(one.width)
        got = one.log_prob_terms(params, h, x[place : place + 1])
        np.testing.assert_allclose(got[0], terms[place], rtol=1e-5)
        np.testing.assert_allclose(one.mean(params, h)[0], means[place], rtol=1e-5)


@pytest.mark.slow
def test_a_table_of_normal_columns_is_imputed_as_the_exact_conditional(x64):
    """Importance sampling of the holes against mean and variance in closed form."""
    rng = np.random.default_rng(3)
    rows = np.array([10.0, -200.0, 3.0]) + rng.normal(size=(50, 3)) * [2.0, 40.0, 0.1]
    columns = [tables.fit("normal", column) for column in rows.T]
    observed = tables.likelihood(columns, **SETTINGS)
    weights = np.array([[0.9, -0.6, 0.4]])
    theta = {
        "decoder": {"output": {"kernel": jnp.asarray(weights), "bias": jnp.zeros(3)}},
        "prior": (),
        "likelihood": ({"log_std": jnp.log(jnp.array([0.5, 0.3, 0.8]))},),
    }
    generative = vae.decoder_model(
        networks.linear(1, 3), priors.standard_normal(1), observed
    )
    encoder = networks.mlp(tables.num_features(columns), (), 2)
    recognition = vae.encoder_model(encoder, posteriors.diag_normal(1))
    model = vae.with_reading(
        vae.model(generative, recognition), tables.reading(columns)
    )
    masked = vae.masked(model, fill=None)
    phi = recognition.init(jax.random.key(0))
    phi["encoder"]["output"]["kernel"] = jnp.zeros((3, 2))
    params, x = Params(theta, phi), jnp.array([12.0, NAN, 3.05])
    # q is N(0, 1), the prior: plain importance sampling on a grid of z.
    z = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    log_p = jax.vmap(
        lambda z: masked.generative.log_likelihood_terms(params, x, z).sum()
    )(z) + stats.norm.logpdf(np.asarray(z[:, 0]))
    w = np.exp(log_p - log_p.max())
    w = w / w.sum()
    means = jax.vmap(masked.generative.mean_observation, (None, 0))(params, z)[:, 1]
    center, scale = (np.array([c.numbers[i] for c in columns]) for i in (0, 1))
    std = scale * np.array([0.5, 0.3, 0.8])
    loading = (weights * scale)[0]
    cov = np.outer(loading, loading) + np.diag(std**2)
    there = [0, 2]
    gain = cov[1, there] @ np.linalg.inv(cov[np.ix_(there, there)])
    mean = center[1] + gain @ (np.asarray(x)[there] - center[there])
    variance = cov[1, 1] - gain @ cov[there, 1]
    got = w @ means
    np.testing.assert_allclose(got, mean, rtol=1e-9)
    np.testing.assert_allclose(w @ (means - got) ** 2 + std[1] ** 2, variance)
    of_two: Any = cov[np.ix_(there, there)]
    normal: Any = stats.multivariate_normal(center[there], of_two)
    exact = normal.logpdf(np.asarray(x)[there])
    evidence = np.log(np.exp(log_p).sum() * (z[1, 0] - z[0, 0]))
    np.testing.assert_allclose(evidence, exact, rtol=1e-9)
    # What q sees of the hole is the training mean, and no NaN reaches anything.
    h = [masked.recognition.encode(params, x.at[1].set(v)) for v in (NAN, center[1])]
    np.testing.assert_allclose(*h)


@pytest.mark.slow
def test_q_sees_standardized_columns_and_zeros_in_the_holes(x64):
    rows = _rows()
    columns = _columns(rows)
    read = jax.vmap(tables.reading(columns))
    seen = np.asarray(read(jnp.asarray(rows)))
    assert seen.shape == (400, tables.num_features(columns))
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=5e-3)
    np.testing.assert_allclose(seen[:, :6].std(0), 1.0, rtol=1e-9)
    holes = np.asarray(read(jnp.full_like(rows, NAN)))
    np.testing.assert_array_equal(holes, 0.0)


@pytest.mark.slow
def test_gradients_are_finite_for_holes_and_for_what_no_family_is_of():
    columns = _columns(_rows())
    table = tables.likelihood(columns, **SETTINGS)
    params = table.init(jax.random.key(0))

    def log_p(h, x):
        return table.log_prob_terms(params, h, x).sum()

    for h in (-40.0, 0.0, 40.0):
        slope = jax.grad(log_p)(jnp.full(table.width, h), jnp.zeros(9))
        assert np.all(np.isfinite(slope))


def test_what_says_nothing_of_a_column_is_refused():
    for values in ([NAN, NAN], [3.0, 3.0, NAN]):
        with pytest.raises(ValueError, match=r"hold (nothing|only 3): leave it out"):
            tables.fit("normal", np.array(values))


def test_a_column_of_normals_starts_at_its_least_std_where_that_is_wider(x64):
    values = _rows()[:, 0]
    table = tables.likelihood(
        [tables.fit("normal", values)], **SETTINGS | {"min_std": 2.0}
    )
    params, h = table.init(jax.random.key(0)), jnp.zeros(table.width)
    got = table.log_prob_terms(params, h, jnp.array([990.0]))
    expected = stats.norm.logpdf(990.0, values.mean(), 2.0 * values.std())
    np.testing.assert_allclose(got[0], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "values"), [("log_normal", [0.0, 1.0]), ("normal", [1.0, np.inf])]
)
def test_what_has_no_finite_fit_is_refused(family, values):
    with pytest.raises(ValueError, match=f"have no finite fit of {family}"):
        tables.fit(family, np.array(values))
