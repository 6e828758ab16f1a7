"""What is tried on the language model, by the table it stands in.

All rows but those that name the embedding leave it, which is the head too, as it was.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

Steps = list[dict[str, Any]]

GROUP = 128
BLOCKS, EMBEDDING = "model.layers.*", "model.embed_tokens"
BYTE_EMBEDDING = {"layers": EMBEDDING, "technique": "rtn", "bits": 8}
SERVED_INT8, SERVED_INT4 = "int8, embedding too", f"gptq, 4 bits, group {GROUP}"  # also run on their kernels
HALF, PATTERN = {"sparsity": 0.5}, {"keep": 2, "of": 4}
FILES = {"Q4_K_M": 4_787_008, "IQ4_XS": 4_353_856, "Q3_K_M": 4_036_416, "Q2_K": 3_315_520}  # llama.cpp's bytes
ALL = 1116  # windows of the calibration text, nearly all of it
BESIDE = 22_000  # bytes of a folder's tensor files that are no tensors: their headers

# Each table's title, and what must be known to read it.
TABLES = {
    "alone": ("Every technique alone", ""),
    "compositions": ("Compositions", ""),
    "bits": ("Integers of few bits, beside AutoRound and llm-compressor", ""),
    "sizes": (
        "At the file sizes of llama.cpp",
        "Its files are decoded with its own `gguf` package and evaluated here like all others. They hold the "
        "vocabulary: to our bytes the tokenizer's file is added where the two are compared. The importance matrix is "
        "made from the same calibration text. A mixed recipe gives each layer the candidate that costs least, all "
        "together within the bytes; its seconds include the choice.",
    ),
    "sparsity": ("Half of the weights pruned", ""),
    "one bit": (
        "About one bit",
        "Rows that are distilled read more of the calibration text than the others: as many windows as they name, in "
        "the step before too.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """A mixed recipe of these candidates that takes at most so many bytes; rounded `by` another technique than gptq."""

    nbytes: int
    blocks: tuple[dict[str, Any], ...]
    ends: tuple[dict[str, Any], ...]
    by: str = "gptq"

    def candidates(self) -> Steps:
        """Every step that may be taken."""
        return [*self.blocks, *self.ends, {"technique": self.by}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer:
    """A recipe that reads so many windows of the calibration text in place of the usual number."""

    windows: int
    steps: Steps

    def candidates(self) -> Steps:
        """Every step that is taken."""
        return self.steps


Given = Steps | Within | Longer


def blocks(technique: str, **knobs: Any) -> Steps:
    """One step on every linear layer of the blocks."""
    return [{"layers": BLOCKS, "technique": technique, **knobs}]


def tables(config: PretrainedConfig) -> dict[str, dict[str, Given]]:
    """The recipes of every table, by name."""
    return {
        "alone": {**integers(), **shared(config), **smaller(), **scaled()},
        "compositions": compositions(),
        "bits": bits(),
        "sizes": sizes(),
        "sparsity": sparsity(),
        "one bit": one_bit(),
    }


def integers() -> dict[str, Given]:
    """Integers, and floats of few bits."""
    found: dict[str, Given] = {
        "int8: rtn, a scale a row": blocks("rtn", bits=8),
        SERVED_INT8: [*blocks("rtn", bits=8), BYTE_EMBEDDING],
        "int8, inputs int8 too: dynamic": blocks("dynamic"),
        f"gptq, 4 bits, group {GROUP}, no clipping search": blocks("gptq", bits=4, group=GROUP, clip=False),
    }
    for width in (4, 3):
        for technique in ("rtn", "gptq", "yaqa"):
            found[f"{technique}, {width} bits, group {GROUP}"] = blocks(technique, bits=width, group=GROUP)
        guided = blocks("gptq", bits=width, group=GROUP, guided=True)
        found[f"gptq, {width} bits, group {GROUP}, guided by the end loss"] = guided
    for kind in ("fp8_e4m3", "mxfp8", "nvfp4", "mxfp4"):
        found[f"floats, {kind}"] = blocks("floats", kind=kind)
    return found


def shared(config: PretrainedConfig) -> dict[str, Given]:
    """Weights that share their values, or a product of low rank."""
    found: dict[str, Given] = {}
    for width in (4, 3):
        found[f"kmeans, {width} bits, codebooks as large as the scales of group {GROUP}"] = palettes(config, width)
        found[f"kmeans, {width} bits, a codebook a row"] = blocks("kmeans", bits=width, rows=1)
        found[f"lnq, {width} bits, a codebook a matrix, scales of group {GROUP}"] = blocks(
            "lnq", bits=width, group=GROUP
        )
        found[f"lnq, {width} bits, a codebook a row"] = blocks("lnq", bits=width, rows=1)
    found[f"vectors of 2, 6 bits, scales of group {GROUP}"] = blocks("vectors", bits=6, width=2, group=GROUP)
    found["lowrank, 80 % of the weights"] = blocks("lowrank", keep=0.8)
    return found


def smaller() -> dict[str, Given]:
    """Shapes that shrink."""
    return {
        "channels, 25 % of the neurons": blocks("channels", sparsity=0.25),
        "channels, 25 % of the neurons, not fitted anew": blocks("channels", sparsity=0.25, repair=False),
        "heads, half of the groups": blocks("heads", sparsity=0.5),
        "heads, half of the groups, not fitted anew": blocks("heads", sparsity=0.5, repair=False),
        "width, an eighth of the stream": [{"layers": "*", "technique": "width", "sparsity": 0.125}],
        "blocks, one of eight": [{"layers": "*", "technique": "blocks", "sparsity": 0.125}],
    }


def scaled() -> dict[str, Given]:
    """Scaled and turned first, then rounded to the nearest."""
    rounded = blocks("rtn", bits=4, group=GROUP)
    return {
        f"awq, then rtn, 4 bits, group {GROUP}": blocks("awq", bits=4, group=GROUP) + rounded,
        f"rotate, then rtn, 4 bits, group {GROUP}": blocks("rotate") + rounded,
        "smooth, then int8, inputs int8 too": blocks("smooth") + blocks("dynamic"),
        **turned(),
    }


def turned() -> dict[str, Given]:
    """Inputs of few bits, with the stream and the heads turned beforehand, or every input as it comes."""
    four = blocks("gptq", bits=4, group=GROUP)
    stream: Steps = [{"technique": "rotate_stream"}, *blocks("rotate")]
    downs: Steps = [{"layers": f"{BLOCKS}down_proj", "technique": "hadamard"}]
    found: dict[str, Given] = {}
    for first, steps in (("", []), ("stream, heads and down_proj turned, then ", stream + downs)):
        for bits in (8, 4):
            name = f"{first}gptq, 4 bits, inputs of {bits} bits"
            found[name] = [*steps, *four, *blocks("dynamic", bits=bits)]
    found["every input turned, then gptq, 4 bits, inputs of 4 bits"] = [
        *blocks("hadamard"), *four, *blocks("dynamic", bits=4)
    ]  # fmt: skip
    found["stream and heads turned, then gptq, 4 bits"] = [*stream, *four]
    found["stream, heads and down_proj turned, then int8, inputs int8 too"] = [*stream, *downs, *blocks("dynamic")]
    return found


def compositions() -> dict[str, Given]:
    """Techniques one after the other, and on different layers."""
    pruned = blocks("sparsegpt", **HALF) + blocks("gptq", bits=4, group=GROUP)
    four, three = blocks("gptq", bits=4, group=GROUP), blocks("gptq", bits=3, group=GROUP)
    return {
        "gptq, 4 bits; embedding int8": [*four, BYTE_EMBEDDING],
        "awq, then gptq, 4 bits": blocks("awq", bits=4, group=GROUP) + four,
        "rotate, then gptq, 4 bits": blocks("rotate") + four,
        "gptq, 3 bits, then a residual of rank 16": three + blocks("residual", rank=16),
        "gptq, 3 bits, then tuned": three + blocks("tuned"),
        "sparsegpt 50 %, then gptq 4 bits": pruned,
        "alps 50 %, then gptq 4 bits": blocks("alps", **HALF) + four,
        "sparsegpt 50 %, then gptq 4 bits; embedding int8": [*pruned, BYTE_EMBEDDING],
    }


def bits() -> dict[str, Given]:
    """Integers of few bits, which the peers make too."""
    found: dict[str, Given] = {}
    for width, group in ((4, GROUP), (3, GROUP), (2, GROUP), (2, 64)):
        name, knobs = f"{width} bits, group {group}", {"bits": width, "group": group}
        for technique in ("rtn", "gptq", "yaqa"):
            found[f"{technique}, {name}"] = blocks(technique, **knobs)
    for width in (4, 3):
        knobs = {"bits": width, "group": GROUP}
        found[f"awq, then rtn, {width} bits, group {GROUP}"] = blocks("awq", **knobs) + blocks("rtn", **knobs)
    found[f"gptq, 3 bits, group {GROUP}, then tuned"] = blocks("gptq", bits=3, group=GROUP) + blocks("tuned")
    for group in (GROUP, 64):
        two = blocks("gptq", bits=2, group=group)
        found[f"gptq, 2 bits, group {group}, then distil"] = [*two, {"technique": "distil", "epochs": 10, "lr": 0.006}]
    found["yaqa, 3 bits, group 32, scales of a byte"] = blocks("yaqa", bits=3, group=32, scale_bits=8)
    return found


def sizes() -> dict[str, Given]:
    """The best mixture within the bytes of llama.cpp's files; the vocabulary is taken off when the model is known."""
    whole = tuple({"technique": "gptq", "bits": width, "group": 64, "scale_bits": 8} for width in (2, 3, 4, 5, 6))
    ends = tuple({"technique": "rtn", "bits": width, "group": 64, "scale_bits": 8} for width in (3, 4, 5, 6, 8))
    found: dict[str, Given] = {}
    for kind, nbytes in FILES.items():
        found[f"mixed bits, by yaqa, within {kind}"] = Within(nbytes=nbytes, blocks=whole, ends=ends, by="yaqa")
    return found


def sparsity() -> dict[str, Given]:
    """Half of the weights pruned, of each matrix or of every four."""
    found: dict[str, Given] = {}
    for technique in ("magnitude", "wanda", "ria", "sparsegpt", "alps"):
        found[f"{technique}, 50 %"] = blocks(technique, **HALF)
        found[f"{technique}, 2:4"] = blocks(technique, **PATTERN)
    for technique in ("ria", "alps"):
        within = blocks("permute", **PATTERN) + blocks(technique, **PATTERN)
        found[f"permute, then {technique}, 2:4"] = within
        found[f"permute, the stream too, then {technique}, 2:4"] = [
            {"layers": "*", "technique": "permute_stream", **PATTERN},
            *within,
        ]
    return found


def one_bit() -> dict[str, Given]:
    """Signs, three values, and the roundings of 2 bits that they are to be held against."""
    found: dict[str, Given] = {
        "binary, a scale a row": blocks("binary"),
        f"binary, scales of group {GROUP}": blocks("binary", group=GROUP),
        "ternary, a scale a row": blocks("ternary"),
        f"ternary, scales of group {GROUP}": blocks("ternary", group=GROUP),
        "xnor, inputs binary too": blocks("xnor"),
    }
    for width in (1.0, 1.2):
        found[f"nanoquant, {width} bits"] = blocks("nanoquant", bits=width)
    for group in (GROUP, 64, 32):
        found[f"rtn, 2 bits, group {group}"] = blocks("rtn", bits=2, group=group)
    return found | distilled()


def distilled() -> dict[str, Given]:
    """Few bits, whose layers then learn together what the original predicts."""
    first = {
        "nanoquant, 1.0 bits": blocks("nanoquant", bits=1.0),
        "nanoquant, 1.2 bits": blocks("nanoquant", bits=1.2),
        "ternary, a scale a row": blocks("ternary"),
        f"rtn, 2 bits, group {GROUP}": blocks("rtn", bits=2, group=GROUP),
    }
    rates = {"nanoquant": 0.01}
    found: dict[str, Given] = {}
    for name, steps in first.items():
        more = {"technique": "distil", "epochs": 1, "lr": rates.get(steps[0]["technique"], 0.004)}
        found[f"{name}, then distil on {ALL:,} windows"] = Longer(windows=ALL, steps=[*steps, more])
    return found


def palettes(config: PretrainedConfig, width: int) -> Steps:
    """Codebooks of 2^bits half floats for as many rows as make them cost what one half float a group does."""
    rows = {
        name: max(1, round(2**width * GROUP / inputs))
        for name, inputs in (("*", config.hidden_size), ("*down_proj", config.intermediate_size))
    }
    narrow = [f"{BLOCKS}{end}" for end in ("self_attn.?_proj", "gate_proj", "up_proj")]
    step = {"technique": "kmeans", "bits": width}
    return [
        *({"layers": layers, "rows": rows["*"], **step} for layers in narrow),
        {"layers": f"{BLOCKS}down_proj", "rows": rows["*down_proj"], **step},
    ]
