"""What is handed over: models in recipes, with examples, what their outputs are worth, and each export of them."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import digits
from encoder import correlation
from subjects import SUBJECTS, Subject
from torch import Tensor, nn

import lissom
from lissom.calibrate import Batch, call
from lissom.calibrate.data import each, tensors
from lissom.export.targets import TARGETS, export_folder
from lissom.models import compressible
from lissom.types import Recipe

WINDOWS, PLACES, EXAMPLES = 8, 128, 512  # of a language model, of its windows where few are asked, of other modules
CALIBRATION = 256  # examples
LENGTH = 512  # tokens of a window
FEW = ("gguf", "vllm", "sglang", "tpu")  # exports of language models whose runtimes are asked for few places
BATCH = 16  # examples at once
ENDS = {"gguf": ".gguf", "onnx": ".onnx", "torch": ".pt2", "executorch": ".pte"}  # the others are folders
WEIGHTS = (".safetensors", ".xml", ".bin", ".jax")  # what is counted of a folder
NEEDS = {  # what an export itself imports
    "onnx": "onnxscript",
    "openvino": "openvino",
    "executorch": "executorch",
    "tpu": "torchax",
    "fpga": "hls4ml",
}
BLOCKS = "model.layers.*"
Facts = dict[str, Any]

LANGUAGE = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4": [
        {"layers": BLOCKS, "technique": "gptq", "bits": 4, "group": 128},
        {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8},
    ],
    "int8 inputs, int4 zeros": [
        {"layers": "*.self_attn.*", "technique": "dynamic"},
        {"layers": "*.mlp.*", "technique": "gptq", "bits": 4, "group": 32, "symmetric": False},
    ],
    "many forms": [
        {"layers": "model.layers.0.*", "technique": "gptq", "bits": 3, "group": 64, "symmetric": False},
        {"layers": "model.layers.1.mlp.*", "technique": "kmeans", "bits": 4, "rows": 8},
        {"layers": "model.layers.2.mlp.*", "technique": "channels", "sparsity": 0.25},
        {"layers": "model.layers.2.*", "technique": "gptq", "bits": 4, "group": 32},
        {"layers": "model.layers.3.mlp.*", "technique": "sparsegpt", "keep": 2, "of": 4},
        {"layers": "model.layers.3.self_attn.*", "technique": "dynamic"},
    ],
}
MODULE = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4": [{"technique": "gptq", "bits": 4, "group": 0}],
    "binary": [{"technique": "binary"}],
    "4-bit codebook": [{"technique": "kmeans", "bits": 4, "rows": 0}],
}
PRUNED = {  # of networks of linear layers alone
    "half pruned": [{"technique": "sparsegpt", "sparsity": 0.5}],
    "2:4, int8": [{"technique": "sparsegpt", "keep": 2, "of": 4}, {"technique": "rtn", "bits": 8}],
}
MODELS: dict[str, Callable[[Path], Subject]] = {
    "digits": digits,
    **{name: SUBJECTS[name] for name in ("wikilm", "resnet20", "minilm")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An artifact: how it is opened here, examples for it, what their outputs are worth, and where it can go.

    `names` are those of the inputs, where there are several; `options` are those of an export, by its name.
    """

    model_name: str
    title: str
    folder: Path
    model: nn.Module | None
    inputs: Sequence[Tensor]
    worth: Callable[[np.ndarray], float]
    metric: str
    logits: bool
    to: Sequence[str]
    names: Sequence[str] = ()
    options: Mapping[str, Facts] = field(default_factory=dict)

    def opened(self) -> nn.Module:
        """lissom's model."""
        return lissom.load(self.folder, model=self.model)

    def given(self, to: str) -> list[Tensor]:
        """The examples that a runtime gets: where it is asked for few places of windows, these alone."""
        few = self.model is None and to in FEW
        return [part[:, :PLACES] if few else part for part in self.inputs]

    @property
    def nbytes(self) -> int:
        """What the artifact weighs."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


def outputs(model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> np.ndarray:
    """What a model says of examples, in float32."""
    found = list[np.ndarray]()
    for at in range(0, len(inputs[0]), BATCH):
        with torch.inference_mode():
            one = call(model, together(inputs, names, slice(at, at + BATCH)))
        found.append(np.array(getattr(one, "logits", one).float()))
    return np.concatenate(found)


def together(inputs: Sequence[Tensor], names: Sequence[str], some: slice) -> Batch:
    """Some of the examples, as the model takes them."""
    parts = [part[some] for part in inputs]
    return dict(zip(names, parts, strict=True)) if names else parts[0]


def cases(name: str, work: Path, shared: Path) -> Iterator[Case]:
    """The artifacts of one model."""
    subject = MODELS[name](shared)
    if isinstance(subject.model, Path):
        yield from language(name, subject.model, subject.data, work)
    else:
        yield from modules(name, subject, subject.model, work)


def language(name: str, source: Path, windows: Any, work: Path) -> Iterator[Case]:
    """A language model in each recipe; the examples are the last windows of its text."""
    few = windows[-WINDOWS:]

    def perplexity(logits: np.ndarray) -> float:
        tokens = few[:, 1 : logits.shape[1] + 1]
        log_p = torch.from_numpy(logits).log_softmax(-1)[:, : tokens.shape[1]]
        return float(torch.exp(-log_p.gather(2, tokens.unsqueeze(2)).mean()))

    for title, steps in LANGUAGE.items():
        folder = work / f"{name}-{title}"
        if not folder.exists():
            lissom.compress_checkpoint(source, Recipe.of(steps), windows[:64], folder)
        yield Case(
            model_name=name,
            title=title,
            folder=folder,
            model=None,
            inputs=[few],
            worth=perplexity,
            metric="perplexity",
            logits=True,
            to=[to for to in TARGETS if to != "fpga"],
            options={"executorch": {"batch": WINDOWS, "tokens": LENGTH}},
        )


def modules(name: str, subject: Subject, model: nn.Module, work: Path) -> Iterator[Case]:
    """A module in each recipe."""
    order = torch.randperm(len(tensors(subject.data)[0]), generator=torch.Generator().manual_seed(0))
    few: Batch = each(subject.data, lambda part: part[order[-EXAMPLES:]])
    *inputs, labels = tensors(few)
    names = list(few)[:-1] if isinstance(few, Mapping) else []
    classes = subject.by.name == "accuracy"

    def worth(said: np.ndarray) -> float:
        if classes:
            return float((said.argmax(1) == labels.numpy()).mean())
        return float(correlation(said, labels.numpy()))

    seen: Batch = each(subject.data, lambda part: part[order[:CALIBRATION]])
    plain = all(isinstance(layer, nn.Linear) for layer in compressible(model).values())
    for title, steps in {**MODULE, **(PRUNED if plain else {})}.items():
        folder = work / f"{name}-{title}"
        if not folder.exists():
            small = lissom.compress_model(model, seen, steps=steps)
            lissom.save(small, folder, example=together(inputs, names, slice(4)))
        yield Case(
            model_name=name,
            title=title,
            folder=folder,
            model=model,
            inputs=inputs,
            names=names,
            worth=worth,
            metric=subject.by.name,
            logits=classes,
            to=[to for to, target in TARGETS.items() if not target.language and (to != "fpga" or classes)],
            options={"fpga": {"data": (*inputs, labels), "calibration": tensors(seen)[0]}},
        )


def exported(case: Case, to: str, out: Path) -> Facts:
    """Write an artifact for a runtime, and what there is to say of that."""
    done = export_folder(case.folder, to, out, model=case.model, **case.options.get(to, {}))
    report = done.report or {}
    facts: Facts = {"changed": len(done.changed), "layers": len(done.layers), "bytes": size_of(out)}
    if to == "fpga":
        cycles, took = report["total"]["cycles"], report["latency_ns"]
        facts["bytes"] = report["total"]["weight_bits"] // 8
        facts["note"] = f"the circuit is estimated to take {cycles} cycles, {took:.0f} ns, for an example"
    return facts


def size_of(out: Path) -> int:
    """Bytes of a file with what lies beside it, or of the model of a folder."""
    if out.is_dir():
        return sum(file.stat().st_size for file in out.iterdir() if file.suffix in WEIGHTS)
    return sum(file.stat().st_size for file in out.parent.glob(f"{out.name}*"))


def lacks(to: str) -> bool:
    """Whether what an export imports is not in this interpreter."""
    return to in NEEDS and importlib.util.find_spec(NEEDS[to]) is None
