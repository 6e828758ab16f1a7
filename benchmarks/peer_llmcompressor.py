"""llm-compressor, run by an interpreter that has it: GPTQ, AWQ and SparseGPT.

    python peer_llmcompressor.py gptq|awq|sparsegpt MODEL TOKENS OUT [--bits 4 --group 128 ...]

TOKENS is a safetensors file with one tensor `windows` [n windows, t tokens]. OUT gets the compressed folder as
llm-compressor writes it, `dense.safetensors` with the same weights as they are after decompression, and `facts.json`:
the bytes, the seconds (of the processor, and of the clock), and versions.
The linear layers of the blocks are compressed; the embedding and the head are untouched. Everything that is not asked
for is as the tool sets it: act order, damping, the grid of AWQ's search.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import compressed_tensors
import llmcompressor
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

HEAD = ["lm_head"]
if not torch.accelerator.is_available():  # AWQ pins its caches for one all the same, and fails; no value depends on it
    IntermediatesCache.pin_memory = lambda *ignored, **also: None


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Compress with llm-compressor.")
    parser.add_argument("method", choices=("gptq", "awq", "sparsegpt"))
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--observer", help="how ranges are found: memoryless_minmax, memoryless_mse; the tool's own")
    parser.add_argument("--pattern", default="0:0", help="of SparseGPT: 2:4, or 0:0 for half of each matrix")
    parser.add_argument("--type", default="float32", help="that the model runs in")
    parser.add_argument("--no-dense", action="store_true", help="write the compressed folder only")
    return parser.parse_args()


def recipe(asked: argparse.Namespace) -> list[Any]:
    """The modifiers of a method."""
    if asked.method == "sparsegpt":
        ignore = ["re:.*lm_head.*"]  # it calls its layers by their name and a dot
        return [SparseGPTModifier(sparsity=0.5, mask_structure=asked.pattern, targets=["Linear"], ignore=ignore)]
    weights = {"num_bits": asked.bits, "type": "int", "symmetric": not asked.asymmetric}
    weights |= {"strategy": "group", "group_size": asked.group}
    weights |= {"observer": asked.observer} if asked.observer else {}
    scheme = {"linear": {"targets": ["Linear"], "weights": weights}}
    if asked.method == "gptq":
        return [GPTQModifier(config_groups=scheme, ignore=HEAD)]
    return [AWQModifier(), QuantizationModifier(config_groups=scheme, ignore=HEAD)]


def compress(asked: argparse.Namespace) -> tuple[float, float]:
    """Compress and write the folder; the seconds of the processor and of the clock, without reading and writing."""
    windows = load_file(asked.tokens)["windows"]
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()})
    loaded = AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, asked.type))
    processor, clock = time.process_time(), time.perf_counter()
    oneshot(
        model=loaded,
        dataset=data,
        recipe=recipe(asked),
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    spent = time.process_time() - processor, time.perf_counter() - clock
    loaded.save_pretrained(asked.out, save_compressed=True)
    return spent


def dense(folder: Path, method: str) -> dict[str, torch.Tensor]:
    """The weights that the folder stands for, in float32, decompressed by compressed-tensors itself."""
    config = None if method == "sparsegpt" else CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    quantized = ("weight_scale", "weight_zero_point", "weight_shape", "weight_packed", "weight_g_idx")
    state = {name: t for name, t in model.state_dict().items() if not name.endswith(quantized)}
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def size(folder: Path, source: Path) -> int:
    """The bytes of the folder's tensor files, with what was left as it was in the type that it had in the source.

    The model runs in float32, and so its untouched tensors are written: no fault of the tool, and no loss to undo.
    """
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    before = {name: t for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    after = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    grown = [t.numel() * (t.itemsize - before[name].itemsize) for name, t in after.items() if name in before]
    return total - sum(grown)


def main() -> None:
    """Compress, decompress, and write down what was done."""
    asked = arguments()
    processor, clock = compress(asked)
    facts = {
        "seconds": processor,
        "clock_seconds": clock,
        "bytes": size(asked.out, asked.model),
        "versions": {
            "llmcompressor": llmcompressor.__version__,
            "compressed-tensors": compressed_tensors.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }
    if not asked.no_dense:
        save_file(dense(asked.out, asked.method), asked.out / "dense.safetensors")
    (asked.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
