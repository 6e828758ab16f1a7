"""AutoRound, run by an interpreter that has it.

    python peer_autoround.py MODEL TOKENS OUT [--bits 4 --group 128 --iterations 200]

TOKENS is a safetensors file with one tensor `windows` [n windows, t tokens]. OUT gets the folder as AutoRound packs it,
`dense.safetensors` with the weights that those integers stand for, and `facts.json`: the bytes, the seconds (of the
processor, and of the clock), and versions.
Symmetric; the linear layers of the blocks; the embedding and the head are untouched. Learning rates, batch size and
the rest are as the tool sets them.
"""

import argparse
import json
import time
from pathlib import Path

import auto_round
import torch
import transformers
from auto_round import AutoRound
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Compress with AutoRound.")
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=200)
    return parser.parse_args()


def tuned(asked: argparse.Namespace) -> tuple[torch.nn.Module, AutoRound, tuple[float, float]]:
    """The model with its weights on their grids, the tuner, and the seconds of the processor and of the clock."""
    windows = load_file(asked.tokens)["windows"]
    tuner = AutoRound(
        AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(asked.model),
        scheme={"bits": asked.bits, "group_size": asked.group, "sym": True, "data_type": "int", "act_bits": 16},
        dataset=list(windows.split(1)),
        iters=asked.iterations,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        device_map="cpu",
        amp=False,
    )
    processor, clock = time.process_time(), time.perf_counter()
    model, _ = tuner.quantize()
    return model, tuner, (time.process_time() - processor, time.perf_counter() - clock)


def size(folder: Path, source: Path) -> int:
    """The bytes of the folder's tensor files, with what was left as it was in the type that it had in the source."""
    total = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    before = {name: t for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    after = {name: t for file in folder.rglob("*.safetensors") for name, t in load_file(file).items()}
    grown = [t.numel() * (t.itemsize - before[name].itemsize) for name, t in after.items() if name in before]
    return total - sum(grown)


def main() -> None:
    """Compress, and write down what was done; the dense weights first, for packing takes them away."""
    asked = arguments()
    model, tuner, (processor, clock) = tuned(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    names = AutoModelForCausalLM.from_pretrained(asked.model).state_dict()
    state = {name: model.state_dict()[name].detach().float().clone().contiguous() for name in names}
    tuner.save_quantized(str(asked.out / "packed"), format="auto_round", inplace=True)
    facts = {
        "seconds": processor,
        "clock_seconds": clock,
        "bytes": size(asked.out / "packed", asked.model),
        "versions": {
            "auto-round": auto_round.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }
    save_file(state, asked.out / "dense.safetensors")
    (asked.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
