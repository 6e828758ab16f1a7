"""The tokenizer of a language model by itself: what transformers makes of a folder's files, as one of them.

Transformers reads tokenizers of many kinds and mends some as it reads. What comes of it is a tokenizer of the library
`tokenizers`, a chat template, and the names of special tokens; with these, text becomes tokens without transformers.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from lissom.resident import give_back

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

USUAL, MENDED = "tokenizer.json", "lissom.tokenizer.json"
MARK = "[the text goes on here] "  # its space shows whether a template strips what it is given
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
        self.told = told

    @classmethod
    def read(cls, folder: Path, told: Mapping[str, Any]) -> "Tokenizer":
        """From the folder of which `tokenizer_of` told."""
        backend = unpadded(Backend.from_file(str(folder / told["file"])))
        give_back()  # what the file was parsed into takes as much as the tokenizer does
        return cls(backend, told)

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
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        return_dict: bool = False,
        **told: Any,
    ) -> list[int]:
        """The tokens of a conversation of one or more messages; where the last is continued, up to its content's end.

        The template is `told` variables of its own.

        Raises:
            TemplateError: the template refuses it (it is jinja2's).
            ValueError: a dict is wanted, which only transformers gives; or the template alters what is to go on.
        """
        if return_dict:
            raise ValueError("tokenizer: return_dict is not possible here; leave it out")
        turns = [dict(message) for message in messages]
        if continue_final_message:
            turns[-1]["content"] += MARK
        said = {"messages": turns, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        written = self._template.render({**self._special, **told, **said})
        if continue_final_message:
            written = before_mark(written, str(messages[-1]["content"]))
        return self.encode(written, add_special_tokens=False)

    @cached_property
    def _template(self) -> "Template":
        from lissom.models.template import compiled

        assert self.chat_template is not None
        return compiled(self.chat_template)


def before_mark(written: str, content: str) -> str:
    """A conversation up to the mark behind its last content; without the space before, where the template strips it.

    Raises:
        ValueError: the content is not in it.
    """
    place = written.rfind(MARK.rstrip())
    if place < 0 or content.strip() not in written:
        raise ValueError("the chat template alters the last message, so that it cannot be continued")
    kept = written[:place]
    return kept if written.startswith(MARK, place) else kept.rstrip()


def tokenizer_of(tokenizer: "PreTrainedTokenizerBase | Tokenizer", folder: Path) -> dict[str, Any] | None:
    """What `Tokenizer.read` needs to do as a tokenizer does; a file is written where none in the folder says it.

    None where transformers does more with it than a backend and a template can.
    """
    if isinstance(tokenizer, Tokenizer):
        (folder / MENDED).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        return {**tokenizer.told, "file": MENDED}
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
