"""The pages of the documentation that are read off the package: mkdocs calls this (mkdocs.yml), and nothing is kept.

A page for each command of the command line, for each technique, and for each name of `import lissom`; and the README,
CONTRIBUTING and the changelog, whose links lead within the site.
"""

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import lissom
from lissom.cli import VERBS, app
from lissom.techniques import TECHNIQUES
from lissom.techniques.describe import describe

ROOT = Path(__file__).resolve().parent.parent
TAKEN = {"index.md": "README.md", "zh.md": "README.zh.md", "contributing.md": "CONTRIBUTING.md"}
TAKEN["changelog.md"] = "CHANGELOG.md"
FAMILIES = {"prune": "Pruning", "share": "Weight sharing", "quantize": "Quantization", "recover": "Recovery"}
GRAINS = {
    "layer": "one layer",
    "coupling": "layers that must change together",
    "shape": "layers that must change together, which become smaller or change places",
    "stream": "the residual stream of a language model",
    "norm": "the batch norm behind a layer",
    "several": "all layers that a step names, together",
    "block": "a block at a time",
    "model": "the whole model",
}
WIDE = 80  # signs of a line of code
COMMENT = re.compile(r"<!--.*?-->\n?", re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
CODE = re.compile(r"(`[^`]*`)")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$", re.M)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The generated pages take their places in the table of contents."""
    places = {
        "Commands": [{f"lissom {name}": f"commands/{name}.md"} for name in names(VERBS)],
        "Python": [{name: f"python/{name}.md"} for name in lissom.__all__],
        "Techniques": ["techniques/index.md", *(f"techniques/{name}.md" for name in TECHNIQUES)],
    }
    assert config.nav is not None
    config.nav = [{name: places.get(name, pages) for name, pages in entry.items()} for entry in config.nav]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page that is made."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Their paths in the site, and their texts."""
    for path, source in TAKEN.items():
        yield path, taken((ROOT / source).read_text(encoding="utf-8"))
    for verb in VERBS:
        yield f"commands/{verb.__name__}.md", command(verb)
    for name in lissom.__all__:
        yield f"python/{name}.md", python(name)
    yield "techniques/index.md", overview()
    for name in TECHNIQUES:
        yield f"techniques/{name}.md", technique(name)


def taken(text: str) -> str:
    """A page of the repository as one of the site."""
    there = {source: path for path, source in TAKEN.items()}
    return LINK.sub(lambda link: f"]({there.get(link[1], link[1].removeprefix('docs/'))}", COMMENT.sub("", text))


def command(verb: Callable[..., Any]) -> str:
    """A command: what it does, how it is called, what it takes."""
    said: Any = typer.main.get_command(app)
    name = verb.__name__
    parameters = [one for one in said.commands[name].params if not one.hidden]
    words = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in parameters if not dashed(one)]
    asked = [f"{one.opts[0]} …" for one in parameters if dashed(one) and one.required]
    call = " ".join(["lissom", name, *words, *asked, "[options]"])
    rows = [
        (f"`{'`, `'.join(one.opts)}`" if dashed(one) else f"`{one.name.upper()}`", *facts(one)) for one in parameters
    ]
    lines = [f"# lissom {name}", "", docstring(verb.__doc__ or ""), "", f"```text\n{call}\n```", "", *table(rows), ""]
    lines += [f"Every option can be given by the environment too, as `LISSOM_{name.upper()}_` and its name."]
    return "\n".join(lines)


def dashed(parameter: Any) -> bool:
    """Whether it is an option, or else an argument by its place."""
    return bool(parameter.opts[0].startswith("-"))


def facts(parameter: Any) -> tuple[str, str]:
    """What a parameter is, and its default."""
    default = getattr(parameter, "default", None)
    shown = "needed" if parameter.required else "" if default in (None, False, [], ()) else f"`{default}`"
    return prose(parameter.help or ""), shown


def python(name: str) -> str:
    """A name of the package: how it is called, its docstring, and those of its methods."""
    value = getattr(lissom, name)
    error = inspect.isclass(value) and issubclass(value, Exception)
    called = "" if error else f"```python\nlissom.{name}{signature(value)}\n```\n"
    return "\n".join([f"# lissom.{name}", "", called, docstring(inspect.getdoc(value) or ""), *members(value)])


def signature(value: Callable[..., Any]) -> str:
    """How it is called, in the words of its source: of a class its fields, or what it is made of."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    made = tree
    if isinstance(tree, ast.ClassDef):
        made = next((one for one in tree.body if getattr(one, "name", "") == "__init__"), None)
        if made is None:
            return called(["*", *(ast.unparse(one) for one in tree.body if isinstance(one, ast.AnnAssign))])
    given, needed = made.args, len(made.args.args) - len(made.args.defaults)
    words = [argument(*pair) for pair in zip(given.args, [None] * needed + given.defaults, strict=True)]
    words += ["*"] * bool(given.kwonlyargs) + [
        argument(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    words += [f"**{ast.unparse(given.kwarg)}"] if given.kwarg else []
    gives = f" -> {ast.unparse(made.returns)}" if made is tree and made.returns else ""
    return called([word for word in words if word != "self"]) + gives


def argument(given: ast.arg, default: ast.expr | None) -> str:
    """An argument as it is written."""
    return ast.unparse(given) + (f" = {ast.unparse(default)}" if default else "")


def called(words: Sequence[str]) -> str:
    """Arguments in brackets, each on a line of its own where they do not fit into one."""
    line = f"({', '.join(words)})"
    return line if len(line) < WIDE else "(\n" + "".join(f"    {word},\n" for word in words) + ")"


def members(value: Any) -> Iterator[str]:
    """The methods and properties of a class that say what they are."""
    own = vars(value) if inspect.isclass(value) else {}
    for name, member in own.items():
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield f"\n## {name}\n\n{docstring(inspect.getdoc(function) or '')}"


def overview() -> str:
    """All techniques by family."""
    lines = ["# Techniques", "", "One technique is one file, one paper and one function. A recipe names them, and the"]
    lines += ["search tries them. `lissom techniques NAME` prints what these pages say."]
    for family, title in FAMILIES.items():
        own = [describe(name) for name in TECHNIQUES if f".{family}." in TECHNIQUES[name].__module__]
        rows = [(f"[{one.name}]({one.name}.md)", prose(after_colon(one.title)), GRAINS[one.grain]) for one in own]
        lines += ["", f"## {title}", "", *table(rows, ("technique", "what it does", "sees"))]
    return "\n".join(lines)


def technique(name: str) -> str:
    """A technique: its file's docstring with formula and paper, its knobs, a step of a recipe, and its source."""
    found, function = describe(name), TECHNIQUES[name]
    _, _, text = (sys.modules[function.__module__].__doc__ or "").partition("\n")
    papers = [f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" for paper in found.papers if paper.arxiv]
    collects = ", ".join(f"`{kind}`" for kind in found.statistics) or "nothing"
    knobs = [(f"`{knob.name}`", " or ".join(knob.types), f"`{knob.default!r}`") for knob in found.knobs]
    step = "\n".join(
        [f"  - technique: {name}", *(f"    {knob.name}: {json.dumps(knob.default)}" for knob in found.knobs)]
    )
    lines = [
        f"# {name}",
        "",
        f"**{prose(found.title)}**",
        "",
        docstring(text),
        "",
        docstring(function.__doc__ or ""),
        "",
    ]
    lines += [f"Sees {GRAINS[found.grain]}; calibration collects {collects}. {' · '.join(papers)}", ""]
    lines += ["## Knobs", "", *table(knobs, ("knob", "kind", "default")), ""]
    lines += [
        "## In a recipe",
        "",
        "With its defaults, which may be left out:",
        "",
        f"```yaml\nsteps:\n{step}\n```",
        "",
    ]
    source = textwrap.indent(f"```python\n{inspect.getsource(function)}```", "    ")
    return "\n".join([*lines, f'???+ note "{function.__module__.replace(".", "/")}.py"', "", source])


def after_colon(title: str) -> str:
    """A title without the technique's name."""
    return title.partition(": ")[2] or title


def docstring(text: str) -> str:
    """A docstring as Markdown: its sections as lists; what is indented stays as it is, and no sign is lost."""
    told, *sections = SECTION.split(inspect.cleandoc(text))
    lines = [line if line.startswith("    ") else prose(line) for line in told.splitlines()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        entries = re.split(r"\n(?=\S)", inspect.cleandoc(body))
        lines += [f"**{title}**", "", *(entry(one) for one in entries if one.strip()), ""]
    return "\n".join(lines)


def entry(text: str) -> str:
    """An argument or an error of a docstring."""
    name, colon, what = " ".join(text.split()).partition(": ")
    return f"- `{name}`: {prose(what)}" if colon else f"- {prose(name)}"


def prose(text: str) -> str:
    """Text in which nothing but backticks means anything to Markdown."""
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts)


def table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ("", "what it is", "default")) -> list[str]:
    """Rows in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *lines] if lines else ["None."]


def names(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """What functions are called."""
    return [function.__name__ for function in functions]
