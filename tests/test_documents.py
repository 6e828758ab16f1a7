"""The README and the tutorials, run from top to bottom as a reader would.

Python blocks share one namespace, as in a notebook; `$ lissom` lines go through the real command line, in a folder that
looks like the repository; `lissom serve` is left running for the blocks after it; a yaml block is the recipe. A block
after a comment `<!-- ... covered by PATH -->` is not run here: that file runs it, and a page has the very lines.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lissom.techniques import LAYER

BLOCK = re.compile(r"(?:<!--(?P<comment>[^\n]*)-->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
COVERED = re.compile(r"covered by (\S+)")
PATIENCE_S = 600  # a command that takes longer hangs
STORIES = {"README.md": 90_000, "language.md": 90_000}  # characters: enough to certify a model that hardly differs
TUTORIALS = ("cnn", "encoder", "language", "metric", "technique")
DOCUMENTS = ["README.md", *(f"docs/tutorials/{name}.md" for name in TUTORIALS)]
CLI = [sys.executable, "-c", "from lissom.cli import main; main()"]


@dataclass
class Reader:
    """One who types a document into a shell and a notebook."""

    document: str
    folder: Path
    port: int
    names: dict[str, Any] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def yaml(self, text: str) -> None:
        (self.folder / "recipe.yaml").write_text(text, encoding="utf-8")

    def python(self, text: str) -> None:
        exec(compile(text, self.document, "exec"), self.names)

    def console(self, text: str) -> None:
        for line in re.findall(r"^\$ (.+)$", text, flags=re.M):
            program, *words = shlex.split(line)
            assert program == "lissom", f"{self.document}: no test runs `{line}`; say which file covers it"
            (self.serve if words[0] == "serve" else self.command)(words)

    def command(self, words: list[str]) -> None:
        done = subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, f"lissom {shlex.join(words)}\n{done.stdout}{done.stderr}"

    def serve(self, words: list[str]) -> None:
        server = subprocess.Popen([*CLI, *words])
        self.servers.append(server)
        wait_for(f"http://127.0.0.1:{self.port}/health/ready", server)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
            return
        time.sleep(0.2)
    pytest.fail(f"{url} does not answer")


@contextmanager
def reading(root: Path, document: str, folder: Path) -> Iterator[Reader]:
    """A reader in a folder with the demo model and, to be quick, some of its stories; no server is left at the end."""
    demo = shutil.copytree(root / "lissom" / "demo", folder / "lissom" / "demo")
    stories = (demo / "stories.txt").read_text(encoding="utf-8")
    (demo / "stories.txt").write_text(stories[: STORIES.get(Path(document).name)], encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader = Reader(document=document, folder=folder, port=port)
    try:
        yield reader
    finally:
        for server in reader.servers:
            server.terminate()
        for server in reader.servers:
            server.wait(timeout=30)


def blocks(root: Path, document: str) -> list[tuple[str, str, str]]:
    """Comment, language and text of every block."""
    text = (root / document).read_text(encoding="utf-8")
    return [(found["comment"] or "", found["language"], found["text"]) for found in BLOCK.finditer(text)]


def own(root: Path, document: str) -> list[tuple[str, str]]:
    """Language and text of the blocks that are run here."""
    return [(kind, text) for comment, kind, text in blocks(root, document) if not COVERED.search(comment)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_snippet_runs(root: Path, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    with reading(root, document, tmp_path) as reader, patch.dict(LAYER):  # to which a tutorial adds its own
        for language, text in own(root, document):
            getattr(reader, language)(text.replace("8000", str(reader.port)))
        assert all(server.poll() is None for server in reader.servers)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_covers_a_snippet_is_there(root: Path, document: str) -> None:
    covered = [(found[1], text) for comment, _, text in blocks(root, document) if (found := COVERED.search(comment))]
    assert [path for path, _ in covered if not (root / path).is_file()] == []
    for path, text in covered:
        if path in DOCUMENTS:
            run = "".join(snippet for _, snippet in own(root, path)).splitlines()
            assert [line for line in text.splitlines() if line not in run] == [], f"{path} does not run them"


def test_every_tutorial_is_run(root: Path) -> None:
    assert sorted(path.stem for path in (root / "docs" / "tutorials").iterdir()) == sorted(TUTORIALS)


def test_the_ci_finds_the_test_command(root: Path) -> None:
    marked = [text for comment, _, text in blocks(root, "README.md") if "the test command" in comment]
    assert marked == ["$ make test\n"]
    assert "<!-- the test command" in (root / ".ci" / "run").read_text(encoding="utf-8")


def test_the_chinese_readme_says_the_same(root: Path) -> None:
    """The same commands and snippets in the same order, the same headings, rows and links."""
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    blocks = [[match.group(0) for match in BLOCK.finditer(text)] for text in (english, chinese)]
    assert blocks[0] == blocks[1]
    prose = [BLOCK.sub("", text) for text in (english, chinese)]
    for sign in (r"^#+ ", r"^\| ", r"\]\(((?!README)[^)]+)\)", r"(?<=`)--[a-z-]+"):
        found, translated = (sorted(re.findall(sign, text, flags=re.M)) for text in prose)
        assert found == translated
