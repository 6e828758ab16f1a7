"""GGUF: a language model as one file for llama.cpp, ollama, LM Studio and others.

Names and numbers are those of llama.cpp (gguf-py); the file is written by its own package `gguf`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lissom.errors import ModelError
from lissom.export.even import filled
from lissom.export.handover import Form, Given
from lissom.export.llamacpp.ggml import fills, holds, kind_of, nearest, written
from lissom.export.llamacpp.vocabulary import Vocabulary, vocabulary
from lissom.files import replacing
from lissom.formats import Dense, Weight
from lissom.models.llamacpp import (
    ARCHITECTURES,
    EXPERT,
    SLIDING,
    STRETCHED,
    TURNED,
    Architecture,
    head_size,
    interleaved,
    stretched,
)


def write(given: Given, taken: Mapping[str, Weight], out: Path) -> None:
    """One file of everything.

    Raises:
        ModelError: the package `gguf` is missing, or llama.cpp has no such model.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError("gguf: needs the package gguf; install it with `pip install lissom[export]`") from None
    kind = given.config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(f"gguf: no model of the kind {kind!r} is written; possible are {', '.join(ARCHITECTURES)}")
    found = ARCHITECTURES[kind]
    check(given, found)
    with replacing(out) as file:
        writer = gguf.GGUFWriter(file, found.name)
        for key, value in numbers(given, found).items():
            put(writer, key, value)
        tell(writer, vocabulary(given.tokenizer, given.config.vocab_size))
        code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == found.name)
        names = gguf.get_tensor_name_map(code, given.config.num_hidden_layers)
        for name, rows, form in tensors(given, taken, found):
            place = name if name == STRETCHED else names.get_name(name, try_suffixes=(".weight", ".bias"))
            if place is None:
                raise ModelError(f"gguf: {found.name} of llama.cpp has no tensor for {name}")
            writer.add_tensor(place, rows, raw_dtype=gguf.GGMLQuantizationType[form])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check(given: Given, found: Architecture) -> None:
    """See that llama.cpp computes what the model does.

    Raises:
        ModelError: it does not; what differs is named.
    """
    config = given.config
    head, count = head_size(config), config.num_hidden_layers
    scalar, wanted = getattr(config, "query_pre_attn_scalar", head), head
    if (found.name, count) in (("gemma2", 46), ("gemma3", 62)):
        wanted = config.hidden_size // config.num_attention_heads
    turned = getattr(config, "no_rope_layers", None) or [1] * count
    known = [int((block + 1) % 4 != 0) for block in range(count)] if found.name == "smollm3" else [1] * count
    biased = (name for name in given.tensors if name.endswith(".bias") and name.split(".")[-2] not in found.biases)
    wrong = [
        (scalar != wanted, f"query_pre_attn_scalar={scalar}, where it takes {wanted}"),
        (turned != known, f"no_rope_layers={turned}, where it takes {known}"),
        (bool(getattr(config, "mlp_only_layers", None)), "blocks without experts among those that have some"),
        (not getattr(config, "norm_topk_prob", True), "norm_topk_prob=False, where it always divides by the sum"),
        (found.name == "phi3" and head * config.num_attention_heads != config.hidden_size, "heads that were pruned"),
        *((True, name) for name in biased),
    ]
    for differs, what in wrong:
        if differs:
            raise ModelError(f"gguf: {found.name} of llama.cpp has no {what}")


def numbers(given: Given, found: Architecture) -> dict[str, Any]:
    """The numbers of a model, by the names of the writer's methods without `add_`.

    Where llama.cpp has no sliding windows, the context is as long as the window, within which both are the same.
    """
    config, head = given.config, head_size(given.config)
    rope = config.rope_parameters
    turned = rope.get("full_attention", rope)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    slides = SLIDING in kinds or given.config.model_type in ("mistral", "phi3")
    window = getattr(config, "sliding_window", None) if slides else None
    context = config.max_position_embeddings
    told = {
        "name": given.folder.name,
        "block_count": config.num_hidden_layers,
        "context_length": context if window is None or found.slides else min(context, window),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "key_length": head,
        "value_length": head,
        "vocab_size": config.vocab_size,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": turned["rope_theta"],
        "rope_dimension_count": int(head * turned.get("partial_rotary_factor", 1.0)),
        "file_type": 1024,  # guessed from the tensors
        "quantization_version": 2,
    }
    if found.slides and window is not None:
        told |= {"sliding_window": window, "sliding_window_pattern": [kind == SLIDING for kind in kinds]}
        told |= {"rope_freq_base_swa": rope.get(SLIDING, turned)["rope_theta"]}
    names = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
    names |= {"moe_intermediate_size": "expert_feed_forward_length"}
    names |= {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    told |= {key: getattr(config, name) for name, key in names.items() if getattr(config, name, None)}
    return told | scaled(turned)


def scaled(rope: Mapping[str, Any]) -> dict[str, Any]:
    """How the angles of positions are scaled; llama 3's way is a tensor.

    Raises:
        ModelError: in a way that is not written.
    """
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"rope_scaling_type": kind, "rope_scaling_factor": rope["factor"]}
    if kind == "yarn":
        length = rope["original_max_position_embeddings"]
        return {"rope_scaling_type": kind, "rope_scaling_factor": rope["factor"], "rope_scaling_orig_ctx_len": length}
    raise ModelError(f"gguf: angles of the kind {kind!r} are not written; possible are default, linear, llama3, yarn")


def put(writer: Any, key: str, value: Any) -> None:
    """One number, by the writer's method for it."""
    import gguf

    getattr(writer, f"add_{key}")(gguf.RopeScalingType(value) if key == "rope_scaling_type" else value)


def tell(writer: Any, told: Vocabulary) -> None:
    """The tokenizer."""
    writer.add_tokenizer_model(told.model)
    writer.add_tokenizer_pre(told.split)
    writer.add_token_list(told.pieces)
    writer.add_token_types(told.kinds)
    if told.merges:
        writer.add_token_merges(told.merges)
    if told.scores:
        writer.add_token_scores(told.scores)
        writer.add_add_space_prefix(told.space_before)
    for name, number in told.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(told.begins)
    writer.add_add_eos_token(told.ends)
    if told.template:
        writer.add_chat_template(told.template)


def together(given: Given, taken: dict[str, Weight]) -> dict[str, Weight]:
    """The experts of a block are one tensor: where they would differ in type, all are what comes nearest.

    Where the widest block's rows are not made of whole blocks of a type, a weight is float16.
    """
    found = {
        name: weight if fills(weight, given.sizes[f"{name}.weight"]) else Dense(values=weight.dense().half())
        for name, weight in taken.items()
    }
    for names in experts(found).values():
        if len({kind_of(found[name]) for name in names}) > 1:
            found |= {name: nearest(given.weights[name], given.model) for name in names}
    return found


def forms(given: Given, taken: Mapping[str, Weight]) -> dict[str, Form]:
    """How each weight is written."""
    found = {name: holds(weight, given.model) for name, weight in taken.items()}
    return {name: form for name, form in found.items() if form is not None}


def experts(taken: Mapping[str, Weight]) -> dict[str, list[str]]:
    """The layers of each tensor by its name: those of the experts of a block, or one."""
    found: dict[str, list[str]] = {}
    for name in taken:
        found.setdefault(EXPERT.sub(".experts.", name), []).append(name)
    return found


def tensors(given: Given, taken: Mapping[str, Weight], found: Architecture) -> Iterator[tuple[str, np.ndarray, str]]:
    """The name, the rows and the type of each tensor."""
    head, rope = head_size(given.config), given.config.rope_parameters

    def order(name: str, outputs: int) -> Tensor | None:
        return interleaved(outputs, head) if found.neighbours and name.endswith(TURNED) else None

    for name, layers in experts(taken).items():
        parts = [written(taken[one], given.sizes[f"{one}.weight"], order(one, taken[one].shape[0])) for one in layers]
        rows = [rows for _, rows in parts]
        yield f"{name}.weight", rows[0] if layers == [name] else np.stack(rows), parts[0][0]
    for name, tensor in given.tensors.items():
        values = tensor.float() + (found.offset if name.endswith("norm.weight") else 0)
        places = order(name.removesuffix(".bias"), len(values))
        values = values if places is None else values[places]
        yield name, filled(values, given.sizes[name]).numpy(), "F32"
    if rope.get("rope_type") == "llama3":
        yield STRETCHED, stretched(rope, head), "F32"
