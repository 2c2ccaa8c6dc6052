import pytest

from vae_jax.plots import contents


def test_what_is_empty_is_named():
    contents.check_some(panels={"a": 1}, curves={"b": {}})
    with pytest.raises(ValueError, match=r"^curves must hold at least one$"):
        contents.check_some(panels={"a": 1}, curves={})
