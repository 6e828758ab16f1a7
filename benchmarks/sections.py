"""Sections of a page that benchmarks write: what was printed stands below what was said of it, which stays."""

from pathlib import Path


def write_section(file: Path, title: str, command: str, printed: str) -> None:
    """What a command printed, as a section of a page; the text above it stays where there is one."""
    page = file.read_text(encoding="utf-8")
    before, found, rest = page.partition(f"\n## {title}\n")
    above = rest.partition("```text")[0] if found else "\n"
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    said = "\n".join(line.rstrip() for line in printed.splitlines())
    section = f"## {title}\n{above}```text\n{command}\n\n{said}\n```\n"
    made = file.with_suffix(".new")
    made.write_text(f"{before.rstrip()}\n\n{section}{after}", encoding="utf-8")
    made.rename(file)
