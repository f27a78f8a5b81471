"""Which files of this repository a script runs on: the modules
that it imports, directly or not, and the data beside them.
"""

import ast
from pathlib import Path

DATA = {".yaml", ".md"}


def local_files(script: Path, home: Path) -> set[Path]:
    """Local modules under `home` that `script` imports, and
    the data files beside them that their code names.
    """
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        source = path.read_text()
        found |= {each for each in path.parent.iterdir() if each.suffix in DATA and each.name in source}
        waiting += [module for name in imported(ast.parse(source)) for module in modules(name, home)]
    return found


def imported_modules(path: Path) -> set[str]:
    """Dotted names that the module at `path` imports."""
    return imported(ast.parse(path.read_text()))


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports, anywhere in it; `from a import b` counts as `a` and as `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(name: str, home: Path) -> list[Path]:
    """The files that importing a dotted name runs: its
    module, and the `__init__` of each package on the way.
    """
    parts = name.split(".")
    if parts[0] != "explainmyxray":
        return []
    packages = [home.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [path for path in [*packages, home.joinpath(*parts).with_suffix(".py")] if path.is_file()]
