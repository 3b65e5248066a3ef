"""The structure of the tree: no import circle, and no hidden import without a reason."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import foreknow
from foreknow import errors

PACKAGE = Path(foreknow.__file__).parent
CONTRACTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
LAYERS = [
    [set(re.split(r" [|:] ", layer)) for layer in contract["layers"]]
    for contract in CONTRACTS["contracts"]
    if contract["type"] == "layers"
]
"""The layers of each contract, the highest first."""
FILES = {
    ".".join(("foreknow", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports_of(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, set[str]]]:
    """Every import statement of our own files, wherever it stands, with the files that it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "foreknow":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield node, {name if name in FILES else str(node.module) for name in names} & FILES.keys()
        elif isinstance(node, ast.Import):
            yield node, {alias.name for alias in node.names} & FILES.keys()


def layer_of(module: str, layers: list[set[str]]) -> int | None:
    """The place of a module in the layers of a contract; None if it is in none."""
    return next((n for n, layer in enumerate(layers) if any(f"{module}.".startswith(f"{m}.") for m in layer)), None)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The files of a circle, none where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_runs_in_a_circle_even_inside_a_function_or_for_types_only() -> None:
    graph = {
        name: {found for _, names in imports_of(ast.parse(path.read_text(encoding="utf-8"))) for found in names}
        - {name}
        for name, path in FILES.items()
    }
    assert sum(map(len, graph.values())) > 500, "the imports are seen"
    assert circles(graph) == []


def test_every_module_stands_in_a_layer_and_every_stage_has_its_result_its_page_and_its_run_there() -> None:
    packages, files = ({member for layer in layers for member in layer} for layers in LAYERS)
    stages = {name for name in FILES if re.fullmatch(r"foreknow\.stages\.\w+\.(long_)?(result|page|run)", name)}
    modules = {re.match(r"foreknow\.(stages\.)?\w+", name)[0] for name in FILES} - {"foreknow.__main__"}
    assert modules - packages == {"foreknow.report"} <= files
    assert stages <= files


def test_an_import_for_types_only_keeps_to_the_layers_too() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        for _, names in imports_of(ast.parse(path.read_text(encoding="utf-8")))
        for imported in names
        for layers in LAYERS
        if (lower := layer_of(name, layers)) is not None and (above := layer_of(imported, layers)) is not None
        if above < lower
    ]
    assert wrong == []


def test_the_tree_of_errors_has_every_error_below_its_own_kind() -> None:
    kinds = {
        node.name: {ast.unparse(base) for base in node.bases}
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    ours = {"ForeknowError"}
    while more := {name for name, bases in kinds.items() if bases & ours} - ours:
        ours |= more
    tree, above = {}, {-4: "Exception"}
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w+) ", line):
            depth, name = len(match[1]), match[2]
            tree[name], above[depth] = {above[depth - 4]}, name
    assert tree == {name: kinds[name] for name in ours}


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []


def test_an_import_inside_a_function_says_which_package_it_keeps_out() -> None:
    silent = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node, _ in imports_of(tree):
            ours = isinstance(node, ast.ImportFrom) or any(a.name.startswith("foreknow") for a in node.names)
            if id(node) in inside and ours and not re.search(r"# keeps \w+ out$", lines[node.lineno - 1]):
                silent.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {lines[node.lineno - 1].strip()}")
    assert silent == []
