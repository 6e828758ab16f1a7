"""A Hugging Face checkpoint on disk, read tensor by tensor; the whole model is never in memory.

Transformers is imported where it is needed: that takes seconds, and a model that is served may need none of it.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lissom.errors import ArtifactError, ModelError, reason
from lissom.files import read_json
from lissom.formats import scale_of
from lissom.models.apart import apart
from lissom.models.families import Family, at, counted, family_of, put
from lissom.models.layers import check_finite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
MARK = {
    "made_by": "lissom"
}  # without quant_method, for transformers runs a model whose method it does not know as noise


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a Hugging Face checkpoint."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def find(model: str | Path) -> Path:
    """The local folder of a model given as a folder or as a hub name.

    Raises:
        ModelError: there is no such folder with a model in it, and no such name on the hub (or no way to it).
    """
    folder = Path(model)
    if folder.is_dir():
        if is_checkpoint(folder):
            return folder
        raise ModelError(f"{folder} is no model: it needs config.json and *.safetensors files")
    if folder.exists() or len(folder.parts) > 2 or str(model).startswith((".", "/")):
        raise ModelError(f"{folder} is no folder; give the folder of a model, or its hub name such as Qwen/Qwen3-0.6B")
    return _download(str(model))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is neither a folder here nor a model on the hub that can be reached ({reason(error)})"
        ) from None
    return Path(found)


class Checkpoint:
    """The config, the tokenizer and the tensors of a folder; `compressed` says that it may be one that lissom wrote.

    `told` is what its config says that the folder's does not.
    """

    def __init__(self, model: str | Path, *, compressed: bool = False) -> None:
        self.folder = find(model)
        self.config = read_config(self.folder, compressed=compressed)
        self.told: dict[str, Any] = {}
        self.family: Family = family_of(self.config.model_type)
        self._files = {name: self.folder / file for name, file in self._index().items()}

    def _index(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file():
            index = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(index, dict):
                raise ArtifactError(f"{self.folder / INDEX} has no weight_map; copy or download it again")
            return index
        return {name: file.name for file in sorted(self.folder.glob("*.safetensors")) for name in self._names(file)}

    def _names(self, file: Path) -> list[str]:
        with opened(file) as tensors:
            return list(tensors.keys())

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._files)

    def block_of(self, name: str) -> int | None:
        """The number of the block that a layer or tensor is in; None for those outside."""
        number = name.removeprefix(f"{self.family.blocks}.").partition(".")[0]
        return int(number) if number.isdecimal() else None

    def first(self, blocks: int) -> "Checkpoint":
        """The model of its first blocks alone."""
        small = copy.copy(self)
        small.told, small.config = counted(self.config, range(blocks)), copy.deepcopy(self.config)
        for name, value in small.told.items():
            setattr(small.config, name, value)
        small._files = {name: file for name, file in self._files.items() if (self.block_of(name) or 0) < blocks}
        return small

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the type it is stored in.

        Raises:
            ArtifactError: it is not there, or its file is cut short or corrupt.
        """
        if name not in self._files:
            raise ArtifactError(f"{self.folder} has no tensor {name!r}; the checkpoint is incomplete")
        with opened(self._files[name]) as tensors:
            found: Tensor = tensors.get_tensor(name)
            return found

    def check(self) -> None:
        """See that every tensor can be read, and that its numbers are numbers.

        Raises:
            ArtifactError: one is missing, or its file is cut short or corrupt.
            ModelError: one holds NaN or an infinity.
        """
        check_finite(((name, self.tensor(name)) for name in self.names), str(self.folder))

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the folder."""
        return read_tokenizer(self.folder)

    def skeleton(self) -> nn.Module:
        """The model without its weights (on the meta device), ready for `fill`."""
        return skeleton(self.config)

    def fill(self, model: nn.Module, name: str, floats: torch.dtype | None = torch.float32) -> nn.Module:
        """Read the weights of one part into the skeleton, as numbers of type `floats`; returns the part.

        None leaves them as they are stored, mapped into memory.

        Raises:
            ArtifactError: one is missing, or of another shape than the config says.
        """
        part = at(model, name)
        state = {own: self.tensor(f"{name}.{own}") for own in part.state_dict()}
        state = {own: tensor if floats is None else tensor.to(floats) for own, tensor in state.items()}
        check_shapes(self.folder, "config.json", state, part, f"{name}.")
        part.load_state_dict(state, assign=True)
        return part.eval()


def skeleton(config: "PretrainedConfig") -> nn.Module:
    """A causal language model on the meta device, but for what no checkpoint holds: angles, an embedding's scale."""
    from transformers import AutoModelForCausalLM

    family = family_of(config.model_type)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=family.attends_by)
    put(model, family.rotary, type(at(model, family.rotary))(config))
    embedding = at(model, family.embedding)
    for name in embedding._buffers:
        setattr(embedding, name, torch.tensor(scale_of(embedding)))
    return apart(model).eval()


def check_shapes(folder: Path, whose: str, state: Mapping[str, Tensor], model: nn.Module, prefix: str = "") -> None:
    """See that a folder's tensors have the shapes that the model wants; `whose` model it is, an error says.

    Raises:
        ArtifactError: one has not; it is named.
    """
    for name, wanted in model.state_dict().items():
        if name in state and state[name].shape != wanted.shape:
            found, fitting = list(state[name].shape), list(wanted.shape)
            raise ArtifactError(
                f"{folder} does not fit {whose}: {prefix}{name} is {found} in one and {fitting} in the other"
            )


def opened(file: Path) -> Any:
    """A safetensors file, mapped into memory.

    Raises:
        ArtifactError: it is missing, cut short or corrupt.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}; copy or download it again") from None


def read_config(folder: Path, *, compressed: bool = False, method: str | None = None) -> "PretrainedConfig":
    """The config of a folder; `compressed` says that it may be one that lissom wrote, or another tool by a `method`.

    Raises:
        ModelError: the architecture is unknown or its sizes impossible, or the model is quantized already.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = read_json(folder / "config.json")
    family_of(str(raw.get("model_type", "")))
    quantized = raw.pop("quantization_config", None)
    if (
        quantized
        and not zeros_only(quantized)
        and not (compressed and quantized == MARK)
        and not (method and quantized["quant_method"] == method)
    ):
        method = "lissom" if quantized == MARK else quantized.get("quant_method", "another tool")
        raise ModelError(f"{folder} is quantized already, by {method}; give the original model")
    try:
        return AutoConfig.for_model(**raw)
    except StrictDataclassError as error:
        raise ModelError(f"{folder / 'config.json'} makes no model: {' '.join(str(error).split())}") from None


def zeros_only(told: Mapping[str, Any]) -> bool:
    """Whether another tool has done no more to a model than what its zeros say, as it tells in the config."""
    return bool(told.get("sparsity_config")) and not told.get("config_groups")


def possible(raw: Mapping[str, Any]) -> bool:
    """Whether transformers takes a config of these entries."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        AutoConfig.for_model(**copy.deepcopy(dict(raw)))
    except StrictDataclassError:
        return False
    return True


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be read: {reason(error)}") from None
