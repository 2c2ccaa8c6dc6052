"""No record is left stale: what follows from a changed function is made anew.

`recognition._replace(log_prob=...)` keeps a `sample_and_log_prob` of the old density,
and `model._replace(recognition=...)` the old draw. So outside the modules that know all
of a record it is built (`types.conditional`, `vae.recognition`, `vae.model`) and no
function of it replaced.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
KNOW_ALL = {"vae_jax/types.py", "vae_jax/vae.py"}
FOLLOWED = {  # by another field of the record
    *("sample", "log_prob", "sample_and_log_prob"),
    *("log_prior", "sample_prior", "log_likelihood_terms"),
    *("generative", "recognition", "draw"),
}
HALVES = {"generative", "recognition"}  # of a Model, and theta and phi of Params
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("vae_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def stale(source):
    """Every replacement of a function that another field of its record follows from."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "_replace":
            continue
        record = ast.unparse(node.func.value).split(".")[-1]
        for keyword in node.keywords:
            is_params = record == "params" and keyword.arg in HALVES
            if keyword.arg in FOLLOWED and not is_params:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES)
def test_no_function_is_replaced_that_others_follow_from(path):
    found = list(stale((ROOT / path).read_text()))
    assert path in KNOW_ALL or not found


def test_what_is_excepted_is_there():
    assert set(FILES) >= KNOW_ALL


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
    assert list(stale(source))


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
    assert not list(stale(source))
