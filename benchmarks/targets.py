"""Parity: what lissom hands over, in the runtime that it was made for, beside what was certified.

    python benchmarks/targets.py WORK [--python RUNTIME=PYTHON ...] [--llama BIN] [--only wikilm,resnet20,minilm,digits]
                                 [--write FILE]

Each artifact is written for each runtime, opened there in a process of its own, and runs on the same examples as
lissom's: the largest difference of two outputs, KL divergence where they are logits, the metric measured again, bytes,
and milliseconds of a batch. llama.cpp tells the log-probabilities of what may come next, which are asked for each place
of a few windows. Prints the tables, then one JSON line. It needs the shared models and data: the folder that
LISSOM_SHARED names, or `shared` beside the repository.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import digits
from encoder import correlation
from subjects import SUBJECTS, Subject
from table import markdown
from torch import Tensor, nn
from turns import Peer

import lissom
from lissom.artifact import open_folder
from lissom.calibrate import call
from lissom.calibrate.data import each
from lissom.evaluate.examples import tensors
from lissom.export.targets import Export, export_folder
from lissom.hardware import describe
from lissom.models import compressible
from lissom.types import Recipe

HERE = Path(__file__).parent
WINDOWS, PLACES, EXAMPLES = 8, 128, 512  # of a language model, of its windows for llama.cpp, of other modules
READS = {
    "transformers": "transformers",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
    "executorch": "executorch",
}
ENDS = {"gguf": ".gguf", "onnx": ".onnx", "torch": ".pt2", "executorch": ".pte"}  # the others are folders
WEIGHTS = (".safetensors", ".xml", ".bin")  # what is counted of a folder
BLOCKS = "model.layers.*"
Row = dict[str, Any]

LANGUAGE = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4": [
        {"layers": BLOCKS, "technique": "gptq", "bits": 4, "group": 128},
        {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8},
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
MODELS: dict[str, Callable[[Path], Subject]] = {name: SUBJECTS[name] for name in ("wikilm", "resnet20", "minilm")}
MODELS["digits"] = digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An artifact: how it is opened here, examples for it, and what their outputs are worth."""

    title: str
    folder: Path
    model: nn.Module | None
    inputs: Sequence[Tensor]
    worth: Callable[[np.ndarray], float]
    metric: str
    logits: bool
    to: Sequence[str]

    def own(self) -> np.ndarray:
        """What lissom's model says, in float32."""
        opened = open_folder(self.folder, base=self.model).model
        with torch.inference_mode():
            said = [
                call(opened, tuple(part[at : at + 16] for part in self.inputs))
                for at in range(0, len(self.inputs[0]), 16)
            ]
        found = [getattr(one, "logits", one) for one in said]
        return np.concatenate([one.float().numpy() for one in found])


def cases(name: str, work: Path, shared: Path) -> Iterator[Case]:
    """The artifacts of one model."""
    subject = MODELS[name](shared)
    if isinstance(subject.model, Path):
        yield from language(name, subject, work)
    else:
        yield from modules(name, subject, work)


def language(name: str, subject: Subject, work: Path) -> Iterator[Case]:
    """A language model in each recipe; the examples are the last windows of its text."""
    windows: Any = subject.data
    few = windows[-WINDOWS:]

    def perplexity(logits: np.ndarray) -> float:
        tokens = few[:, 1 : logits.shape[1] + 1]
        log_p = torch.from_numpy(logits).log_softmax(-1)[:, : tokens.shape[1]]
        return float(torch.exp(-log_p.gather(2, tokens.unsqueeze(2)).mean()))

    for title, steps in LANGUAGE.items():
        folder = work / f"{name}-{title}"
        if not folder.exists():
            lissom.compress_checkpoint(subject.model, Recipe.of(steps), windows[:64], folder)
        yield Case(
            title=title,
            folder=folder,
            model=None,
            inputs=[few],
            worth=perplexity,
            metric="perplexity",
            logits=True,
            to=("gguf", "transformers", "onnx", "openvino", "torch"),
        )


def modules(name: str, subject: Subject, work: Path) -> Iterator[Case]:
    """A module in each recipe."""
    few = each(subject.data, lambda part: part[-EXAMPLES:])
    *inputs, labels = tensors(few)

    def worth(outputs: np.ndarray) -> float:
        if subject.by.name == "accuracy":
            return float((outputs.argmax(1) == labels.numpy()).mean())
        return float(correlation(outputs, labels.numpy()))

    seen = each(subject.data, lambda part: part[:256])
    plain = all(isinstance(layer, nn.Linear) for layer in compressible(subject.model).values())
    for title, steps in {**MODULE, **(PRUNED if plain else {})}.items():
        folder = work / f"{name}-{title}"
        if not folder.exists():
            small = lissom.compress_model(subject.model, seen, steps=steps)
            lissom.save(small, folder, example=tuple(part[:4] for part in inputs))
        yield Case(
            title=title,
            folder=folder,
            model=subject.model,
            inputs=inputs,
            worth=worth,
            metric=subject.by.name,
            logits=subject.by.name == "accuracy",
            to=("onnx", "openvino", "torch", "executorch"),
        )


def row(case: Case, to: str, done: Export, found: np.ndarray, own: np.ndarray, facts: Row) -> Row:
    """What a runtime said beside what lissom's model says."""
    p, q = (torch.from_numpy(said).double() for said in (own, found))
    kl = None
    if case.logits:
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        kl = float((p.exp() * (p - q)).sum(-1).mean())
    return {
        "artifact": case.title,
        "to": to,
        "changed": len(done.changed),
        "layers": len(done.layers),
        "bytes": size_of(done.out),
        "apart": float((p - q).abs().max()),
        "kl": kl,
        "metric": case.metric,
        "own": case.worth(own),
        "there": case.worth(found),
        **facts,
    }


def size_of(out: Path) -> int:
    """Bytes of a file with what lies beside it, or of the model of a folder."""
    if out.is_dir():
        return sum(file.stat().st_size for file in out.iterdir() if file.suffix in WEIGHTS)
    return sum(file.stat().st_size for file in out.parent.glob(f"{out.name}*"))


def handed(case: Case, to: str, work: Path) -> Export:
    """The artifact for a runtime, made anew."""
    out = work / "out" / f"{case.folder.name}-{to}{ENDS.get(to, '')}".replace(" ", "-").replace(":", "-")
    for old in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    out.parent.mkdir(exist_ok=True)
    return export_folder(case.folder, to, out, model=case.model)


def measured(case: Case, peers: dict[str, Peer], llama: Path | None, work: Path) -> Iterator[Row]:
    """A row for each runtime that is here."""
    own, arrays = case.own(), work / "inputs.npz"
    np.savez(arrays, *(part.numpy() for part in case.inputs))
    for to in case.to:
        if to == "gguf" and llama is not None:
            done = handed(case, to, work)
            with serving(llama / "llama-server", done.out) as url:
                found = logits(url, case.inputs[0], own.shape[2])
            yield row(case, to, done, found, own[:, :PLACES], {"runtime": "llama.cpp"})
        elif READS.get(to) in peers:
            done = handed(case, to, work)
            facts = peers[READS[to]].ask(READS[to], str(done.out), str(arrays))
            why = facts.pop("failed", None)  # where a runtime opens a file and cannot run it: there are no numbers then
            found = np.load(arrays.with_suffix(".npy")) if why is None else np.full_like(own, np.nan)
            yield row(case, to, done, found, own, {"runtime": READS[to] + (f" ({why})" if why else ""), **facts})


@contextmanager
def serving(program: Path, model: Path) -> Iterator[str]:
    """The address of llama.cpp's server, while it has a model; with float32 for keys and values, as the model has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "-m", model, "--port", port, "-c", 1024, "-np", 1, "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    with subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def logits(url: str, windows: Tensor, size: int) -> np.ndarray:
    """The log-probabilities of all tokens after each of the first places of windows."""
    found = np.full((len(windows), PLACES, size), -30.0, dtype=np.float32)
    for window, rows in zip(windows.tolist(), found, strict=True):
        for place in range(PLACES):
            body = {
                "prompt": window[: place + 1],
                "n_predict": 1,
                "n_probs": size,
                "temperature": 0,
                "cache_prompt": True,
            }
            asked = urllib.request.Request(
                f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked) as answer:
                told = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
            for one in told:
                rows[place, one["id"]] = one["logprob"]
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """The rows of one model."""
    head = (
        "artifact",
        "to",
        "runtime",
        "layers changed",
        "bytes",
        "apart at most",
        "KL, nats",
        "metric",
        "lissom",
        "there",
        "ms",
    )
    return markdown(head, [line(one) for one in rows])


def line(one: Row) -> tuple[str, ...]:
    """One row."""
    return (
        one["artifact"],
        one["to"],
        f"{one['runtime']} {one.get('version', '')}".strip(),
        f"{one['changed']} of {one['layers']}",
        f"{one['bytes']:,}",
        f"{one['apart']:.2g}",
        "" if one["kl"] is None else f"{one['kl']:.2g}",
        one["metric"],
        f"{one['own']:.4f}",
        f"{one['there']:.4f}",
        f"{one['ms']:.1f}" if "ms" in one else "",
    )


def missing(found: dict[str, list[Row]]) -> str:
    """The runtimes that were not there."""
    there = {one["to"] for rows in found.values() for one in rows}
    away = [to for to in ("gguf", *READS) if to not in there]
    return f"Not measured here: {', '.join(away)}." if away else ""


def page(found: dict[str, list[Row]], command: str) -> str:
    """The tables, and what measured."""
    said = [
        "# Handed over: the same model in other runtimes",
        "",
        "Written from what the command below printed. Each artifact was written by `lissom export`, opened by the",
        "runtime's own package in another process, and run on the same examples. A layer is changed where the runtime",
        "holds no such form. `apart` is the largest difference of two outputs (of log-probabilities, where they are",
        "logits). Milliseconds are of a batch of 16 examples. llama.cpp rounds what comes into a product to 8 bits.",
        "",
        f"```text\n{command}\n```",
        "",
    ]
    for name, rows in found.items():
        said += [f"## {name}", "", *table(rows), ""]
    said += [missing(found), ""] if missing(found) else []
    facts = {**describe().as_dict(), "threads": torch.get_num_threads()}
    return "\n".join([*said, "## Machine", "", *(f"- {name}: {value}" for name, value in facts.items())])


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for what is made")
    parser.add_argument(
        "--only", type=lambda words: words.split(","), default=list(MODELS), help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="RUNTIME=PYTHON", help="an interpreter that has a runtime"
    )
    parser.add_argument("--llama", type=Path, metavar="BIN", help="the folder of llama.cpp's programs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the page if asked."""
    asked = arguments()
    if unknown := set(asked.only) - set(MODELS):
        raise SystemExit(f"--only: there is no {sorted(unknown)[0]!r}; there are {', '.join(MODELS)}")
    torch.manual_seed(0)
    asked.work.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("LISSOM_SHARED", HERE.parents[1] / "shared"))
    pythons = dict(word.split("=", 1) for word in asked.python)
    peers = {runtime: Peer(python, "peer_handover.py", asked.work) for runtime, python in pythons.items()}
    found = {
        name: [
            one for case in cases(name, asked.work, shared) for one in measured(case, peers, asked.llama, asked.work)
        ]
        for name in asked.only
    }
    words = ["…/" + word.rpartition("/")[2] if "/" in word else word for word in sys.argv[1:]]
    text = page(found, " ".join(["python benchmarks/targets.py", *words]))
    print(text)
    print(json.dumps({"benchmark": "targets", "found": found}))
    if asked.write is not None:
        asked.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
