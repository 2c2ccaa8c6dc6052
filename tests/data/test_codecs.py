import io
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_jax.data import codecs, photos


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_a_size_is_that_of_each_image_by_itself(codec):
    arrays, _ = photos.patches()
    for images in (arrays["test"][:5], arrays["test"][:5, ..., 0]):
        sizes = codecs.sizes(images, codec)
        assert sizes.tolist() == [
            codecs.sizes(images[i : i + 1], codec)[0] for i in range(5)
        ]
        assert len(set(sizes.tolist())) > 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_files_hold_every_pixel(monkeypatch, kind):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    saved = []
    save = Image.Image.save

    def seen(self, file, kind, **settings):
        save(self, file, kind, **settings)
        saved.append(file.getvalue())

    monkeypatch.setattr(Image.Image, "save", seen)
    sizes = codecs.sizes(images, kind.lower())
    assert sorted(map(len, saved)) == sorted(sizes.tolist())
    read = [np.asarray(Image.open(io.BytesIO(file), formats=[kind])) for file in saved]
    assert sorted(x.tobytes() for x in read) == sorted(x.tobytes() for x in images)


def test_noise_takes_its_eight_bits_and_one_shade_next_to_none():
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)
    for codec in ("png", "zlib"):
        assert (codecs.sizes(noise, codec) > noise[0].size).all()
        assert (codecs.sizes(np.zeros_like(noise), codec) < 100).all()
    expected = [len(zlib.compress(x.tobytes(), level=9)) for x in noise]
    assert codecs.sizes(noise, "zlib").tolist() == expected


@pytest.mark.parametrize(
    ("images", "codec", "said"),
    [
        (np.zeros((2, 4, 4), np.uint8), "gif", "codec='gif': choose one of png, webp"),
        (np.zeros((2, 4, 4), np.float32), "png", "are float32 of shape"),
        (np.zeros((2, 16), np.uint8), "png", r"uint8 of shape \(2, 16\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), "png", r"shape \(2, 4, 4, 2\): give bytes"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused(images, codec, said):
    with pytest.raises(ValueError, match=said):
        codecs.sizes(images, codec)
