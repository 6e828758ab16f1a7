"""TPUs: what their compiler says of a language model in 16, 8 and 4 bits, of chips that are not there.

    python benchmarks/tpu.py [--topologies v5e-1,v5e-8,v6e-1,v6e-8] [--tokens 1] [--blocks 16] [--write FILE]

A model of the shape of Llama 3.2 1B, all matrices in bfloat16, in int8 with a scale for each row, or in int4 in groups
of 128, its embedding too, which is the head: one step of 8 sequences with room for 1024 tokens each. There are no
numbers, only shapes. Bytes are those of one chip. Prints a table, then one JSON line.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from table import markdown
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.export.tpu.chips import Compiled, compiled
from lissom.export.tpu.folder import heads_of, shares_of
from lissom.export.tpu.lower import lowered
from lissom.export.tpu.plain import Plain, PlainLayer, Values, Whole
from lissom.export.tpu.steps import Steps, inputs_of
from lissom.models import compressible
from lissom.models.families import family_of, put

SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}
BATCH, ROOM, GROUP = 8, 1024, 128
FORMS = ("bf16", "int8", "int4")


def shaped(form: str, blocks: int) -> nn.Module:
    """The model without numbers."""
    config = AutoConfig.for_model("llama", **SIZES, **HEADS, num_hidden_layers=blocks)
    held: dict[int, Plain] = {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, layer in compressible(model).items():
            weight = held.setdefault(id(layer.weight), matrix(form, *layer.weight.shape))
            put(model, name, PlainLayer(layer, weight))
    return model.eval()  # type: ignore[no-any-return]


def matrix(form: str, o: int, i: int) -> Plain:
    """A matrix without numbers."""
    if form == "bf16":
        made: Plain = Values(torch.empty(o, i, dtype=torch.bfloat16))
    else:
        groups = 1 if form == "int8" else i // GROUP
        codes, scale = torch.empty(groups, o, i // groups, dtype=torch.int8), torch.empty(groups, o).half()
        made = Whole(codes, scale, None, narrow=form == "int4", dtype=torch.bfloat16)
    return made


def measured(form: str, blocks: int, tokens: int, topologies: list[str]) -> Iterator[tuple[Compiled, float]]:
    """What the compiler says for each topology, and the seconds that it took."""
    model = shaped(form, blocks)
    inputs = inputs_of(model, torch.empty(BATCH, tokens, dtype=torch.long, device="meta"), ROOM)
    low = lowered(Steps(model), inputs)
    shares = shares_of(Steps(model), family_of("llama")) | heads_of(low)
    for topology in topologies:
        begun = time.perf_counter()
        found = compiled(low, shares, topology)
        yield found, time.perf_counter() - begun


def told(form: str, found: Compiled, seconds: float) -> list[str]:
    """A line of the table."""
    weights = found.arguments
    whole = ", ".join(f"{kind} {weights[kind] / 2**20:.0f}" for kind in ("bf16", "s8", "s4", "f16") if kind in weights)
    sizes = (found.argument_bytes, found.temporary_bytes, found.together)
    return [
        found.topology,
        form,
        whole,
        *(f"{size / 2**20:.0f}" for size in sizes),
        "yes" if found.fits else "no",
        f"{found.flops / 1e9:.2f}",
        f"{found.accessed_bytes / 2**20:.0f}",
        ", ".join(f"{count} {kind}" for kind, count in found.exchanges.items()) or "none",
        f"{seconds:.0f}",
    ]


HEAD = ["topology", "weights", "arguments by type, MiB", "arguments, MiB", "temporary, MiB", "together, MiB", "fits"]
HEAD += ["GFLOP", "accessed, MiB", "exchanges", "compiled in, s"]


TITLE = """# For TPUs

`lissom export DIR --to tpu --topology v5e-8` compiles a model for chips that need not be there, by their own compiler
(libtpu). Here is what that says of a model of the shape of Llama 3.2 1B, one step of 8 sequences with room for 1024
tokens each, as bytes and work of one chip (`python benchmarks/tpu.py --write docs/tpu.md`). Integers of 4 and 8 bits
are arguments of 4 and 8 bits, and what is temporary is far less than the weights would be in bfloat16 (2357 MiB): they
are decoded as they are multiplied. 256 MiB of bfloat16 beside integers are keys and values. `accessed` counts what is
copied within a chip again. No program was run on a TPU: how long they take there, nobody has seen.

A mixture of experts (Qwen3's) is one program too: every expert is given every token, and what those say that were not
chosen counts nothing. So it multiplies as often as it has experts, and reads all of them at every step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", default="v5e-1,v5e-8,v6e-1,v6e-8")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    options = parser.parse_args()
    rows, said = [], list[dict[str, Any]]()
    for form in FORMS:
        for found, seconds in measured(form, options.blocks, options.tokens, options.topologies.split(",")):
            rows.append(told(form, found, seconds))
            said.append({"form": form, "together": found.together, "fits": found.fits, **asdict(found)})
    text = "\n".join([TITLE, "", *markdown(HEAD, rows)])
    print(text)
    if options.write is not None:
        options.write.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({"tokens": options.tokens, "blocks": options.blocks, "batch": BATCH, "room": ROOM, "found": said}))


if __name__ == "__main__":
    main()
