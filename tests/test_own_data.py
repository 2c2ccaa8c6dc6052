"""What is read of a user's own file, and what is refused of it."""

import numpy as np
import pytest

from experiments import protocol
from experiments.configuration import Config
from vae_jax.data import sources


@pytest.fixture
def save(tmp_path):
    """Writes the splits of a file; its name as a data set."""

    def save(**arrays) -> str:
        np.savez(tmp_path / "own.npz", **arrays)
        return f"npz:{tmp_path / 'own.npz'}"

    return save


def values(low: float, high: float, *shape: int) -> np.ndarray:
    """Float32 values that reach both ends."""
    return np.linspace(low, high, int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("split", sources.SPLITS)
def test_every_split_is_held_against_the_likelihood(save, split):
    arrays = {name: values(0, 1, 6, 4) for name in sources.SPLITS}
    name = save(**{**arrays, split: values(0, 255, 6, 4)})
    config = Config(dataset=name, binarization="none")
    with pytest.raises(ValueError, match=rf"the {split} split of .* has \[0, 255\]"):
        protocol.load(config)
