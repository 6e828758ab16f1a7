"""Reading what the command line names: recipes, texts, arrays, models."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lissom.cli.pairs import TASK as SENTENCES
from lissom.cli.pairs import is_encoder, pairs_for, read_pairs, tokens_for
from lissom.cli.show import notes
from lissom.errors import DataError, RecipeError
from lissom.files import read_text

if TYPE_CHECKING:
    from lissom.artifact import Opened
    from lissom.calibrate import Batch
    from lissom.evaluate import Metric
    from lissom.types import Budget, Recipe


def read_recipe(file: Path, model: str) -> "Recipe":
    """A recipe from a YAML file; of one of SparseML or llm-compressor is told what it becomes for a model.

    Raises:
        RecipeError: it cannot be read or holds no recipe, or a modifier has no counterpart.
    """
    from lissom.types import Recipe

    try:
        text = file.read_text(encoding="utf-8")
        return read_modifiers(file, model) if "modifiers" in text else Recipe.of(yaml.safe_load(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


def read_modifiers(file: Path, model: str) -> "Recipe":
    """A recipe that may be of SparseML or llm-compressor; what became of each modifier goes to the error stream."""
    from lissom.artifact import open_folder
    from lissom.compress.sparseml import import_recipe, is_foreign, read_text
    from lissom.types import Recipe

    given = read_text(file.read_text(encoding="utf-8"))
    if not is_foreign(given):
        return Recipe.of(given)
    found = import_recipe(file, open_folder(model).model if is_module(model) else model)
    notes.print(str(found), highlight=False, markup=False, soft_wrap=True)
    return found.recipe


def text_windows(file: Path, tokenizer: Any, length: int) -> Any:
    """A text file as windows of tokens."""
    from lissom.calibrate import token_windows

    return token_windows(read_text(file), tokenizer, length)


def read_arrays(file: Path, signature: Any) -> "Batch":
    """Inputs and classes from an .npz file: arrays x and y, or labels and arrays named as what the model takes.

    Floats come in the precision that it takes.

    Raises:
        DataError: it cannot be read, holds no such arrays, or they do not fit each other or the model.
    """
    import numpy as np
    import torch

    from lissom.calibrate.data import TARGETS

    try:
        with np.load(file, allow_pickle=False) as arrays:
            held = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no .npz file with arrays x and y: {error}") from None
    classes = next((name for name in ("y", *TARGETS) if name in held), "y")
    if classes not in held or len(held) < 2:
        found = ", ".join(held) or "none"
        raise DataError(f"{file} is no .npz file with arrays x and y, or labels and one for each input: it has {found}")
    y, asked = held.pop(classes).long(), signature["inputs"] if signature else []
    alone = "x" in held and len(asked) < 2
    takes = {"x": asked[0] if asked else None} if alone else {one["name"]: one for one in asked}
    if takes and not takes.keys() <= held.keys():
        raise DataError(f"{file}: beside {classes} it has {', '.join(held)}, and the model takes {', '.join(takes)}")
    inputs = {name: fitting(file, name, held[name], (classes, y), takes.get(name)) for name in takes or held}
    return (inputs["x"], y) if alone else {**inputs, TARGETS[0]: y}


def fitting(file: Path, name: str, x: Any, classes: tuple[str, Any], takes: Any) -> Any:
    """An input as the model takes it, beside the classes of its examples.

    Raises:
        DataError: it does not fit them, or the model.
    """
    import torch

    own, y = classes
    if x.shape[:1] != y.shape:
        raise DataError(
            f"{file}: {name} is {list(x.shape)} and {own} is {list(y.shape)}; {own} needs one class for each example "
            f"of {name}"
        )
    takes = takes or {"shape": [-1, *x.shape[1:]], "datatype": "FP32"}
    if list(x.shape[1:]) != takes["shape"][1:]:
        raise DataError(f"{file}: {name} is {list(x.shape)}, and the model takes {takes['shape']}, -1 being any number")
    floats = {"FP64": torch.float64, "FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
    return x.to(floats.get(takes["datatype"], x.dtype)) if x.is_floating_point() else x


def read_clusters(file: Path | None) -> Any:
    """Labels of examples from an .npy file, None without one.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    import numpy as np

    if file is None:
        return None
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"--clusters: {file} is no .npy file of integers: {error}") from None
    if not isinstance(found, np.ndarray):  # an archive, which stays open
        found.close()
        raise DataError(f"--clusters: {file} is no .npy file of integers: it holds several arrays")
    if found.dtype.kind not in "iu":
        raise DataError(f"--clusters: {file} is no .npy file of integers: it holds {found.dtype}")
    return found


def read_lot(
    file: Path | None, opened: "Opened", length: int, most: int, task: str | None, tokenizer: str | None
) -> tuple[Any, "Metric"]:
    """Examples to evaluate on, and what they are scored by: those of a task, windows of a text, or arrays.

    Raises:
        DataError: there is no such task, or the model is none for it.
    """
    from lissom.evaluate import metric
    from lissom.evaluate.tasks import TASKS
    from lissom.models.text_encoder import TextEncoder

    if isinstance(opened.model, TextEncoder) or (task == SENTENCES and opened.tokenizer is None):
        return drawn(read_pairs(file, opened, task, tokenizer), most), TASKS[SENTENCES].metric
    if task is not None:
        examples, kind = read_task(task, file, opened.tokenizer, opened.folder)
        return drawn(examples, most), kind
    if file is None:
        raise DataError("--data: give examples; only tasks of lm-eval (--task lm-eval:hellaswag) bring their own")
    if opened.tokenizer is not None:
        return drawn(text_windows(file, opened.tokenizer, length), most), metric("perplexity")
    return drawn(read_arrays(file, opened.signature), most), metric("accuracy")


def read_task(
    task: str, file: Path | None, tokenizer: Any, folder: str | Path, option: str = "data"
) -> tuple[Any, "Metric"]:
    """The examples of a language model's task, and what they are scored by; `option` is what names their file.

    Raises:
        DataError: there is no such task, its file is missing, or the model is none for it.
    """
    from lissom.evaluate.tasks import task as find
    from lissom.evaluate.tasks.harness import PREFIX, harness

    found = None if task.startswith(PREFIX) else find(task)
    if tokenizer is None:
        raise DataError(f"--task {task}: {folder} is no language model, nor a text encoder for sts; leave it out")
    if found is None:
        return harness(task.removeprefix(PREFIX), tokenizer, file)
    if file is None:
        raise DataError(
            f"--{option}: give examples of {task}; only tasks of lm-eval (--task {PREFIX}hellaswag) bring their own"
        )
    return found.read(file, tokenizer), found.metric


def drawn(examples: Any, most: int) -> Any:
    """So many of the examples, at most, in random order."""
    import torch

    from lissom.calibrate.data import each, tensors

    order = torch.randperm(len(tensors(examples)[0]), generator=torch.Generator().manual_seed(0))[:most]
    return each(examples, lambda part: part[order])


def read_subject(model: str, data: Path, length: int, windows: int, task: str | None = None) -> tuple[Any, Any]:
    """What to optimize, and the examples: a module with arrays, a text encoder with pairs of sentences, or a language
    model with windows of a text.
    """
    from lissom.artifact import open_folder
    from lissom.models import Checkpoint
    from lissom.models.text_encoder import TextEncoder

    if is_module(model) or is_encoder(model):
        opened = open_folder(model)
        if isinstance(opened.model, TextEncoder):
            return opened.model, read_pairs(data, opened, task)
        return opened.model, read_arrays(data, opened.signature)
    return model, text_windows(data, Checkpoint(model).tokenizer(), length)[:windows]


def is_module(model: str) -> bool:
    """Whether a model is a folder with a module in it, and no language model."""
    from lissom.artifact import MANIFEST
    from lissom.files import read_json

    manifest = Path(model) / MANIFEST
    return manifest.is_file() and read_json(manifest).get("kind") == "module"


def read_again(
    original: str | None, data: Path | None, length: int, windows: int, task: str | None, file: Path | None
) -> tuple[Any, Any, "Metric"]:
    """The data and the examples that a search was given, None where they are not, and the metric that it was for.

    Raises:
        DataError: there is data and no model for it, or no such task.
    """
    from lissom.evaluate import METRICS
    from lissom.evaluate.tasks import task as find

    if data is None:
        default = METRICS["perplexity" if original is None or not is_module(original) else "accuracy"]
        return None, None, find(task).metric if task else default
    if original is None:
        raise DataError("--data: name by --original the model that optimize was given, too")
    subject, examples = read_subject(original, data, length, windows, task)
    return examples, *read_scored(subject, task, file)


def read_scored(subject: Any, task: str | None, file: Path | None) -> tuple[Any, "Metric"]:
    """What is scored where that is not the data itself, else None, and the metric that a budget without a name is for.

    Raises:
        DataError: a file is given and no task, there is no such task, or the model is none for it.
    """
    from lissom.evaluate import METRICS
    from lissom.evaluate.tasks import TASKS
    from lissom.models import Checkpoint
    from lissom.models.text_encoder import TextEncoder

    if isinstance(subject, TextEncoder):
        return None if file is None else pairs_for(file, subject, "the encoder"), TASKS[SENTENCES].metric
    language = isinstance(subject, str)
    if task is not None:
        tokenizer = Checkpoint(subject).tokenizer() if language else None
        return read_task(task, file, tokenizer, subject if language else "a module", "task-data")
    if file is not None:
        raise DataError(f"--task-data {file}: say by --task what it holds, such as lambada")
    return None, METRICS["perplexity" if language else "accuracy"]


def read_budgets(
    given: list[str] | None, kind: "Metric", task: str | None, confidence: str, relative: bool
) -> "dict[Metric, Budget]":
    """Budgets written as 1%, which is for one metric, or kl=0.05, which names its own.

    Raises:
        DataError: a metric does not exist, has two budgets, or is not the task's; or what is given is no fraction.
    """
    from lissom.evaluate import metric
    from lissom.types import Budget

    sure = fraction("confidence", confidence)
    found: dict[Metric, Budget] = {}
    for each in given or ["1%"]:
        name, _, drop = each.rpartition("=")
        if name and task:
            raise DataError(f"--budget {each}: with --task the budget is the task's; write --budget {drop}")
        by = metric(name) if name else kind
        if by in found:
            raise DataError(f"--budget {each}: a metric has one budget, and there is one for it already")
        found[by] = Budget(max_drop=fraction("budget", drop), confidence=sure, relative=relative)
    return found


def read_module(model: str) -> tuple[Any, Any]:
    """The module of a folder, and a batch that it takes."""
    from lissom.artifact import open_folder
    from lissom.models.text_encoder import TextEncoder

    opened = open_folder(model)
    if isinstance(opened.model, TextEncoder):
        return opened.model, tokens_for(opened.model)
    return opened.model, example_of(opened.signature, model)


def example_of(signature: Any, model: str) -> Any:
    """A batch of noise in the shape that a module takes.

    Raises:
        DataError: the folder does not say the shape.
    """
    import torch

    if signature is None:
        raise DataError(f"{model} does not say what goes in; save it with example=a batch to bench it")
    return torch.randn([1 if size == -1 else size for size in signature["inputs"][0]["shape"]])


def fraction(name: str, text: str) -> float:
    """A fraction written as 0.01 or 1%.

    Raises:
        DataError: it is neither.
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise DataError(f"--{name} {text!r} is no fraction; write 1% or 0.01") from None


def size(name: str, text: str) -> int:
    """A number of bytes written as 4GB, 512 MiB or 4000000000.

    Raises:
        DataError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?)B?|B)?", text.strip())
    if found is None:
        raise DataError(f"--{name} {text!r} is no size; write 4GB, 512MiB, or a number of bytes")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kMGT".index(unit) if unit else 0))
