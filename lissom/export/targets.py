"""The runtimes that a compressed model can be handed to, and handing it over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lissom.errors import ArtifactError, ModelError, RecipeError, meant
from lissom.evaluate import Comparison, compare
from lissom.export import packed
from lissom.export.fpga import project as fpga
from lissom.export.graphs import archive, executorch, layers, onnx, openvino
from lissom.export.handover import Forms, Given, Handed, Holds, Nearest, Together
from lissom.export.llamacpp import ggml, gguf
from lissom.export.tpu import folder as tpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A runtime: which weights it holds, what comes nearest to the others, and how its files are written.

    `forms` is for one that knows one width for all blocks. With `language` it takes language models only. `write` is
    also given those of `options` that are named, and with `measures` the data; it may give back a report.
    """

    holds: Holds
    nearest: Nearest
    write: Callable[..., dict[str, Any] | None]  # of Given, weights by layer, and the path to make
    together: Together = lambda given, taken: taken
    forms: Forms | None = None
    language: bool = False
    measures: bool = False
    options: tuple[str, ...] = ()


def folder_for(reader: packed.Reader) -> Target:
    """A runtime that reads compressed-tensors."""
    return Target(
        holds=partial(packed.holds, reader),
        nearest=packed.nearest,
        write=partial(packed.write, reader),
        together=partial(packed.together, reader),
        forms=partial(packed.forms, reader),
        language=True,
    )


TARGETS: dict[str, Target] = {
    "gguf": Target(
        holds=ggml.holds,
        nearest=ggml.nearest,
        write=gguf.write,
        together=gguf.together,
        forms=gguf.forms,
        language=True,
    ),
    "transformers": folder_for(packed.ANY),
    "vllm": folder_for(packed.VLLM),
    "sglang": folder_for(packed.KERNELS),
    "tpu": Target(holds=tpu.holds, nearest=tpu.nearest, write=tpu.write, options=("topology",)),
    "fpga": Target(holds=fpga.holds, nearest=fpga.nearest, write=fpga.write, measures=True, options=fpga.OPTIONS),
    "onnx": Target(holds=layers.holds, nearest=layers.nearest, write=onnx.write),
    "openvino": Target(
        holds=partial(layers.holds, asks=layers.OPENVINO, nodes=False), nearest=layers.nearest, write=openvino.write
    ),
    "executorch": Target(
        holds=partial(layers.holds, asks=layers.EXECUTORCH, nodes=False),
        nearest=layers.nearest,
        write=executorch.write,
        options=executorch.OPTIONS,
    ),
    "torch": Target(holds=archive.holds, nearest=archive.nearest, write=archive.write),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was handed over: where it lies, what became of each layer, and what that costs, where it was measured.

    `report` is what else the runtime's files were found to be.
    """

    out: Path
    layers: list[Handed]
    cost: Comparison | None
    report: Mapping[str, Any] | None = None

    @property
    def changed(self) -> list[Handed]:
        """The layers that are not what they were."""
        return [layer for layer in self.layers if layer.error]


def export_folder(
    folder: str | Path, to: str, out: str | Path, *, model: nn.Module | None = None, data: Any = None, **options: Any
) -> Export:
    """Write a model in the form that another runtime reads.

    Each layer stays what it is where the runtime can hold that; else it becomes the nearest that it can.

    Args:
        folder: a folder of ours, or of Hugging Face.
        to: the runtime: "gguf" for llama.cpp, "vllm", "sglang", "transformers"; "tpu"; "fpga" for a project of hls4ml.
        out: the file or folder to make.
        model: an instance of a module's own class, for a class that is not torch.nn's.
        data: windows of tokens (n, t), or of another module labelled examples, on which is measured what changes cost.
        options: what else the runtime can be told: the `topology` of TPUs, as "v5e-8"; of "fpga" `part`, `clock_ns`,
            `reuse`, `bits` and `calibration`; of "executorch" `batch` and `tokens`.

    Raises:
        RecipeError: there is no such runtime, or it has no such option.
        ModelError: it is no model that the runtime knows.
        ArtifactError: the name is taken, or the disk is full.
    """
    if to not in TARGETS:
        raise RecipeError(f"export: no runtime is called {to!r}; there are {', '.join(TARGETS)}{meant(to, TARGETS)}")
    if Path(out).exists():
        raise ArtifactError(f"{out} exists already; remove it or choose another name")
    target = TARGETS[to]
    if wrong := next((name for name in options if name not in target.options), None):
        possible = ", ".join(target.options) or "none"
        raise RecipeError(f"export: {to} has no option {wrong!r}; it has {possible}{meant(wrong, target.options)}")
    given = Given.of(folder, model)
    if target.language and given.config is None:
        raise ModelError(f"{folder} is no language model, and {to} takes no others")
    taken, told = given.handed(target.holds, target.nearest, target.together, target.forms)
    by = "accuracy" if given.config is None else "perplexity"
    cost = None if data is None else compare(given.model, given.changed(taken), data, by)
    more = {**options, "data": data} if target.measures else options
    report = target.write(given, taken, Path(out), **more)
    return Export(out=Path(out), layers=told, cost=cost, report=report)
