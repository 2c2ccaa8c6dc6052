import numpy as np
import pytest

from vae_jax.plots import factors


def test_a_traversal_has_a_named_row_for_each_latent():
    images = np.linspace(0.0, 1.0, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    figure = factors.traversals(images, names=["z0: x", "z1"], values=[-1.0, 0.0, 1.5])
    figure.canvas.draw()
    axes = np.array(figure.axes).reshape(2, 3)
    assert [row[0].get_ylabel() for row in axes] == ["z0: x", "z1"]
    assert [one.get_title() for one in axes[0]] == ["-1", "0", "1.5"]
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), images[1, 2])
    with pytest.raises(ValueError, match=r"images must be \[1, 3, ...\], got \(2, 3"):
        factors.traversals(images, names=["z0"], values=[-1.0, 0.0, 1.5])


def test_a_heat_map_writes_every_share():
    shares = np.array([[0.1, 0.9], [0.0, 0.25]])
    figure = factors.heat_map(shares, latents=["z0", "z1"], factors=["x", "y"])
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.10", "0.90", "0.00", "0.25"]
    with pytest.raises(ValueError, match=r"information must be \[1, 2\], got \(2, 2"):
        factors.heat_map(shares, latents=["z0"], factors=["x", "y"])
