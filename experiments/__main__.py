"""Lists the commands: `python -m experiments`, then `python -m experiments.NAME`."""

import ast
import pathlib

FOLDER = pathlib.Path(__file__).parent


def commands(folder: pathlib.Path) -> dict[str, str]:
    """Name and docstring of each command in a folder, in the order of their names.

    A command is a file, or a package with a `__main__.py` beside its `command.py`.
    Nothing is imported, so that the list is there at once.
    """
    files = {path.stem: path for path in folder.glob("*.py") if path.stem[0] != "_"}
    packages = {
        path.parent.name: path.with_name("command.py")
        for path in folder.glob("*/__main__.py")
    }
    return {name: _docstring(path) for name, path in sorted((files | packages).items())}


def main() -> None:
    """Prints a line for each command."""
    texts = commands(FOLDER)
    width = max(map(len, texts))
    for name, text in texts.items():
        print(f"{name:<{width}}  {text.splitlines()[0].removesuffix('.')}")
    print("\npython -m experiments.NAME --help says more.")


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


if __name__ == "__main__":
    main()
