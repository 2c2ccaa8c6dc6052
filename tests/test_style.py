"""How things are said: one spelling, names that say what a value is, even sentences."""

import ast
import re

import pytest

from tests import sources
from tests.sources import CODE, LIBRARY, ROOT, TESTS

BRITISH = re.compile(
    r"""
    \w*(?:colour|behaviour|favour|honour|labour|neighbour|flavour|rigour)\w*
    | \w*(?:label|model|cancel|travel|signal|channel|equal|level|total|dial)l(?:ed|ing)
    | (?:\w*_)?(?:re)?cent(?:re[sd]?|ring)(?:_\w*)?
    | \w*(?<![a-z])grey\w*
    | (?:catalogue|artefact|licence|defence|judgement|learnt|whilst|programme)s?
    | \w*analys(?:e|ed|ing)
    | towards
    | \w*(?:norm|optim|initi|regular|amort|factor|parametr?|parameter|minim|maxim
        |organ|summar|visual|penal|margin|vector|serial|random|discret|general|standard
        |binar|linear|quant|recogn|util|categor|symmetr|diagonal|stabil|parallel|special
        |token|synchron|real|equal|memor|local)(?:al)?is(?:e[srd]?|ing|ation|ations)
    """,
    re.VERBOSE | re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z_]+")
VAGUE = {"course", "members", "told", "given", "kept", "found", "drawn", "own"}
OTHERS = {"hypothesis"}  # whose `given` is its decorator
FOLDERS = ("vae_jax", "experiments", "tests", "docs")
THIS = "tests/test_style.py"
MEASURED = re.compile(
    r"""(?<!under\ )(?<![\w.^-])\d[\d.,]*\s?
    (?:ms|us|ns|seconds?|minutes?|hours?|MiB|GiB|MB|GB|kB|[MGT]?FLOPs?
    |-?fold|times\ as\ fast|times\ faster)\b""",
    re.VERBOSE,
)
RANGE = re.compile(r"must lie (?:in [(\[]|inside|between)|must be \S+ or more, got")
ENTRY = re.compile(r"\*{0,2}\w+(, \*{0,2}\w+)*: \S")
SECTIONS = re.compile(r"^(?:Args|Raises):\n((?:[ ]+\S.*(?:\n|$)|\n)+)", re.MULTILINE)
FIRST_COLUMNS = re.compile(r"^ {4}(?=\S)(.*)$", re.MULTILINE)


def _prose():
    """Every file that people read, as paths from the root."""
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    endings = {".py", ".md", ".flags", ".toml"}
    names = {str(p.relative_to(ROOT)) for p in paths if p.suffix in endings}
    return sorted(names - {THIS})


# The rules of a text: (text) -> what is wrong


def american(text):
    """One spelling, which is the American one."""
    for number, line in enumerate(text.splitlines(), 1):
        for word in WORD.findall(line):
            if BRITISH.fullmatch(word):
                yield f"line {number}: {word}"


# The rules of code: (path, tree) -> what is wrong


def names_that_say_what_a_value_is(path, tree):
    """No variable, function, argument, field or module is called after its history."""
    del path
    for node in sources.nodes(tree):
        names = []
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif (
            isinstance(node, ast.Import | ast.ImportFrom)
            and getattr(node, "module", "") not in OTHERS
        ):
            names = [(a.asname or a.name).split(".")[-1] for a in node.names]
        for name in names:
            if name.strip("_").lower() in VAGUE:
                yield f"line {getattr(node, 'lineno', 1)}: {name}"


def errors_without_a_period(path, tree):
    """The sentence of an error, which commands put after `error:`, has no period."""
    del path
    for node in sources.nodes(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        for said in node.exc.args[:1]:
            last = said.values[-1] if isinstance(said, ast.JoinedStr) else said
            if isinstance(last, ast.Constant) and str(last.value).endswith("."):
                yield f"line {node.lineno}: ...{str(last.value)[-40:]}"


def arguments_in_one_form(path, tree):
    """Under `Args:` and `Raises:` stand entries `name: what`, indented by four."""
    del path
    for name, text in _docstrings(tree):
        if re.search(r"^(Arguments|Parameters|Arg|Params):", text, re.MULTILINE):
            yield f"{name}: the heading is Args:"
        for section in SECTIONS.findall(text):
            entries = FIRST_COLUMNS.findall(section)
            if not entries:
                yield f"{name}: entries are indented by four"
            for entry in entries:
                if not ENTRY.match(entry):
                    yield f"{name}: {entry}"


def nothing_measured(path, tree):
    """A docstring holds no measured number: flag files and READMEs hold them."""
    del path
    for name, text in _docstrings(tree):
        for match in MEASURED.finditer(text):
            yield f"{name}: {match.group()}"


def counts_checked_by_check_positive(path, tree):
    """`numerics.check_positive` says that a count is below one."""
    if path.startswith(("vae_jax/training/", "vae_jax/data/", "vae_jax/plots/")):
        return  # which may not import it
    for node in sources.nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
            name, _, rest = ast.unparse(node.test).partition(" < 1")
            said = f"f'{name} must be positive, got {{{name}}}'"
            if not rest and said in ast.unparse(node.body[0]):
                yield f"line {node.lineno}: {name}"


def ranges_checked_in_one_place(path, tree):
    """`numerics.check_in` and `check_at_least` say what a number may be."""
    if path.startswith(("vae_jax/training/", "vae_jax/data/", "vae_jax/plots/")):
        return  # which may not import them
    for node in sources.nodes(tree):
        if isinstance(node, ast.Raise) and path != "vae_jax/numerics.py":
            said = RANGE.search(ast.unparse(node))
            if said:
                yield f"line {node.lineno}: {said.group()}"


def _docstrings(tree):
    for node in sources.nodes(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "the module"), text


def test_every_text_is_spelled_in_one_way():
    breaks = [f"{path}: {w}" for path in _prose() for w in american(sources.text(path))]
    assert not breaks, "\n".join([american.__doc__ or "", *breaks])


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (names_that_say_what_a_value_is, CODE + TESTS),
        (errors_without_a_period, CODE),
        (arguments_in_one_form, CODE),
        (nothing_measured, CODE),
        (counts_checked_by_check_positive, LIBRARY),
        (ranges_checked_in_one_place, LIBRARY),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_code_keeps(rule, paths):
    sources.assert_kept(rule, paths)


def test_the_walk_sees_what_people_read():
    wanted = {"README.md", "pyproject.toml", "vae_jax/README.md", "tests/conftest.py"}
    assert set(_prose()) >= wanted | set(CODE) | set(TESTS) - {THIS}
    assert any(path.endswith(".flags") for path in _prose())


@pytest.mark.parametrize(
    "word",
    [
        *("colour", "test_grey_means", "labelled", "Modelling", "centred", "analysing"),
        *("normalise", "Optimisation", "generalises", "amortised", "parameterised"),
        *("towards", "behaviour"),
    ],
)
def test_other_spellings_are_seen(word):
    assert list(american(f"x = 1  # the {word}"))


@pytest.mark.parametrize(
    "word",
    [
        *("color", "gray", "labeled", "centered", "recenter", "toward", "normalized"),
        *("precise", "noise", "exercise", "otherwise", "promise", "supervised"),
        *("analysis", "optimism", "organism"),
    ],
)
def test_words_that_only_look_like_them_pass(word):
    assert not list(american(word))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (names_that_say_what_a_value_is, "found = 1"),
        (names_that_say_what_a_value_is, "for a, (_kept, b) in x: pass"),
        (names_that_say_what_a_value_is, "def f(*, given): pass"),
        (names_that_say_what_a_value_is, "class A:\n  own: int"),
        (names_that_say_what_a_value_is, "import a.drawn"),
        (names_that_say_what_a_value_is, "def told(): pass"),
        (errors_without_a_period, "raise ValueError('a is wrong.')"),
        (errors_without_a_period, "raise ValueError(f'a is {a}' f', not {b}.')"),
        (arguments_in_one_form, "def f(x):\n  '''A.\n\n  Args:\n      x - b\n  '''"),
        (arguments_in_one_form, "def f(x):\n  '''A.\n\n  Args:\n    x: b.\n  '''"),
        (arguments_in_one_form, "def f(x):\n  '''A.\n\n  Params:\n      x: b'''"),
        (nothing_measured, "'''It takes 12 seconds.'''"),
        (nothing_measured, "def f():\n  '''A run holds 1.5 GiB.'''"),
        (nothing_measured, "class A:\n  '''It is 3 times faster.'''"),
        (
            counts_checked_by_check_positive,
            "if a < 1:\n  raise ValueError(f'a must be positive, got {a}')",
        ),
        (
            ranges_checked_in_one_place,
            "if a <= 0.0:\n  raise ValueError(f'a must lie in (0, 1], got {a}')",
        ),
        (
            ranges_checked_in_one_place,
            "if a < 2:\n  raise ValueError(f'a must be two or more, got {a}')",
        ),
    ],
)
def test_a_rule_finds_what_breaks_it(rule, source):
    assert list(rule("vae_jax/a.py", ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "x.found, y = f(given=1, kept=2), z.drawn",
        "raise ValueError('a is wrong; use b, as in e.g. c')",
        "def f(x, y):\n  '''A.\n\n  Args:\n      x, y: b\n          c\n      z: d'''",
        "'''In under 5 seconds, exp(2 s), 10 steps, 1 million.'''",
        "if a < 2:\n  raise ValueError(f'a must be at least two, got {a}')",
    ],
)
def test_the_rules_let_good_code_pass(source):
    tree = ast.parse(source)
    rules = (
        names_that_say_what_a_value_is,
        errors_without_a_period,
        arguments_in_one_form,
        nothing_measured,
        counts_checked_by_check_positive,
        ranges_checked_in_one_place,
    )
    assert [said for rule in rules for said in rule("vae_jax/a.py", tree)] == []
