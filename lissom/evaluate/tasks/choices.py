"""Questions of one's own: a choice of answers to each, or the one answer that the model has to give word by word."""

from pathlib import Path
from typing import Any

from lissom.errors import DataError
from lissom.evaluate.tasks.continuation import Parts, encode
from lissom.evaluate.tasks.lines import objects


def read(file: Path, tokenizer: Any) -> Parts:
    """Lines of {"context": ..., "choices": [...], "answer": 0}, the answer counted from 0; choices bring their spaces.

    Raises:
        DataError: it cannot be read, or an answer is none of the choices.
    """
    lines = objects(file, {"context": str, "choices": list, "answer": int})
    for line in lines:
        if line["answer"] not in range(len(line["choices"])):
            raise DataError(f"{file}: answer {line['answer']!r} is none of 0 to {len(line['choices']) - 1}")
    texts = [line["context"] for line in lines]
    return encode(tokenizer, texts, [line["choices"] for line in lines], [line["answer"] for line in lines])


def read_exact(file: Path, tokenizer: Any) -> Parts:
    """Lines of {"prompt": ..., "answer": ...}; the answer brings the space before it, and what must end it if any.

    Raises:
        DataError: it cannot be read, or a line is no question.
    """
    lines = objects(file, {"prompt": str, "answer": str})
    answers = [[line["answer"]] for line in lines]
    return encode(tokenizer, [line["prompt"] for line in lines], answers, [0] * len(lines))
