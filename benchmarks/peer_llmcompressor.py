"""llm-compressor's GPTQ, run by an interpreter that has it.

    python peer_llmcompressor.py MODEL TOKENS BITS GROUP OBSERVER OUT

TOKENS is a safetensors file with one tensor `windows` [n windows, t tokens]. OUT gets the compressed folder as
llm-compressor writes it, `dense.safetensors` with the same weights as they are after decompression, and `facts.json`:
the bytes, the seconds that the processor worked, and versions.
OBSERVER says how ranges are found: memoryless_minmax is the tool's own choice, memoryless_mse searches where to clip.
Symmetric, act order as the tool sets it, the linear layers of the blocks; the embedding and the head are untouched.
"""

import json
import sys
import time
from pathlib import Path

import compressed_tensors
import llmcompressor
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig


def compress(model: str, tokens: Path, bits: int, group: int, observer: str, out: Path) -> float:
    """Compress, write the folder, and return the seconds that the processor worked on it."""
    windows = load_file(tokens)["windows"]
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()})
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    weights["observer"] = observer
    scheme = {"linear": {"targets": ["Linear"], "weights": weights}}
    start = time.process_time()
    oneshot(
        model=loaded,
        dataset=data,
        recipe=[GPTQModifier(config_groups=scheme, ignore=["lm_head"])],
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    seconds = time.process_time() - start
    loaded.save_pretrained(out, save_compressed=True)
    return seconds


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the folder stands for, in float32, decompressed by compressed-tensors itself."""
    config = CompressedTensorsConfig(run_compressed=False)
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


def main(model: str, tokens: str, bits: str, group: str, observer: str, out: str) -> None:
    """Compress, decompress, and write down what was done."""
    folder = Path(out)
    seconds = compress(model, Path(tokens), int(bits), int(group), observer, folder)
    facts = {
        "seconds": seconds,
        "bytes": size(folder, Path(model)),
        "versions": {
            "llmcompressor": llmcompressor.__version__,
            "compressed-tensors": compressed_tensors.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }
    save_file(dense(folder), folder / "dense.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
