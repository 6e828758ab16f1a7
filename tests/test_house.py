"""The rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation

LONGEST = 400
PLACES = ("lissom", "tests", "examples", "benchmarks", "docs", ".ci")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PURE = ("types.py", "estimate", "statistics.py", "formats", "techniques")
ROOTS = "|".join(("work", "farm", "root", "home", "Users", "tmp/w"))
MACHINE = re.compile(rf"(?<![\w./])/({ROOTS})(?=[/\s\"'`)]|$)")


def written(root: Path) -> list[Path]:
    """Every file of the repository that people write."""
    below = [path for place in PLACES for path in (root / place).rglob("*") if "__pycache__" not in path.parts]
    return sorted(path for path in [*root.iterdir(), *below] if path.is_file() and path.suffix != ".so")


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Those of them that hold text, with the text."""
    for path in written(root):
        try:
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_file_is_too_long(root: Path) -> None:
    sizes = {name: text.count("\n") for name, text in texts(root) if name.endswith((".py", ".html", ".md", ".c", ".h"))}
    assert len(sizes) > 20
    sizes.pop("docs/map.md", None)  # an index, with a line for every file
    assert {name: lines for name, lines in sizes.items() if lines > LONGEST} == {}


def test_nothing_is_pickled(root: Path) -> None:
    sources = [path for path in written(root) if path.suffix == ".py"]
    assert {path.name for path in sources if {name.split(".")[0] for name in imports(path)} & PICKLES} == set()


def test_no_file_knows_a_machine(root: Path) -> None:
    assert MACHINE.search("see /" + "work/shared")
    assert {name: found[0] for name, text in texts(root) if (found := MACHINE.search(text))} == {}


def test_the_mathematics_does_not_know_other_processes(root: Path) -> None:
    rooms = [root / "lissom" / room for room in PURE]
    files = [file for room in rooms for file in (room.rglob("*.py") if room.is_dir() else [room])]
    assert len(files) > len(PURE)
    assert [file.name for file in files if any(name.startswith("torch.distributed") for name in imports(file))] == []


def test_the_map_is_true(root: Path) -> None:
    printed = subprocess.run([sys.executable, root / "docs" / "map.py"], capture_output=True, text=True, check=True)
    assert (root / "docs" / "map.md").read_text(encoding="utf-8") == printed.stdout, "run `make map`"


def test_the_map_names_every_file_with_a_sentence(root: Path) -> None:
    package = root / "lissom"
    told = dict(re.findall(r"^- `([^`]+)`(.*)$", (root / "docs" / "map.md").read_text(encoding="utf-8"), flags=re.M))
    there = {path.relative_to(package).as_posix() for path in written(root) if package in path.parents}
    assert {name for name in there if not name.endswith("/__init__.py")} - set(told) == set()
    assert [name for name, sentence in told.items() if len(sentence) < 10] == []


def test_every_public_name_says_what_it_is() -> None:
    import lissom

    assert lissom.__all__
    for name in lissom.__all__:
        value = getattr(lissom, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), f"lissom.{name} has no docstring"
            assert not value.__doc__.startswith(f"{name}("), f"lissom.{name} has only the docstring that dataclass made"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/map.md", "docs/log.md"])
def test_links_inside_the_repository_lead_somewhere(root: Path, name: str) -> None:
    file = root / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_types_and_shapes_are_checked_while_tests_run() -> None:
    from lissom.estimate.betting import gains
    from lissom.files import read_text
    from lissom.types import Step

    with pytest.raises(BeartypeCallHintViolation, match="path"):
        read_text("a name")  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation, match="technique"):
        Step(technique=3)  # type: ignore[arg-type]
    told = []
    for _ in range(31):  # of what has been called often before one call of so many is checked
        with pytest.raises((jaxtyping.TypeCheckError, ValueError), match=r"typechecking parameter|broadcast") as found:
            gains(np.zeros(2), np.zeros(3), 0.1)
        told.append(found.type)
    assert jaxtyping.TypeCheckError in told
