"""HellaSwag: which of four endings does the model find the likeliest for its length?

Zellers et al., ACL 2019, arXiv:1905.07830: the authors' .jsonl file, prepared as lm-evaluation-harness does, or a text
in which each question is six lines: the prepared context, which of the endings is right, from 0, and the endings.
"""

import re
from pathlib import Path
from typing import Any

from lissom.errors import DataError
from lissom.evaluate.tasks.continuation import Parts, encode
from lissom.evaluate.tasks.lines import objects
from lissom.files import read_text

ENDINGS = 4


def read(file: Path, tokenizer: Any) -> Parts:
    """The questions of a file.

    Raises:
        DataError: it cannot be read.
    """
    questions = authors(file) if file.suffix == ".jsonl" else six_lines(file)
    contexts, endings, labels = zip(*questions, strict=True)
    return encode(tokenizer, contexts, [[" " + ending for ending in each] for each in endings], labels)


def authors(file: Path) -> list[tuple[str, list[str], int]]:
    """Context, endings and label of each line of the authors' file.

    Raises:
        DataError: a line is no question.
    """
    lines = objects(file, {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": int})
    for line in lines:
        if line["label"] not in range(len(line["endings"])):
            raise DataError(f"{file}: label {line['label']} is none of 0 to {len(line['endings']) - 1}")
    return [
        (
            clean(f"{line['activity_label']}: {line['ctx_a']} {line['ctx_b'].capitalize()}"),
            [clean(ending) for ending in line["endings"]],
            line["label"],
        )
        for line in lines
    ]


def six_lines(file: Path) -> list[tuple[str, list[str], int]]:
    """Context, endings and label of each six lines.

    Raises:
        DataError: the lines are no questions.
    """
    lines = read_text(file).splitlines()
    if not lines:
        raise DataError(f"{file}: no examples are in it; give questions of six lines each, or a .jsonl file")
    size = 2 + ENDINGS
    questions = [lines[begin : begin + size] for begin in range(0, len(lines), size)]
    for number, question in enumerate(questions):
        if len(question) < size or question[1] not in map(str, range(ENDINGS)):
            raise DataError(
                f"{file}:{size * number + 1}: no question of a context, a number from 0 to 3, and 4 endings"
            )
    return [(question[0], question[2:], int(question[1])) for question in questions]


def clean(given: str) -> str:
    """Without the marks of WikiHow."""
    titled = given.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", titled).replace("  ", " ")
