"""A model of each architecture that flags can ask for, with random parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import models
from experiments.choices.config import Config
from experiments.runs import trained_runs

TINY = Config(hidden=(5,), num_latents=2)
ARCHITECTURES = {
    "mlp": {},
    "deep": {"hidden": (6, 5), "activation": "gelu"},
    "full_normal": {"posterior": "full_normal", "estimator": "sgvb_a"},
    "planar": {"posterior": "planar", "estimator": "sgvb_a"},
    "coupling": {"posterior": "coupling", "estimator": "dreg"},
    "iaf": {"posterior": "iaf", "estimator": "iwae"},
    "bernoulli": {"posterior": "bernoulli", "estimator": "nvil"},
    "finite_scalar": {
        "posterior": "finite_scalar",
        "prior": "autoregressive",
        "estimator": "sgvb_a",
    },
    "power_spherical": {"posterior": "power_spherical"},
    "vector_quantized": {
        "posterior": "vector_quantized",
        "prior": "autoregressive",
        "code_width": 2,
        "residual_levels": 2,
        "estimator": "codebook_averages",
    },
    "normal_mixture": {"prior": "normal_mixture", "estimator": "sgvb_a"},
    "vamp": {"prior": "vamp", "num_components": 3, "estimator": "sgvb_a"},
    "exemplar": {"prior": "exemplar", "num_exemplars": 3, "estimator": "sgvb_a"},
    "ladder": {"ladder": ("3", "2"), "num_latents": 16},
    "maps": {
        "ladder": ("4x4x1", "2"),
        "network": "conv",
        "width": 3,
        "num_latents": 16,
    },
    "learned_std": {"likelihood": "normal_learned_std", "binarization": "none"},
    "full_vb": {"algorithm": "full_vb", "weight_decay": 1.0},
    "vem": {"algorithm": "vem"},
}


def untrained(data, **changes) -> trained_runs.Trained:
    """A model of the flags with random parameters, none of which is zero."""
    config = dataclasses.replace(TINY, **changes)
    model = models.build(config, data.x_shape).model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )
    return trained_runs.Trained(config, data, model, params, 7)
