"""The house rules, checked by reading the code.

Each rule is a function of a file's path and syntax tree that yields what is wrong, so
that the rules themselves are tested on small sources that break them.
"""

import ast
import re
import subprocess
import sys

import pytest

from tests import sources
from tests.sources import CODE, LIBRARY, MODULES, ROOT, SCRIPTS, TESTS

LAYERS = [  # a module imports only from rows above its own
    {"types", "writing", "compilation"},
    {"numerics"},
    {"reparameterize", "divergences", "bounds", "flows", "networks"},
    {"likelihoods", "convolutional", "codes"},
    {"discretized", "counts", "likelihood_transforms"},
    {
        *{"posteriors", "priors", "factors", "tables"},
        *{"finite_scalar", "vector_quantized", "power_spherical"},
    },
    {"vae", "layer_forms"},
    {"exemplars", "ladder", "conditional"},
    {"latent_models", "ladder_of_maps"},
    {"estimators"},
    {"inference"},
    {"evaluation", "artifacts", "coding"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SIDE = {
    "training": {"types", "writing", "compilation"},
    "data": {"types", "writing"},
    "plots": {"writing"},
}
EXCEPTIONS = {("inference", "vae_jax.training.gradient")}
FENCES = {  # third-party package: where it may be imported
    "flax": ("vae_jax/networks.py", "experiments/benchmark/peers/"),
    "optax": (
        "vae_jax/training/gradient.py",
        "vae_jax/inference/",
        "vae_jax/estimators/factor.py",
        "vae_jax/evaluation/gaps.py",
        "experiments/",
    ),
    "orbax": ("vae_jax/training/checkpoints.py",),
    "safetensors": ("vae_jax/artifacts.py",),
    "blackjax": ("vae_jax/inference/hmc.py",),
    "tensorflow_datasets": ("vae_jax/data/",),
    "tensorflow": ("vae_jax/data/",),
    "pooch": ("vae_jax/data/",),
    "grain": ("vae_jax/data/",),
    "sklearn": ("vae_jax/data/", "vae_jax/evaluation/", "experiments/"),
    "matplotlib": ("vae_jax/plots/",),
    "absl": ("experiments/",),
    "torch": ("experiments/benchmark/peers/",),
    "numpyro": ("experiments/benchmark/peers/",),
    "pythae": ("experiments/benchmark/peers/",),
    "chex": (),
    "pytest": (),
    "hypothesis": (),
}
PLAIN_JIT = (  # everything else is compiled by `compilation.program`
    "vae_jax/compilation.py",
    "vae_jax/convolutional.py",  # one operation outside of any program
    "vae_jax/artifacts.py",  # for other machines
    "vae_jax/coding/",  # archives are decoded bit for bit
    "vae_jax/data/",  # which imports nothing of the library
    "experiments/benchmark/peers/",  # as others write it
)
HEAVY = [
    "orbax",
    "tensorflow_datasets",
    "sklearn",
    "matplotlib",
    "tensorboardX",
    "pooch",
]
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "misc"}
FORBIDDEN_PARAMETERS = {"rng", "rng_key", "seed"}
PICKLING = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"),
    "marshal",
}
NUMPY_FILES = {"load", "save", "savez", "savez_compressed"}
TORCH_FILES = {"load", "save", "serialization"}
MAX_LINES = 400


def _public_functions(tree):
    """(name, node, is a method) of functions and methods without an underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for child in node.body:
                if isinstance(child, ast.FunctionDef) and child.name[0] != "_":
                    yield f"{node.name}.{child.name}", child, True


def _parameters(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [a.arg for a in named + extra]


# The rules: (path, tree) -> what is wrong


def import_direction(path, tree):
    """A module imports only from rows above its own, or from its own package."""
    mine = sources.parts(path)
    for target in sources.imports(path, tree):
        top, *rest = target.split(".")
        if top == "tests" or (top == "experiments" and mine[0] == "vae_jax"):
            yield f"imports {target}"
        if top != "vae_jax" or mine[0] == "experiments":
            continue
        if not rest:
            yield "imports the whole of vae_jax: name the module"
        elif len(mine) > 2 and rest[0] == mine[1]:
            continue  # a sibling in the same package
        elif any(mine[1] == m and target.startswith(t) for m, t in EXCEPTIONS):
            continue
        elif mine[1] in SIDE:
            if rest[0] not in SIDE[mine[1]]:
                yield f"imports {target}; {mine[1]} may import {SIDE[mine[1]] or '{}'}"
        elif RANK.get(rest[0], len(LAYERS)) >= RANK.get(mine[1], 0):
            yield f"imports {target}, which is not in a row above {mine[1]}"


def a_place_in_the_table(path, tree):
    """Every module of the library has a rank or is at the side."""
    del tree
    name = sources.parts(path)[1]
    if path in MODULES and name not in RANK and name not in SIDE:
        yield f"{name} has no rank in architecture.md"


def third_party_fences(path, tree):
    """Heavy or stateful packages are imported in few places."""
    for target in sources.imports(path, tree):
        allowed = FENCES.get(target.split(".")[0])
        if allowed is not None and not path.startswith(allowed):
            yield f"imports {target}, which belongs in {allowed or 'tests'}"


def modules_not_names(path, tree):
    """Modules are imported, not names, except from `types`."""
    del path
    for node in sources.nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "vae_jax."
        ):
            file = ROOT.joinpath(*str(node.module).split(".")).with_suffix(".py")
            if file.exists() and node.module != "vae_jax.types":
                yield f"imports names from {node.module}: import the module"


def documented(path, tree):
    """Modules, public classes, functions and methods say what they do."""
    if not ast.get_docstring(tree) and (ROOT / path).name != "__init__.py":
        yield "the module has no docstring"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    nodes = [(n.name, n) for n in classes]
    for name, node in nodes + [(n, f) for n, f, _ in _public_functions(tree)]:
        if not ast.get_docstring(node):
            yield f"{name} has no docstring"


def fields_documented(path, tree):
    """`help` of a record says what each field is: its docstring has `Attributes:`."""
    if not path.startswith("vae_jax/"):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or "NamedTuple" not in map(
            ast.unparse, node.bases
        ):
            continue
        lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        fields = [ast.unparse(line.target) for line in lines]
        section = (ast.get_docstring(node) or "").partition("\nAttributes:\n")[2]
        documented = re.findall(r"^    (\w+): \S", section, flags=re.MULTILINE)
        if documented != fields:
            yield f"{node.name} has the fields {fields}, and explains {documented}"


def key_first(path, tree):
    """A function that takes a key takes it first."""
    del path
    for name, node, is_method in _public_functions(tree):
        names = _parameters(node)
        if is_method and names[:1] in (["self"], ["cls"]):
            names = names[1:]
        if "key" in names[1:]:
            yield f"{name}: key comes first, not {names}"


def names_of_randomness(path, tree):
    """Keys are called key and seeds belong to a Config: also in inner functions."""
    if not path.startswith("vae_jax/"):
        return
    for node in sources.nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            bad = FORBIDDEN_PARAMETERS & set(_parameters(node))
            if bad:
                yield f"{getattr(node, 'name', 'a lambda')} has a parameter {bad}"


def keyword_only_defaults(path, tree):
    """What has a default is passed by its name."""
    if not path.startswith("vae_jax/"):
        return
    for name, node, _ in _public_functions(tree):
        if node.args.defaults:
            yield f"{name}: parameters with defaults must come after *"


def nothing_pickled(path, tree):
    """No file is read by running what it says: NumPy's functions must say so."""
    del path
    for target in sources.imports("a.py", tree):
        top, *rest = target.split(".")
        reads = {"numpy": NUMPY_FILES, "torch": TORCH_FILES}.get(top, set())
        if top in PICKLING or reads & set(rest):
            yield f"imports {target}"
    for node in sources.nodes(tree):
        if isinstance(node, ast.Attribute) and "pickle" in node.attr:
            yield f"uses {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        module, _, name = ast.unparse(node.func).rpartition(".")
        inputs = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if module == "torch" and name in TORCH_FILES:
            yield f"{ast.unparse(node)} pickles"
        is_file = module in {"np", "numpy", "jnp", "jax.numpy"} and name in NUMPY_FILES
        if inputs.get("allow_pickle", "None" if is_file else "False") != "False":
            yield f"{ast.unparse(node)} needs allow_pickle=False"


def programs_by_one_function(path, tree):
    """What is compiled is given the compiler's options."""
    for node in sources.nodes(tree):
        is_jit = isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.jit"
        if is_jit and not path.startswith(PLAIN_JIT):
            yield "jax.jit: use compilation.program"
    for target in sources.imports(path, tree):
        if target == "jax.jit":
            yield "imports jax.jit"


def a_test_file_of_its_name(path, tree):
    """A module of the library has a test file of its name."""
    del tree
    _, *folders, name = sources.parts(path)
    file = ROOT.joinpath("tests", *folders, f"test_{name}.py")
    if path.startswith("vae_jax/") and name != "__init__" and not file.exists():
        yield f"{file.relative_to(ROOT)} is not there"


def names_that_say_what_is_inside(path, tree):
    """No file or folder is called after its being shared or private."""
    del tree
    for part in sources.parts(path):
        if part in FORBIDDEN_NAMES or part.endswith("_src"):
            yield f"{part} does not say what is inside"


def few_screens(path, tree):
    """A file has few lines of code."""
    if (number := lines_of_code(sources.text(path), tree)) > MAX_LINES:
        yield f"{number} lines of code, more than {MAX_LINES}"


def no_test_module_imported(path, tree):
    """What tests share stands in a module that pytest does not collect."""
    for target in sources.imports(path, tree):
        top, *parts = target.split(".")
        if top == "tests" and any(part.startswith("test_") for part in parts):
            yield f"imports {target}"


RULES_OF_FILES = [
    few_screens,
    a_test_file_of_its_name,
    names_that_say_what_is_inside,
    no_test_module_imported,
]
RULES = [
    import_direction,
    a_place_in_the_table,
    third_party_fences,
    modules_not_names,
    documented,
    fields_documented,
    key_first,
    names_of_randomness,
    keyword_only_defaults,
    nothing_pickled,
    programs_by_one_function,
]


# The code against the rules


def test_the_walk_sees_the_tree():
    assert {"vae_jax/types.py", "vae_jax/divergences.py"} <= set(MODULES)
    assert "vae_jax/estimators/__init__.py" in LIBRARY
    assert any(path.startswith("experiments/") for path in SCRIPTS)
    assert {"tests/test_conventions.py", "tests/conftest.py"} <= set(TESTS)
    tree = sources.tree("vae_jax/divergences.py")
    assert "vae_jax.types.Scalar" in set(
        sources.imports("vae_jax/divergences.py", tree)
    )
    assert "diag_normal_entropy" in {name for name, *_ in _public_functions(tree)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps(rule):
    sources.assert_kept(rule, CODE)


@pytest.mark.parametrize("rule", RULES_OF_FILES, ids=lambda rule: rule.__name__)
def test_the_code_and_the_tests_keep(rule):
    sources.assert_kept(rule, CODE + TESTS)


def lines_of_code(source, tree):
    """Lines that hold code: no blanks, comments or docstrings."""
    documented = {
        line
        for node in sources.nodes(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and i not in documented
        for i, line in enumerate(source.splitlines(), 1)
    )


def test_a_long_file_and_every_break_is_named(monkeypatch):
    monkeypatch.setitem(few_screens.__globals__, "MAX_LINES", 20)
    with pytest.raises(
        AssertionError, match=r"few lines(.|\n)*/types.py: \d+ lines"
    ) as e:
        sources.assert_kept(few_screens, ["vae_jax/types.py", "vae_jax/vae.py"])
    assert "vae_jax/vae.py" in str(e.value)


def test_lines_of_code_are_counted_without_what_is_said_about_them():
    said = '"""Module."""\n\n# why\ndef f():\n    """Says.\n\n    More.\n    """\n'
    source = said + "    return 1  # one\n"
    assert lines_of_code(source, ast.parse(source)) == 2


def test_bounds_divergences_estimators_and_training_load_nothing_heavy():
    light = ["vae_jax/bounds.py", "vae_jax/divergences.py"]
    folders = "vae_jax/estimators/", "vae_jax/training/"
    light += [path for path in MODULES if path.startswith(folders)]
    names = [path.removesuffix(".py").replace("/", ".") for path in light]
    loaded = "{name.split('.')[0] for name in sys.modules}"
    program = f"import sys, {', '.join(names)}\nprint(*sorted({loaded} & set({HEAVY})))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [], "loaded before it is needed"


# The rules against code that breaks them


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (a_test_file_of_its_name, "vae_jax/plots/a.py", ""),
        (names_that_say_what_is_inside, "vae_jax/utils/a.py", ""),
        (names_that_say_what_is_inside, "vae_jax/a_src.py", ""),
        (no_test_module_imported, "tests/test_a.py", "from tests.test_b import c"),
        (no_test_module_imported, "tests/a/test_a.py", "from . import test_b"),
        (no_test_module_imported, "tests/a.py", "import tests.a.test_b as b"),
        (import_direction, "vae_jax/types.py", "from vae_jax import numerics"),
        (import_direction, "vae_jax/bounds.py", "from vae_jax import divergences"),
        (import_direction, "vae_jax/vae.py", "from . import evaluation"),
        (import_direction, "vae_jax/vae.py", "import vae_jax.estimators.sgvb"),
        (import_direction, "vae_jax/vae.py", "import vae_jax"),
        (import_direction, "vae_jax/vae.py", "from vae_jax import training"),
        (import_direction, "vae_jax/vae.py", "def f():\n  from vae_jax import unknown"),
        (import_direction, "vae_jax/__init__.py", "from vae_jax import types"),
        (import_direction, "vae_jax/vae.py", "import experiments.train"),
        (import_direction, "vae_jax/estimators/a.py", "from vae_jax import evaluation"),
        (import_direction, "vae_jax/estimators/a.py", "from .. import inference"),
        (import_direction, "vae_jax/training/a.py", "from vae_jax import numerics"),
        (
            import_direction,
            "vae_jax/inference/a.py",
            "from vae_jax.training import loop",
        ),
        (import_direction, "vae_jax/data/a.py", "import_module('vae_jax.bounds')"),
        (import_direction, "vae_jax/plots/a.py", "from vae_jax.types import Params"),
        (import_direction, "experiments/a.py", "from tests import problems"),
        (third_party_fences, "vae_jax/vae.py", "from flax import linen"),
        (third_party_fences, "vae_jax/training/loop.py", "import optax"),
        (third_party_fences, "experiments/a.py", "import matplotlib.pyplot as plt"),
        (third_party_fences, "experiments/a.py", "def f():\n  import chex"),
        (third_party_fences, "experiments/benchmark/a.py", "import torch"),
        (third_party_fences, "vae_jax/vae.py", "from absl import logging"),
        (modules_not_names, "vae_jax/vae.py", "from vae_jax.numerics import softplus"),
        (documented, "vae_jax/a.py", "x = 1"),
        (documented, "vae_jax/a.py", "'''A.'''\ndef f(): pass"),
        (
            documented,
            "vae_jax/a.py",
            "'''A.'''\nclass A:\n  '''B.'''\n  def f(self): 0",
        ),
        (fields_documented, "vae_jax/a.py", "class A(NamedTuple):\n  b: int  # c"),
        (
            fields_documented,
            "vae_jax/a.py",
            "class A(NamedTuple):\n  '''B.\n\n  Attributes:\n      b: c.\n  '''\n"
            "  b: int\n  d: int",
        ),
        (key_first, "vae_jax/a.py", "def f(x, key): pass"),
        (key_first, "vae_jax/a.py", "def f(x, *, key): pass"),
        (key_first, "vae_jax/a.py", "class A:\n  def f(self, x, key): pass"),
        (names_of_randomness, "vae_jax/a.py", "def f():\n  return lambda rng: rng"),
        (names_of_randomness, "vae_jax/a.py", "def f(*, seed=0): pass"),
        (keyword_only_defaults, "vae_jax/a.py", "def f(x, y=1): pass"),
        (programs_by_one_function, "experiments/a.py", "@jax.jit\ndef f(): 0"),
        (programs_by_one_function, "vae_jax/a.py", "x = partial(jax.jit, donate=0)"),
        (programs_by_one_function, "vae_jax/a.py", "from jax import jit"),
        (nothing_pickled, "vae_jax/a.py", "import pickle"),
        (nothing_pickled, "experiments/a.py", "def f():\n  import torch.serialization"),
        (nothing_pickled, "experiments/a.py", "torch.load(path)"),
        (nothing_pickled, "experiments/a.py", "from joblib import load"),
        (nothing_pickled, "experiments/a.py", "from numpy import load"),
        (nothing_pickled, "vae_jax/a.py", "np.load(path)"),
        (nothing_pickled, "vae_jax/a.py", "jnp.load(path, allow_pickle=True)"),
        (nothing_pickled, "vae_jax/a.py", "np.savez(file, **arrays)"),
        (nothing_pickled, "vae_jax/a.py", "read(path, allow_pickle=trusted)"),
        (nothing_pickled, "vae_jax/a.py", "frame = pandas.read_pickle(path)"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule, path, source):
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vae_jax/vae.py", "from vae_jax import networks\nfrom vae_jax.types import A"),
        ("vae_jax/evaluation/a.py", "from vae_jax.evaluation import exact"),
        ("vae_jax/evaluation/gaps.py", "from . import exact\nimport optax, sklearn"),
        ("vae_jax/inference/a.py", "from vae_jax.training import gradient"),
        ("vae_jax/training/a.py", "from vae_jax.training import loop"),
        (
            "vae_jax/data/a.py",
            "def f(key, *, data_seed=0):\n  '''A.'''\n  import pooch",
        ),
        ("vae_jax/plots/a.py", "import matplotlib\nfrom vae_jax.plots import images"),
        ("experiments/a.py", "from absl import app\nfrom vae_jax.training import loop"),
        ("experiments/a.py", "def f(x, y=1, seed=0):\n  '''A.'''"),
        ("vae_jax/a.py", "class A:\n  '''B.'''\n  def f(self, key):\n    '''C.'''"),
        ("vae_jax/a.py", "np.load(path, allow_pickle=False), json.load(file), save(x)"),
    ],
)
def test_the_rules_let_good_code_pass(path, source):
    tree = ast.parse(f"'''A module.'''\n{source}")
    assert [problem for rule in RULES for problem in rule(path, tree)] == []
