"""A file of GGUF, as llama.cpp reads them, opened as a language model of transformers.

Whole numbers in blocks stay what they are, where a block has one scale and its zero is a whole number; blocks that
share a scale become one group. Of other types, as Q4_K, whose scales are quantized, the numbers become half floats.

Shapes: o outputs, i inputs, b blocks of a row, k bytes of a block.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lissom.errors import ModelError
from lissom.formats import Affine, Dense, Ternary, Weight
from lissom.models.checkpoint import read_tokenizer, skeleton
from lissom.models.layers import compressible
from lissom.models.llamacpp import (
    ARCHITECTURES,
    EXPERT,
    SLIDING,
    SPLITS,
    STRETCHED,
    TURNED,
    Architecture,
    head_size,
    interleaved,
    stretched,
)

BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
FLOATS = {"F32": np.float32, "F16": np.float16}
CONTROL, USER_DEFINED = 3, 4  # kinds of pieces
NEAR = 0.02  # of a step: how far from a whole number a zero may be, for its minimum is a half float
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def opened(file: Path) -> Any:
    """A reader of the file.

    Raises:
        ModelError: the package `gguf` is missing, or the file is none of its kind.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError(f"{file} needs the package gguf; install it with `pip install lissom[export]`") from None
    try:
        return gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{file} cannot be read as GGUF: {error}") from None


def fields(reader: Any) -> dict[str, Any]:
    """What a file says, by name; of numbers those of its architecture without that's name."""
    kind = reader.get_field("general.architecture").contents()
    return {name.removeprefix(f"{kind}."): field.contents() for name, field in reader.fields.items()}


def read(file: Path) -> tuple[Any, dict[str, Tensor], dict[str, Weight]]:
    """The config of transformers, the tensors that are no matrices, and the matrices by layer.

    Raises:
        ModelError: it cannot be read, or is no model of a family that is known here.
    """
    reader = opened(file)
    config = config_of(file, reader)
    import gguf

    found = ARCHITECTURES[config.model_type]
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == found.name)
    names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    there = {one.name: one for one in reader.tensors}
    model = skeleton(config)
    layers, tensors, weights = compressible(model), dict[str, Tensor](), dict[str, Weight]()
    for name in model.state_dict():
        layer = name.removesuffix(".weight")
        place = names.get_name(EXPERT.sub(".experts.", name), try_suffixes=(".weight", ".bias"))
        if place not in there:
            if layer == "lm_head" and config.tie_word_embeddings:
                continue
            raise ModelError(f"{file} has no tensor for {name}; it is incomplete, or of another model")
        expert = EXPERT.search(name)
        rows = there[place].data if expert is None else there[place].data[int(expert[0].split(".")[2])]
        order = order_of(found, name, head_size(config), len(rows))
        if name.endswith(".weight") and layer in layers:
            weights[layer] = weight_of(rows if order is None else rows[order], there[place].tensor_type)
        else:
            values = torch.from_numpy(np.array(rows if order is None else rows[order], dtype=np.float32))
            tensors[name] = values - (found.offset if name.endswith("norm.weight") else 0)
    return config, tensors, weights


def order_of(found: Architecture, name: str, head: int, outputs: int) -> np.ndarray | None:
    """Where each row lies in the file, of what makes queries and keys."""
    turned = found.neighbours and name.rpartition(".")[0].endswith(TURNED)
    return interleaved(outputs, head).argsort().numpy() if turned else None


def weight_of(rows: np.ndarray, kind: Any) -> Weight:
    """The rows of a matrix, as bytes or as numbers, in a format of ours."""
    from gguf import dequantize

    if kind.name == "BF16":
        return Dense(values=torch.from_numpy(np.array(rows).view(np.int16)).view(torch.bfloat16))
    if kind.name in FLOATS:
        return Dense(values=torch.from_numpy(np.array(rows, dtype=FLOATS[kind.name])))
    if kind.name == "TQ2_0":
        return trits(rows)
    whole = integers(rows, kind.name) if kind.name in BITS else None
    return Dense(values=torch.from_numpy(dequantize(np.array(rows), kind)).half()) if whole is None else whole


def integers(rows: UInt8[np.ndarray, "o c"], kind: str) -> Affine | None:
    """Blocks of 32 codes; None where a zero is no whole number that there is."""
    bits, least = BITS[kind], kind.endswith("_1")
    before = 4 if least else 2
    blocks = rows.reshape(len(rows), -1, before + {4: 16, 5: 20, 8: 32}[bits])
    scale = torch.from_numpy(halves(blocks[..., :2]))
    codes = codes_of(blocks[..., before:], bits)
    zero = None
    if least:
        exact = -torch.from_numpy(halves(blocks[..., 2:4])).float() / scale.float().where(scale != 0, torch.inf)
        zero = exact.round()
        if bool(((exact - zero).abs() > NEAR).any() | (zero < 0).any() | (zero >= 2**bits).any()):
            return None
    times = alike(scale, zero)
    zero = None if zero is None else zero[:, ::times].to(torch.uint8).contiguous()
    return Affine.of(torch.from_numpy(codes), scale[:, ::times].contiguous(), zero, bits)


def codes_of(octets: UInt8[np.ndarray, "o b k"], bits: int) -> UInt8[np.ndarray, "o i"]:
    """The codes of blocks, of four bits in two halves of a block; fifth bits come before."""
    if bits == 8:
        return (octets ^ 128).reshape(len(octets), -1)
    fours = octets[..., -16:]
    codes = np.concatenate([fours & 15, fours >> 4], -1)
    if bits == 5:
        codes = codes | np.unpackbits(octets[..., :4], axis=-1, bitorder="little") << 4
    return codes.reshape(len(octets), -1)


def trits(rows: UInt8[np.ndarray, "o c"]) -> Ternary:
    """Blocks of 256 trits, four in a byte: of each 128 those that are 32 apart."""
    blocks = rows.reshape(len(rows), -1, 66)
    quarters = blocks[..., :64].reshape(*blocks.shape[:2], 2, 1, 32)
    codes = (quarters >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1)) & 3
    scale = torch.from_numpy(halves(blocks[..., 64:]))
    times = alike(scale, None)
    return Ternary.of(torch.from_numpy(codes.reshape(len(rows), -1)), scale[:, ::times].contiguous())


def halves(octets: UInt8[np.ndarray, "o b 2"]) -> np.ndarray:
    """Half floats of their bytes."""
    return np.ascontiguousarray(octets).view(np.float16)[..., 0]


def alike(scale: Float[Tensor, "o b"], zero: Float[Tensor, "o b"] | None) -> int:
    """How many blocks that follow one another can be one group: all of a row, four, two, or one."""
    for times in (scale.shape[1], 4, 2):
        parts = [
            part.unflatten(1, (-1, times)) for part in (scale, zero) if part is not None and part.shape[1] % times == 0
        ]
        if parts and all(bool((part == part[..., :1]).all()) for part in parts):
            return times
    return 1


def config_of(file: Path, reader: Any) -> Any:
    """The config of transformers that a file's numbers make.

    Raises:
        ModelError: no family of ours is of that architecture, or its angles are not known.
    """
    from transformers import AutoConfig

    told, tensors = fields(reader), {one.name: one for one in reader.tensors}
    kinds = [family for family, found in ARCHITECTURES.items() if found.name == told["general.architecture"]]
    if not kinds:
        known = ", ".join(dict.fromkeys(found.name for found in ARCHITECTURES.values()))
        raise ModelError(f"{file} is a model of the kind {told['general.architecture']!r}; known are {known}")
    heads, blocks = told["attention.head_count"], told["block_count"]
    head = told.get("attention.key_length", told["embedding_length"] // heads)
    numbers = {
        "hidden_size": told["embedding_length"],
        "num_hidden_layers": blocks,
        "intermediate_size": told["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": told.get("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": told["context_length"],
        "rms_norm_eps": told["attention.layer_norm_rms_epsilon"],
        "vocab_size": len(told["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors or "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "query_pre_attn_scalar": head,
        "rope_parameters": angles(file, told, tensors, head),
        "sliding_window": told.get("attention.sliding_window") or None,
        "num_experts": told.get("expert_count"),
        "num_experts_per_tok": told.get("expert_used_count"),
        "moe_intermediate_size": told.get("expert_feed_forward_length"),
        "attn_logit_softcapping": told.get("attn_logit_softcapping"),
        "final_logit_softcapping": told.get("final_logit_softcapping"),
        **{f"{name}_token_id": told.get(f"tokenizer.ggml.{long}_token_id") for name, long in NAMES.items()},
    }
    slides = told.get("attention.sliding_window_pattern")
    if isinstance(slides, list):
        numbers["layer_types"] = [SLIDING if one else "full_attention" for one in slides]
    mine = {name: value for name, value in numbers.items() if value is not None}
    return AutoConfig.for_model(kinds[0], **mine, **OF_FAMILY.get(kinds[0], {}))


NAMES = {"bos": "bos", "eos": "eos", "pad": "padding"}
OF_FAMILY: Mapping[str, Mapping[str, Any]] = {"qwen3_moe": {"norm_topk_prob": True}}


def angles(file: Path, told: Mapping[str, Any], tensors: Mapping[str, Any], head: int) -> dict[str, Any]:
    """How positions turn channels.

    Raises:
        ModelError: in a way that is not known here.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": told.get("rope.freq_base", 10000.0)}
    turned = told.get("rope.dimension_count", head)
    if turned != head:
        rope["partial_rotary_factor"] = turned / head
    kind = told.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": told["rope.scaling.factor"]}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = told["rope.scaling.original_context_length"]
    elif kind != "none":
        raise ModelError(f"{file} turns positions by {kind!r}, which is not read")
    if STRETCHED in tensors:
        factor = float(np.max(tensors[STRETCHED].data))
        rope |= {"rope_type": "llama3", "factor": factor, **LLAMA3}
        if not np.allclose(stretched(rope, head), tensors[STRETCHED].data, rtol=1e-3):
            raise ModelError(f"{file} stretches wavelengths in a way that is not Llama 3's; give the original model")
    return rope


def tokenizer_of(file: Path) -> Any:
    """The tokenizer: what the file says of byte-level BPE, else that of the folder where it lies.

    Raises:
        ModelError: it is of another kind, and none lies there.
    """
    told = fields(opened(file))
    if told["tokenizer.ggml.model"] != "gpt2":
        if (file.parent / "tokenizer.json").is_file():
            return read_tokenizer(file.parent)
        raise ModelError(f"{file}: put the model's tokenizer.json beside it; that of the file is not byte-level BPE")
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces, kinds = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in told["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    made.pre_tokenizer, made.decoder = split(file, told.get("tokenizer.ggml.pre", "")), decoders.ByteLevel()
    added = [(piece, kind) for piece, kind in zip(pieces, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    made.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece, kind in added if kind == CONTROL]
    )
    made.add_tokens([AddedToken(piece, normalized=False) for piece, kind in added if kind == USER_DEFINED])
    ids = {name: told.get(f"tokenizer.ggml.{long}_token_id") for name, long in NAMES.items()}
    if told.get("tokenizer.ggml.add_bos_token"):
        from tokenizers.processors import TemplateProcessing

        first = pieces[ids["bos"]]
        made.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, ids["bos"])])
    special = {f"{name}_token": pieces[number] for name, number in ids.items() if number is not None}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=told.get("tokenizer.chat_template"), **special)


def split(file: Path, name: str) -> Any:
    """How text is split before, by llama.cpp's name for it.

    Raises:
        ModelError: that is not known here.
    """
    from tokenizers import Regex, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "gpt-2")
    if name == "gpt-2":
        return level
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    patterns = {own: pattern for pattern, own in SPLITS.items()}
    if name not in patterns:
        raise ModelError(f"{file} splits text by {name!r}; known are gpt-2, smollm, {', '.join(patterns)}")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(patterns[name]), "isolated"), level])
