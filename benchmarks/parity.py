"""An artifact in the runtimes that it is handed to, beside lissom: what they say, what it weighs, how long it takes."""

import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Timer
from typing import Any

import llamaserver
import numpy as np
import torch
from artifacts import BATCH, ENDS, Case, Facts, exported, lacks, outputs
from torch import Tensor
from turns import Ended, Peer, failure, turn

import lissom
from lissom.engine.lower import lower
from lissom.errors import LissomError

ROUNDS = 5  # of turns
LIMIT_S = 900  # after which a process that answers nothing is ended
RUNTIMES = {  # by the name of the export
    "gguf": "llama.cpp",
    "transformers": "transformers",
    "vllm": "vllm",
    "sglang": "sglang",
    "tpu": "xla",
    "fpga": "hls4ml",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "torch": "torch",
}
FOLDERS = re.compile(r"""(?<![\w.])/[^\s"']*/""")  # those of a machine, which say nothing elsewhere
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are: what is made, the shared models, an interpreter for each runtime, llama.cpp's programs."""

    work: Path
    shared: Path
    pythons: Mapping[str, str]
    llama: Path | None


def measured(case: Case, exports: Sequence[str], places: Places) -> Iterator[Row]:
    """Rows of lissom itself, and one for each export."""
    own = outputs(case.opened(), case.inputs, case.names)
    yield from ours(case, own)
    for to in exports:
        row = {"artifact": case.title, "to": to, "runtime": RUNTIMES[to], "metric": case.metric}
        yield row | known(steps(case, to, own, places))
        print(f"{case.model_name}, {case.title}, {to}: done", file=sys.stderr, flush=True)


def ours(case: Case, own: np.ndarray) -> Iterator[Row]:
    """Rows of lissom's engine, and of a language model in the 16 bits of other runtimes."""
    row = {"artifact": case.title, "to": "", "runtime": f"lissom {version('lissom')}", "metric": case.metric}
    row |= {"bytes": case.nbytes}
    yield row | known(by_engine(case, own))
    if case.model is None:
        yield row | known(in_half(case, own))


def by_engine(case: Case, own: np.ndarray) -> Iterator[Facts]:
    """The engine beside what the formats are defined to say."""
    yield {"note": "its engine"}
    yield compared(case, own, outputs(lower(case.opened()), case.inputs, case.names))
    once = batch(case, case.inputs)
    yield {"own_ms": statistics.median(turn(once) for _ in range(ROUNDS))}


def in_half(case: Case, own: np.ndarray) -> Iterator[Facts]:
    """What the formats say where everything is in bfloat16."""
    yield {"note": "without its engine, in bfloat16"}
    yield compared(case, own, outputs(case.opened().bfloat16(), case.inputs, case.names))


def known(steps: Iterator[Facts]) -> Facts:
    """What is found step by step, as far as that goes, and why no further."""
    facts, notes = Facts(), list[str]()
    try:
        for more in steps:
            notes.append(more.pop("note", ""))
            facts |= more
    except LissomError as error:
        notes.append(str(error))
    except (Exception, Ended) as error:  # of an export or a runtime of any kind
        notes.append(failure(error))
    return facts | {"note": FOLDERS.sub("…/", "; ".join(filter(None, notes)))}


def steps(case: Case, to: str, own: np.ndarray, places: Places) -> Iterator[Facts]:
    """What there is to say of an export; what its runtime says of the examples; how long that takes."""
    out = places.work / "out" / f"{case.folder.name}-{to}{ENDS.get(to, '')}".replace(" ", "-").replace(":", "-")
    yield handed(case, to, out, places)
    if to == "gguf" and places.llama is not None:
        yield from by_llama(case, out, own, places.llama)
    elif RUNTIMES[to] in places.pythons:
        yield from by_peer(case, to, out, own, places)
    else:
        yield {"note": "its runtime is not here"}


def by_llama(case: Case, file: Path, own: np.ndarray, programs: Path) -> Iterator[Facts]:
    """llama.cpp, of which the log-probabilities are asked for place by place."""
    (windows,) = case.given("gguf")
    with llamaserver.serving(programs / "llama-server", file) as url:
        yield compared(case, own, llamaserver.logits(url, windows.numpy(), own.shape[2]))
        once = partial(llamaserver.read, url, windows[:BATCH].numpy())
        yield {"note": "one window after another"} | by_turns(batch(case, [windows]), partial(turn, once))


def by_peer(case: Case, to: str, out: Path, own: np.ndarray, places: Places) -> Iterator[Facts]:
    """A runtime in another interpreter."""
    runtime, given, arrays = RUNTIMES[to], case.given(to), places.work / "inputs.npz"
    np.savez(arrays, *(part.numpy() for part in given))
    with asked(places.pythons[runtime], "peer_handover.py", places.work, runtime) as peer:
        yield {"runtime": f"{runtime} {peer.versions[runtime]}"}
        yield told(peer.ask("say", str(out), str(arrays)))
        yield compared(case, own, np.load(arrays.with_suffix(".npy")))
        theirs = partial(peer.ask, "time", str(out), str(arrays))
        yield by_turns(batch(case, given), lambda: float(told(theirs())["ms"]))


def batch(case: Case, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """A call of lissom's engine."""
    return partial(outputs, lower(case.opened()), [part[:BATCH] for part in inputs], case.names)


def handed(case: Case, to: str, out: Path, places: Places) -> Facts:
    """The artifact for a runtime, made anew, here or where the packages of the export are."""
    for old in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    out.parent.mkdir(exist_ok=True)
    python = places.pythons.get(RUNTIMES[to])
    if python is None or not lacks(to):
        return exported(case, to, out)
    paths = os.pathsep.join([str(Path(lissom.__file__).parents[1]), *filter(None, sys.path)])
    with asked(python, "peer_export.py", places.work, paths) as peer:
        words = (case.model_name, case.title, places.work, places.shared, to, out)
        return told(peer.ask(*map(str, words)))


@contextmanager
def asked(python: str, script: str, work: Path, *words: Any) -> Iterator[Peer]:
    """A script in another interpreter, ended where it takes too long."""
    with Peer(python, script, work, *words) as peer:
        watch = Timer(LIMIT_S, peer.process.kill)
        watch.start()
        try:
            yield peer
        finally:
            watch.cancel()


def told(answer: Facts) -> Facts:
    """An answer.

    Raises:
        Refused: it is why there is none.
    """
    if "failed" in answer:
        raise Refused(answer["failed"])
    return answer


class Refused(LissomError):
    """What another process has said of why it cannot."""


def by_turns(mine: Callable[[], object], theirs: Callable[[], float]) -> Facts:
    """The milliseconds of a batch of both, each the median of as many turns."""
    own, other = zip(*((turn(mine), theirs()) for _ in range(ROUNDS)), strict=True)
    return {"own_ms": statistics.median(own), "ms": statistics.median(other)}


def compared(case: Case, own: np.ndarray, found: np.ndarray) -> Facts:
    """What a runtime said beside what lissom's model says, where it was asked.

    Raises:
        ValueError: it has said more or less.
    """
    own = own[:, : found.shape[1]] if case.model is None else own
    if own.shape != found.shape:
        raise ValueError(f"the outputs are of shape {found.shape}, those of lissom {own.shape}")
    p, q = (torch.from_numpy(one).double() for one in (own, found))
    kl = None
    if case.logits:
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        kl = float((p.exp() * (p - q)).sum(-1).mean())
    worth = {"own": case.worth(own), "there": case.worth(found)}
    return {"apart": float((p - q).abs().max()), "kl": kl, **worth}
