import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_jax.plots import files, images


def picture():
    return images.grid(np.eye(8)[None], num_columns=1)


def test_a_picture_is_a_png_of_the_figures_size(tmp_path):
    figure = picture()
    files.save(figure, tmp_path / "eye.png")
    assert [p.name for p in tmp_path.iterdir()] == ["eye.png"]
    size = tuple(round(inches * figure.dpi) for inches in figure.get_size_inches())
    assert Image.open(tmp_path / "eye.png").size == size


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "eye.png"
    files.save(picture(), path)
    before = path.read_bytes()
    figure = picture()

    def half(file, **options):
        file.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        files.save(figure, path)
    assert path.read_bytes() == before


def test_a_picture_must_be_called_png(tmp_path):
    with pytest.raises(ValueError, match="png"):
        files.save(picture(), tmp_path / "eye.jpg")


@pytest.mark.slow
def test_drawing_loads_no_pyplot_and_of_ours_the_writing_of_files_alone():
    code = (
        "import sys; from vae_jax.plots import curves, files, images;"
        "bad = [m for m in sys.modules if m == 'matplotlib.pyplot' or m == 'jax' or"
        " m.startswith('vae_jax.') and m != 'vae_jax.writing'"
        " and not m.startswith('vae_jax.plots')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    root = Path(files.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
