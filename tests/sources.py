"""The code of this repository as text: its files, their syntax and their imports."""

import ast
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent


def files(folder: str) -> list[str]:
    """Paths of the Python files below a folder, from the root."""
    found = (ROOT / folder).rglob("*.py")
    return sorted(str(path.relative_to(ROOT)) for path in found)


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def parts(path: str) -> list[str]:
    return path.removesuffix(".py").split("/")


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports anywhere, with relative imports resolved."""
    package = parts(path)[:-1]
    for node in ast.walk(tree):
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
