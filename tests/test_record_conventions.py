"""No record is left stale: what follows from a changed function is made anew.

`recognition._replace(log_prob=...)` keeps a `sample_and_log_prob` of the old density,
and `model._replace(recognition=...)` the old draw. So outside the modules that know all
of a record it is built (`types.conditional`, `vae.recognition`, `vae.model`) and no
function of it replaced.
"""

import ast

import pytest

from tests import sources

KNOW_ALL = {
    *("vae_jax/types.py", "vae_jax/vae.py", "vae_jax/likelihood_transforms.py"),
    "vae_jax/conditional.py",
}
FOLLOWED = {  # by another field of the record
    *("sample", "log_prob", "sample_and_log_prob"),
    *("log_prior", "sample_prior", "log_likelihood_terms"),
    *("generative", "recognition", "draw"),
}
HALVES = {"generative", "recognition"}  # of a Model, and theta and phi of Params


def stale(path, tree):
    """No function is replaced that another field of its record follows from."""
    del path
    for node in sources.nodes(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "_replace":
            continue
        record = ast.unparse(node.func.value).split(".")[-1]
        for keyword in node.keywords:
            is_params = record == "params" and keyword.arg in HALVES
            if keyword.arg in FOLLOWED and not is_params:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_function_is_replaced_that_others_follow_from():
    assert set(sources.CODE) >= KNOW_ALL
    sources.assert_kept(stale, sorted(set(sources.CODE) - KNOW_ALL))


@pytest.mark.parametrize(
    "source",
    [
        "q._replace(log_prob=f)",
        "problem.recognition._replace(encode=e, sample=f)",
        "x = vae.masked(m)._replace(draw=d)",
        "trained.model._replace(recognition=q, closed_form=None)",
        "model._replace(generative=g)",
        "def f():\n  return lambda g: g._replace(log_likelihood_terms=t)",
        "params._replace(sample=f)",
    ],
)
def test_the_rule_finds_a_stale_record(source):
    assert list(stale("a.py", ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "params._replace(generative=theta)",
        "state.params._replace(recognition=phi)",
        "recognition._replace(encode=e, init=i)",
        "run._replace(mesh=None)",
        "replace(sample=f)",
        "drawn._replace(log_posterior=log_q)",
    ],
)
def test_the_rule_lets_parameters_and_other_fields_pass(source):
    assert not list(stale("a.py", ast.parse(source)))
