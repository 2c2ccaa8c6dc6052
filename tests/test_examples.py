"""The examples in the docstrings of the ten places to start at."""

import doctest
import importlib
import re

import jax
import pytest

import vae_jax

pytestmark = pytest.mark.uses_optax
PLACES = {  # module -> the functions of it that the package's docstring names
    "data.sources": ["load"],
    "networks": ["mlp"],
    "vae": ["decoder_model", "encoder_model", "model"],
    "estimators.sgvb": ["sgvb_b"],
    "estimators.importance": ["iwae"],
    "training.gradient": ["ascent"],
    "training.loop": ["scan"],
    "evaluation.marginal": ["importance_sampling"],
}


SLOW = {"estimators.importance", "evaluation.marginal", "training.gradient", "vae"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in PLACES
    ],
)
def test_every_place_to_start_at_has_an_example_that_holds(name):
    module = importlib.import_module(f"vae_jax.{name}")
    tests = {
        test.name.rpartition(".")[2]: test
        for test in doctest.DocTestFinder().find(module)
        if test.examples
    }
    assert set(PLACES[name]) <= set(tests)
    with jax.debug_key_reuse(False):  # an example may use a key twice
        for test in tests.values():
            failed, tried = doctest.DocTestRunner().run(test)
            assert tried
            assert not failed


def test_the_package_names_them_and_lists_its_modules():
    named = re.findall(r"^    ([a-z_.]+) {2,}\S", vae_jax.__doc__ or "", flags=re.M)
    assert len(named) == 10
    for place in PLACES:
        assert any(entry.startswith(place) for entry in named), place
    assert {"vae", "estimators", "training", "types"} <= set(dir(vae_jax))
    assert not {"importlib", "pkgutil", "Any"} & set(dir(vae_jax))  # modules of ours
    assert vae_jax.vae.model is importlib.import_module("vae_jax.vae").model


def test_a_name_that_is_no_module_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'vea'"):
        vae_jax.vea  # noqa: B018
