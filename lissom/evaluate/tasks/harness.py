"""Tasks of lm-evaluation-harness (EleutherAI): its library says what is asked, and grades what a model answers.

An example is one of a task's documents, and a batch holds their numbers. Certified can be those of its figures that are
means over the documents of which more is better, as scores from 0 to 1, and perplexities, as log likelihoods: where the
library counts a document by its words or bytes, for each word or byte, every document counting the same.

Shapes: n documents.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError, meant, reason
from lissom.estimate import perplexity
from lissom.evaluate.metric import Metric
from lissom.evaluate.tasks.answers import ANSWERS

PREFIX = "lm-eval:"
EXAMPLES = 8  # documents at once
SEED = 1234  # the library's own, for the examples that are shown


def harness(name: str, tokenizer: Any, data: Path | None = None) -> tuple[Int[Tensor, " n"], Metric]:
    """The examples of a task, and what they are scored by.

    Args:
        name: the library's name of a task, and after a colon that of one of its figures, with its filter if it has
            several, where it is not the first: hellaswag:acc_norm, gsm8k:exact_match,flexible-extract.
        tokenizer: the model's, one of transformers.
        data: a .jsonl file in the form of the task's own data, to be used instead; or a folder with tasks of one's own,
            .yaml files. Without it the library downloads the data.

    Raises:
        DataError: the library is not installed, there is no such task or figure, its data cannot be read, or the figure
            cannot be certified.
    """
    name, _, wanted = name.partition(":")
    task = find(name, data)
    figure, _, chosen = (wanted or next(iter(task.aggregation()))).partition(",")
    kind = scale(name, figure, task)
    task.set_fewshot_seed(SEED)
    task.build_all_requests()
    asked: dict[int, list[Any]] = {}
    for request in task.instances:
        asked.setdefault(request.doc_id, []).append(request)
    output = Graded(task=task, tokenizer=tokenizer, asked=asked, figure=figure, chosen=chosen)
    return torch.tensor(list(asked)), Metric(name=f"{name} {figure}", output=output, examples=EXAMPLES, **kind)


def find(name: str, data: Path | None) -> Any:
    """A task of the library.

    Raises:
        DataError: there is none, or its data cannot be read.
    """
    try:
        from datasets.exceptions import DatasetsError
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DataError(f"{PREFIX}{name}: {reason(error)}; install it: pip install 'lissom[lm-eval]'") from None
    own = data is not None and data.is_dir()
    manager = TaskManager(include_path=data if own else None)
    if name not in manager.all_subtasks:
        raise DataError(f"{PREFIX}{name}: the library has no such task{meant(name, manager.all_subtasks)}")
    member = {"task": name, **({} if data is None or own else stored(data))}
    try:
        (task,) = manager.load({"group": "lissom", "task": [member]})["tasks"].values()  # which lets data be changed
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{PREFIX}{name}: its data cannot be read ({reason(error)}); give them as --data") from None
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise DataError(f"{PREFIX}{name}: it runs what models write, or shows images; choose a task of text alone")
    return task


def stored(file: Path) -> dict[str, Any]:
    """What a task is told to read a file instead of its own data."""
    splits = {"test_split": "test", "validation_split": None, "training_split": None, "fewshot_split": None}
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(file)}}}
    return {**data, **splits}


def scale(name: str, figure: str, task: Any) -> Mapping[str, Any]:
    """How a figure of a task is certified.

    Raises:
        DataError: there is no such figure, or it cannot be.
    """
    from lm_eval.api import metrics

    gathered = task.aggregation()
    logarithms = (metrics.perplexity, metrics.weighted_perplexity, metrics.bits_per_byte)
    good = {
        each
        for each, how in gathered.items()
        if how in logarithms or (how is metrics.mean and task.higher_is_better()[each])
    }
    if figure not in good:
        raise DataError(
            f"{PREFIX}{name}: {figure!r} is no mean over its documents of which more is better, and no perplexity; "
            f"those are: {', '.join(sorted(good)) or 'none'}"
        )
    if gathered[figure] in logarithms:
        return {"summary": perplexity, "bounds": None, "logarithms": True}
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graded:
    """What a model's answers to documents are worth: the output of a metric."""

    task: Any
    tokenizer: Any
    asked: Mapping[int, Sequence[Any]]
    figure: str
    chosen: str

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, " n"]:
        """The figure of each document.

        Raises:
            DataError: the batch is none of documents' numbers.
        """
        if not isinstance(batch, Tensor) or batch.ndim != 1:
            raise DataError(f"{PREFIX}{self.task.task_name}: its examples come from `harness`; other data have no text")
        documents = [[copy(request) for request in self.asked[number]] for number in batch.tolist()]
        requests = [request for document in documents for request in document]
        for kind in {request.request_type for request in requests}:
            those = [request for request in requests if request.request_type == kind]
            answers = ANSWERS[kind](model, self.tokenizer, [request.args for request in those])
            for request, answer in zip(those, answers, strict=True):
                request.resps, request.filtered_resps = [answer] * request.repeats, {}
        self.task._instances = requests
        self.task.apply_filters()
        return torch.tensor([self.grade(document) for document in documents], dtype=torch.float64)

    def grade(self, document: Sequence[Any]) -> float:
        """The figure of one document, from the filtered answers to its requests.

        Raises:
            DataError: there is no such filter.
        """
        filtered = document[0].filtered_resps
        chosen = self.chosen or next(iter(filtered))
        if chosen not in filtered:
            raise DataError(f"{PREFIX}{self.task.task_name}: its filters are {', '.join(filtered)}, not {chosen!r}")
        answers = [request.filtered_resps[chosen] for request in document]
        value = self.task.process_results(document[0].doc, answers)[self.figure]
        return value[0] / value[1] if isinstance(value, tuple) else float(value)
