"""The tokenizer of a language model by itself: what transformers makes of a folder's files, as one of them.

Transformers reads tokenizers of many kinds and mends some as it reads. What comes of it is a tokenizer of the library
`tokenizers`, a chat template, and the names of special tokens; with these, text becomes tokens without transformers.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

USUAL, MENDED = "tokenizer.json", "lissom.tokenizer.json"
USED = ("encode", "_encode_plus", "decode", "_decode", "apply_chat_template")  # of transformers' class


class Tokenizer:
    """Text to tokens and back, with as much of transformers' interface as serving needs.

    Args:
        backend: what does it.
        told: the rest, as `tokenizer_of` gives it.
    """

    def __init__(self, backend: Backend, told: Mapping[str, Any]) -> None:
        self.backend_tokenizer = backend
        self.eos_token_id: int | None = told["eos_token_id"]
        self.chat_template: str | None = told["chat_template"]
        self._special: Mapping[str, str] = told["special_tokens"]

    @classmethod
    def read(cls, folder: Path, told: Mapping[str, Any]) -> "Tokenizer":
        """From the folder of which `tokenizer_of` told."""
        return cls(unpadded(Backend.from_file(str(folder / told["file"]))), told)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, with the special ones that it begins or ends with."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self, tokens: Sequence[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The text of tokens. Spaces stay where they are.

        Raises:
            ValueError: spaces are to be cleaned up, which only transformers does.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("tokenizer: clean_up_tokenization_spaces is not possible here; leave it out")
        return self.backend_tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, return_dict: bool = False
    ) -> list[int]:
        """The tokens of a conversation of one or more messages.

        Raises:
            TemplateError: the template refuses it (it is jinja2's).
            ValueError: a dict is wanted, which only transformers gives.
        """
        if return_dict:
            raise ValueError("tokenizer: return_dict is not possible here; leave it out")
        written = self._template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )
        return self.encode(written, add_special_tokens=False)

    @cached_property
    def _template(self) -> "Template":
        from lissom.models.template import compiled

        assert self.chat_template is not None
        return compiled(self.chat_template)


def tokenizer_of(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> dict[str, Any] | None:
    """What `Tokenizer.read` needs to do as a tokenizer of transformers does; a file is written where none says it.

    None where transformers does more with it than a backend and a template can.
    """
    from transformers import TokenizersBackend

    plain = isinstance(tokenizer, TokenizersBackend) and not tokenizer.split_special_tokens
    if not plain or any(getattr(type(tokenizer), name) is not getattr(TokenizersBackend, name) for name in USED):
        return None
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        return None
    mended = unpadded(Backend.from_str(tokenizer.backend_tokenizer.to_str())).to_str()
    usual = (folder / USUAL).is_file() and unpadded(Backend.from_file(str(folder / USUAL))).to_str() == mended
    if not usual:
        (folder / MENDED).write_text(mended, encoding="utf-8")
    return {
        "file": USUAL if usual else MENDED,
        "eos_token_id": tokenizer.eos_token_id,
        "chat_template": tokenizer.get_chat_template() if tokenizer.chat_template else None,
        "special_tokens": tokenizer.special_tokens_map,
    }


def unpadded(backend: Backend) -> Backend:
    """The same, which neither cuts texts off nor fills them up now."""
    backend.no_truncation()
    backend.no_padding()
    return backend
