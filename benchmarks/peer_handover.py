"""What lissom handed over, run by the runtime that it was made for, in an interpreter that has that.

    python peer_handover.py FOLDER RUNTIME DESCRIPTOR

Asked ["say", file, arrays] it opens the file, runs it on the arrays of an .npz file, writes the outputs to the .npy
file beside that, and answers with what there is to note; asked ["time", file, arrays] with the milliseconds of a call
of one batch. What fails is an answer too.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from turns import Arrays, answer_all, failure, turn

BATCH = 16  # examples at once
SETTINGS = {  # before they are imported
    "JAX_PLATFORMS": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that an error is one of this process
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # on all cores, as everybody else
}
PACKAGES = {"xla": ("jax",), "vllm": ("vllm", "vllm-cpu")}  # where the runtime's name is not that of its package
Run = Callable[[Arrays], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What runs batches, and what is timed where that is not it; and what there is to note."""

    run: Run
    timed: Callable[[Arrays], object] | None = None
    note: str = ""


def transformers(file: str) -> Opened:
    """A folder of compressed-tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file, dtype=torch.float32)

    @torch.inference_mode()
    def run(arrays: Arrays) -> np.ndarray:
        logits: np.ndarray = model(torch.from_numpy(arrays[0])).logits.float().numpy()
        return logits

    return Opened(run=run)


def onnxruntime(file: str) -> Opened:
    """An ONNX file."""
    import onnxruntime as runtime

    session = runtime.InferenceSession(file)
    names = [given.name for given in session.get_inputs()]
    return Opened(run=lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])


def openvino(file: str) -> Opened:
    """A folder with an .xml file and the weights beside it."""
    import openvino as runtime

    graph = Path(file) / "openvino_model.xml"
    request = runtime.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    return Opened(run=lambda arrays: request.infer(arrays)[0])


def torch(file: str) -> Opened:
    """An archive of torch.export."""
    import torch as runtime

    model = runtime.export.load(file).module()

    @runtime.inference_mode()
    def run(arrays: Arrays) -> np.ndarray:
        found: Any = model(*map(runtime.from_numpy, arrays))
        found = found if isinstance(found, runtime.Tensor) else found[0]  # the archive gives its outputs in order
        return found.numpy()

    return Opened(run=run)


def executorch(file: str) -> Opened:
    """A program of ExecuTorch."""
    import torch as numbers
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(Path(file)).load_method("forward")

    def run(arrays: Arrays) -> np.ndarray:
        found: np.ndarray = method.execute([numbers.from_numpy(array) for array in arrays])[0].numpy()
        return found

    return Opened(run=run)


def vllm(file: str) -> Opened:
    """A folder of compressed-tensors, in the type that its config says; timed is a request for one more token each."""
    from vllm import LLM, SamplingParams, TokensPrompt

    model = LLM(
        file,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        max_num_seqs=BATCH,
        max_logprobs=-1,
    )
    plain: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "detokenize": False}
    whole = SamplingParams(**plain, logprobs=-1, prompt_logprobs=-1, flat_logprobs=True)

    def asked(arrays: Arrays, how: Any) -> list[Any]:
        prompts = [TokensPrompt(prompt_token_ids=window) for window in arrays[0].tolist()]
        return list(model.generate(prompts, how, use_tqdm=False))

    def run(arrays: Arrays) -> np.ndarray:
        said = asked(arrays, whole)
        size = 1 + max(max(one.outputs[0].logprobs.token_ids) for one in said)
        return np.stack([places(one.prompt_logprobs, one.outputs[0].logprobs, size) for one in said])

    kind = str(model.llm_engine.model_config.dtype).removeprefix("torch.")
    return Opened(run=run, timed=lambda arrays: asked(arrays, SamplingParams(**plain)), note=kind)


def places(prompt: Any, behind: Any, size: int) -> np.ndarray:
    """The log-probabilities of all tokens after each place of a prompt: those of its tokens, and of the one behind."""
    found = np.full((len(prompt), size), -np.inf, dtype=np.float32)
    for told, first in ((prompt, -1), (behind, len(prompt) - 1)):
        for place, (start, end) in enumerate(zip(told.start_indices, told.end_indices, strict=True), first):
            if end > start:  # of the first token of a prompt nothing is said
                found[place, told.token_ids[start:end]] = told.logprobs[start:end]
    return found


def xla(file: str) -> Opened:
    """A folder of programs for TPUs, on XLA's processor; of a language model the one that reads a prompt."""
    import json

    import jax
    from safetensors.flax import load_file

    folder = Path(file)
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    name = "prompt" if "prompt" in told["programs"] else "module"
    tensors = load_file(folder / "model.safetensors")
    tensors |= {own: tensors[own].astype(jax.numpy.int4) for own in told["int4"]}
    program = jax.export.deserialize(bytearray((folder / f"{name}.jax").read_bytes()))
    weights, inputs = program.in_tree.unflatten(program.in_avals)[0]
    held = {own: tensors[own] for own in weights}
    empty = {own: jax.numpy.zeros(one.shape, one.dtype) for own, one in inputs.items()}
    call, names = jax.jit(program.call), list(told["programs"][name]["inputs"])
    size = len(empty[names[0]])

    def run(arrays: Arrays) -> np.ndarray:
        found = list[np.ndarray]()
        for at in range(0, len(arrays[0]), size):
            lot = {own: array[at : at + size] for own, array in zip(names, arrays, strict=False)}
            given = {own: filled(array, inputs[own].shape, inputs[own].dtype) for own, array in lot.items()}
            said = call(held, empty | given)[0]
            found.append(np.asarray(said, np.float32)[: len(lot[names[0]])])
        return np.concatenate(found)

    kind = program.out_avals[0].dtype
    return Opened(run=run, note=f"{kind}, by XLA on a processor, {size} examples at once")


def filled(array: np.ndarray, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """What a program takes, whose shapes are fixed: what is given, with zeros behind it."""
    found = np.zeros(shape, kind)
    found[tuple(map(slice, array.shape))] = array
    return found


def hls4ml(file: str) -> Opened:
    """A project of high-level synthesis: its C++ as a program of this machine, which is exact to the bit."""
    from hls4ml.converters import link_existing_project

    os.chdir(Path(file) / "hls")  # the project says where it lies, which is "."
    model = link_existing_project(".")
    model.compile()

    def run(arrays: Arrays) -> np.ndarray:
        (x,) = arrays
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
        found: np.ndarray = model.predict(np.ascontiguousarray(x, np.float64))
        return found.reshape(len(x), -1).astype(np.float32)

    return Opened(run=run, note="the simulation is timed, not the circuit")


RUNTIMES = {
    "transformers": transformers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
    "executorch": executorch,
    "vllm": vllm,
    "xla": xla,
    "hls4ml": hls4ml,
}


def version_of(runtime: str) -> str:
    """The version of a runtime's package."""
    for package in PACKAGES.get(runtime, (runtime,)):
        with suppress(PackageNotFoundError):
            return version(package)
    return "of an unknown version"


def answers(runtime: str) -> Callable[[str, str, str], dict[str, Any]]:
    """What answers questions to a runtime."""
    opened = lru_cache(maxsize=1)(RUNTIMES[runtime])

    def answer(what: str, file: str, arrays: str) -> dict[str, Any]:
        """The outputs, written; or the time of a call of one batch; or why there is none."""
        with np.load(arrays) as held:
            given = [held[name] for name in held.files]
        lots = [[part[at : at + BATCH] for part in given] for at in range(0, len(given[0]), BATCH)]
        try:
            model = opened(file)
            if what == "time":
                timed = model.timed or model.run
                return {"ms": turn(lambda: timed(lots[0]))}
            np.save(Path(arrays).with_suffix(".npy"), np.concatenate([model.run(lot) for lot in lots]))
        except Exception as error:  # of a runtime of any kind
            return {"failed": failure(error)}
        return {"note": model.note}

    return answer


if __name__ == "__main__":
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    answer_all(sys.argv[3], {sys.argv[2]: version_of(sys.argv[2])}, answers(sys.argv[2]))
