"""The repository's files, each read and parsed once, for the rules about them."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def files(*folders):
    """Python files of some folders, as paths from the root."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths)


LIBRARY, SCRIPTS, TESTS = files("vae_jax"), files("experiments"), files("tests")
CODE = LIBRARY + SCRIPTS
MODULES = [path for path in LIBRARY if not path.endswith("__init__.py")]


@functools.cache
def text(path):
    return (ROOT / path).read_text()


@functools.cache
def tree(path):
    return ast.parse(text(path), path)


@functools.cache
def nodes(tree):
    """All that a syntax tree holds: rules walk the same trees again and again."""
    return tuple(ast.walk(tree))


def parts(path):
    return path.removesuffix(".py").split("/")


def imports(path, tree):
    """Dotted names that a file imports anywhere, with relative imports resolved."""
    package = parts(path)[:-1]
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).split(".")[-1]
            target = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(
                target, ast.Constant
            ):
                yield str(target.value)


def blocks(readme: str, language: str) -> list[str]:
    pattern = rf"```{language}\n(.*?)```"
    return re.findall(pattern, text(readme), flags=re.DOTALL)


def assert_kept(rule, paths):
    """Fails with every break of a rule (path, tree) -> problems, file by file."""
    breaks = [f"{path}: {said}" for path in paths for said in rule(path, tree(path))]
    assert not breaks, "\n".join([rule.__doc__ or rule.__name__, *breaks])
