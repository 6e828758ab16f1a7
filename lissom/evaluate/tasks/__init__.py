"""Tasks: examples from a file, in the form their authors distribute them, and the metric that scores them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.evaluate.metric import Metric
from lissom.evaluate.tasks import blimp, choices, hellaswag, lambada, sts
from lissom.evaluate.tasks.continuation import GREEDY, LIKELIEST, LIKELIEST_BY_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`read` makes examples of a file and a tokenizer of transformers, in the order of the file."""

    metric: Metric
    read: Callable[[Path, Any], Batch]


TASKS = {
    "blimp": Task(metric=LIKELIEST, read=blimp.read),
    "choices": Task(metric=LIKELIEST, read=choices.read),
    "exact": Task(metric=GREEDY, read=choices.read_exact),
    "hellaswag": Task(metric=LIKELIEST_BY_LENGTH, read=hellaswag.read),
    "lambada": Task(metric=GREEDY, read=lambada.read),
    "sts": Task(metric=sts.SPEARMAN, read=sts.read),
}


def task(name: str) -> Task:
    """A task from its name.

    Raises:
        DataError: there is none of that name.
    """
    if name not in TASKS:
        raise DataError(f"task: {name!r} is none of {', '.join(TASKS)}")
    return TASKS[name]
