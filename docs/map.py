"""Prints docs/map.md: every room and file of the package, with the first line of its docstring (`make map`)."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lissom"
INTRODUCTION = """\
# The map

Data flows one way. A room imports only from the rooms above it on this page; those of one line do not import one
another. `make lint` enforces it. The tests mirror the package, file by file. This page is made from the first line of
each file by `make map`, and a test checks that it is true.
"""
MADE = {".pyc", ".so"}
# What cannot speak for itself.
OTHERS = {
    "demo": "A tiny Llama, trained for this project: what `make demo`, the README and the tests use.",
    "demo/config.json": "4 layers, hidden size 256, vocabulary 2048.",
    "demo/generation_config.json": "Where a story begins and ends.",
    "demo/model.safetensors": "Its weights, bfloat16.",
    "demo/stories.txt": "Stories to calibrate it with and to measure it on.",
    "demo/tokenizer.json": "Its tokenizer.",
    "demo/tokenizer_config.json": "Its special tokens.",
    "py.typed": "Tells type checkers that the package is typed.",
    "server/page/page.css": "Its style, for light and dark, wide and narrow.",
    "server/page/page.html": "What is on it, before anything is known.",
    "server/page/page.js": "What it asks the server, and how it shows the answers.",
    "report/learning.html": "The template of the page on how a model learned.",
    "report/page.css": "Its style, for light and dark, wide and narrow, and paper.",
    "report/page.html": "The template of the page.",
    "report/page.js": "What answers when a point is pointed at or chosen; the page is whole without it.",
}


def page() -> str:
    """The whole map."""
    rooms = river()
    beside = sorted(name for name in entries(PACKAGE) if name not in {room for layer in rooms for room in layer})
    lines = [INTRODUCTION, "## The package", *(line(PACKAGE / name) for name in beside if (PACKAGE / name).is_file())]
    for layer in rooms:
        lines += ["", f"## {', '.join(layer)}", *(told for name in layer for told in room(PACKAGE / name))]
    for name in beside:
        if (PACKAGE / name).is_dir():
            lines += ["", f"## {name}", *room(PACKAGE / name)]
    return "\n".join(lines) + "\n"


def river() -> list[list[str]]:
    """The rooms that are built, lowest first, from the contract that import-linter checks."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [
        [name.strip(" ()").removeprefix("lissom.") for name in layer.split("|")]
        for layer in reversed(linter["contracts"][0]["layers"])
    ]
    built = [[path for name in layer for path in (name, f"{name}.py") if (PACKAGE / path).exists()] for layer in layers]
    return [layer for layer in built if layer]


def room(path: Path) -> Iterator[str]:
    """A line for the room, and one for everything in it."""
    yield line(path)
    if path.is_dir():
        yield from (told for name in entries(path) for told in room(path / name))


def entries(folder: Path) -> list[str]:
    """What lies in a folder, without what machines make and without the file that speaks for the folder itself."""
    inside = folder != PACKAGE
    names = (path.name for path in folder.iterdir() if path.name != "__pycache__" and path.suffix not in MADE)
    return sorted(name for name in names if not (inside and name == "__init__.py"))


def line(path: Path) -> str:
    """One path and its sentence."""
    name = path.relative_to(PACKAGE).as_posix()
    return f"- `{name}{'/' if path.is_dir() else ''}` {OTHERS.get(name) or sentence(path)}"


def sentence(path: Path) -> str:
    """The first line of the docstring, or of the comment that a file in another language begins with."""
    source = path / "__init__.py" if path.is_dir() else path
    text = source.read_text(encoding="utf-8") if source.exists() else ""
    if source.suffix != ".py":
        return text.partition("\n")[0].strip("/*# ")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    print(page(), end="")
