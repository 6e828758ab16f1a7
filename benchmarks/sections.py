"""Sections of a page that benchmarks write; what others have written on it stays."""

from pathlib import Path


def put_section(file: Path, title: str, body: str) -> None:
    """A section of a page, in place of what it was, or at the end."""
    page = file.read_text(encoding="utf-8")
    before, _, rest = page.partition(f"\n## {title}\n")
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    made = file.with_suffix(".new")
    made.write_text(f"{before.rstrip()}\n\n## {title}\n{body.rstrip()}\n{after}", encoding="utf-8")
    made.rename(file)


def write_section(file: Path, title: str, command: str, printed: str) -> None:
    """What a command printed, as a section of a page; what was said above it stays where there is some."""
    _, found, rest = file.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    above = rest.partition("```text")[0] if found else "\n"
    said = "\n".join(line.rstrip() for line in printed.splitlines())
    put_section(file, title, f"{above}```text\n{command}\n\n{said}\n```")
