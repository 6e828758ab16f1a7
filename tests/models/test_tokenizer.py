"""The tokenizer by itself against transformers' own: the same tokens, the same texts, the same conversations."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lissom.models.tokenizer import MENDED, USUAL, Tokenizer, tokenizer_of

TEXTS = ("Once upon a time", "  two  spaces , and\n\nlines", "</s> is a name<s>", "naïve 🦙 Ω", "")
CHATML = (
    "{%- for message in messages %}{{- '<s>' + message.role + '\\n' + message['content'] | trim + '</s>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<s>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': '&', 'a': 1} | tojson(sort_keys=True) }}",
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{% set n = namespace(k=0, self=1) %}{% for m in messages %}{% set n.k = n.k+1 %}{% endfor %}{{n.k}}",
    "dict": "{{ dict(a=messages | length) }}{{ dict.fromkeys('ab', 1) }}",
    "date": "{{ strftime_now('%Y') }}",
    "blocks": "{% for m in messages %}\n  {% if true %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "nothing else": "{{ tools is none }}{{ documents is none }}{{ unknown is defined }}",
}
REFUSING = {
    "raises": "{{ raise_exception('roles must alternate') }}",
    "underscore": "{% set n = namespace(_a=1) %}",
    "underscore later": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "sandbox": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "mutation": "{{ messages.append(1) }}",
    "no template": "{% if %}",
}
MESSAGES = [
    {"role": "system", "content": ' Be <brief> & "kind". '},
    {"role": "user", "content": "Wer bist du, Ωmega?\n"},
]


@pytest.fixture
def usual(demo_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_folder)


def by_itself(tokenizer: Any, folder: Path, file: str) -> Tokenizer:
    told = json.loads(json.dumps(tokenizer_of(tokenizer, folder)))
    assert told["file"] == file
    return Tokenizer.read(folder, told)


def same(ours: Tokenizer, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    assert ours.eos_token_id == theirs.eos_token_id
    for text in TEXTS:
        tokens = theirs.encode(text)
        assert ours.encode(text) == tokens
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        for skip in (False, True):
            assert ours.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False) == theirs.decode(
                tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_a_file_that_says_all_is_read_as_it_is(usual: Any, demo_folder: Path, tmp_path: Path) -> None:
    shutil.copy(demo_folder / USUAL, tmp_path)
    same(by_itself(usual, tmp_path, USUAL), usual)
    assert not (tmp_path / MENDED).exists()


def test_what_transformers_mends_is_kept(demo_folder: Path, tmp_path: Path) -> None:
    for file in demo_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "extra_special_tokens": ["<call>"]}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = by_itself(theirs, tmp_path, MENDED)
    same(ours, theirs)
    assert ours.encode("<call>a")[0] == theirs.convert_tokens_to_ids("<call>")


def test_texts_are_neither_cut_off_nor_filled_up(usual: Any, demo_folder: Path, tmp_path: Path) -> None:
    usual.backend_tokenizer.enable_truncation(3)
    usual.backend_tokenizer.enable_padding(length=9)
    usual.backend_tokenizer.save(str(tmp_path / USUAL))
    same(by_itself(usual, tmp_path, USUAL), AutoTokenizer.from_pretrained(demo_folder))


def test_special_tokens_around_a_text_are_those_of_the_post_processor(usual: Any, tmp_path: Path) -> None:
    pairs = [("<s>", usual.bos_token_id), ("</s>", usual.eos_token_id)]
    usual.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=pairs
    )
    ours = by_itself(usual, tmp_path, MENDED)
    same(ours, usual)
    assert ours.encode("a")[0] == usual.bos_token_id
    assert ours.encode("a", add_special_tokens=False)[0] != usual.bos_token_id


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer that does more than its backend."""

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        return super()._decode(*args, **kwargs).upper()


def test_a_tokenizer_that_does_more_is_left_to_transformers(usual: Any, tmp_path: Path) -> None:
    assert tokenizer_of(Shouting(tokenizer_object=usual.backend_tokenizer), tmp_path) is None
    usual.chat_template = {"tool_use": CHATML}
    assert tokenizer_of(usual, tmp_path) is None
    usual.chat_template, usual.split_special_tokens = None, True
    assert tokenizer_of(usual, tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("go_on", [True, False])
def test_conversations_are_written_as_transformers_writes_them(
    usual: Any, tmp_path: Path, template: str, go_on: bool
) -> None:
    usual.chat_template = template
    ours = by_itself(usual, tmp_path, MENDED)
    expected = usual.apply_chat_template(MESSAGES, add_generation_prompt=go_on, return_dict=False)
    assert expected
    assert ours.apply_chat_template(MESSAGES, add_generation_prompt=go_on, return_dict=False) == expected


OFFERED = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
TOLD = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ mark | default('.') }}{{ eos_token }}"
    "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
)


@pytest.mark.parametrize("tools", [None, OFFERED], ids=["no tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"mark": "!", "eos_token": "?"}], ids=["untold", "told"])
def test_tools_and_variables_reach_the_template(usual: Any, tmp_path: Path, tools: Any, variables: Any) -> None:
    usual.chat_template = TOLD
    ours = by_itself(usual, tmp_path, MENDED)
    how = {"add_generation_prompt": True, "return_dict": False, **variables}
    expected = usual.apply_chat_template(MESSAGES, tools, **how)
    assert ours.apply_chat_template(MESSAGES, tools, **how) == expected


@pytest.mark.parametrize("content", ["Ich bin", "Ich bin  ", "Ich\n"])
@pytest.mark.parametrize("template", [CHATML, TOLD], ids=["strips", "keeps"])
def test_the_last_message_goes_on_as_with_transformers(usual: Any, tmp_path: Path, template: str, content: str) -> None:
    usual.chat_template = template
    ours = by_itself(usual, tmp_path, MENDED)
    turns = [*MESSAGES, {"role": "assistant", "content": content}]
    how = {"add_generation_prompt": False, "continue_final_message": True, "return_dict": False}
    assert ours.apply_chat_template(turns, **how) == usual.apply_chat_template(turns, **how)


def test_what_a_template_alters_cannot_go_on(usual: Any, tmp_path: Path) -> None:
    usual.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    ours = by_itself(usual, tmp_path, MENDED)
    for tokenizer in (usual, ours):
        with pytest.raises(ValueError, match=r"final message|last message"):
            tokenizer.apply_chat_template(
                MESSAGES, add_generation_prompt=False, continue_final_message=True, return_dict=False
            )


@pytest.mark.parametrize("template", REFUSING.values(), ids=REFUSING)
def test_what_transformers_refuses_is_refused(usual: Any, tmp_path: Path, template: str) -> None:
    usual.chat_template = template
    ours = by_itself(usual, tmp_path, MENDED)
    for tokenizer in (usual, ours):
        with pytest.raises(TemplateError):
            tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)


def test_the_usual_one_of_several_templates_is_taken(usual: Any, tmp_path: Path) -> None:
    usual.chat_template = {"default": CHATML, "tool_use": "{{ raise_exception('no') }}"}
    ours = by_itself(usual, tmp_path, MENDED)
    assert ours.chat_template == CHATML


def test_without_a_template_there_is_none(usual: Any, tmp_path: Path) -> None:
    assert by_itself(usual, tmp_path, MENDED).chat_template is None


def test_what_only_transformers_does_is_refused(usual: Any, tmp_path: Path) -> None:
    ours = by_itself(usual, tmp_path, MENDED)
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces is not possible here; leave it out"):
        ours.decode([5], clean_up_tokenization_spaces=True)
    with pytest.raises(ValueError, match="return_dict is not possible here; leave it out"):
        ours.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)
