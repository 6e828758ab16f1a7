"""What every test may ask for: one thread, the repository, the bundled language model, the real data, other processes.

The thread count is set before torch is imported, and lissom is imported inside the fixtures only: pytest puts shape
checks on the package when it is first imported.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache as once
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the workers of pytest-xdist use the cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jaxtyping
import pytest
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels for GPUs run in its interpreter

# How long an example takes says something of the machine only, and of what else runs there.
hypothesis.settings.register_profile("lissom", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lissom")

FIRST, EVERY = 32, 31  # calls of a function whose shapes are checked: the first ones, and then one of so many
PATIENCE_S = 120
TORCHRUN_S = 300
LONGEST = ("test_documents.py", "test_examples.py")  # minutes
ROOT = Path(__file__).resolve().parent.parent

GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 16, "attention_bias": True}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},  # the second block slides
    "qwen3": {"attention_bias": True},
    "gemma2": {"sliding_window": 6, **GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 6, **GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 6, "rope_parameters": PARTIAL, "pad_token_id": 0},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 6, "pad_token_id": 0},
}


def shapeless(hint: Any) -> bool:
    """Whether a type surely says nothing of shapes: it is no text, and there is no array in it."""
    if isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return False
    if isinstance(hint, list | tuple):
        return all(map(shapeless, hint))
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return False
    return all(map(shapeless, typing.get_args(hint)))


def checked(made: Any = None, *, typechecker: Any, shaped: Any = jaxtyping.jaxtyped) -> Any:
    """In the place of `jaxtyped`: what takes and gives no shapes is left to beartype alone, which checks the same.

    Keeping account of shapes takes longer than most functions take, and most have none. Those of a function that is
    called over and over are checked in its first calls, and then now and then.
    """
    if made is None:
        return functools.partial(checked, typechecker=typechecker)
    own = vars(made).get("__init__") if inspect.isclass(made) and dataclasses.is_dataclass(made) else made
    if not inspect.isfunction(own) or not all(map(shapeless, own.__annotations__.values())):
        found = shaped(made, typechecker=typechecker)
        return now_and_then(found, made) if own is made and inspect.isfunction(found) else found
    if own is made:
        return typechecker(made)
    made.__init__ = typechecker(own)
    return made


def now_and_then(checks: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is checked in its first calls and in some of the later ones."""
    calls = itertools.count()

    @functools.wraps(plain)
    def call(*given: Any, **named: Any) -> Any:
        number = next(calls)
        return (checks if number < FIRST or number % EVERY == 0 else plain)(*given, **named)

    return call


jaxtyping.jaxtyped = checked  # before lissom is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, and so to one worker: begun near the end it would go on while the other waits."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What lissom remembers from run to run is kept apart from what it remembers for its user."""
    os.environ["LISSOM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def sheets() -> Iterator[None]:
    """Targets that are not here are costed by their data sheets, whatever compilers are installed."""
    from lissom.hardware import ways

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "find_spec", lambda package: None)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The bundled tiny Llama: 4 layers, hidden 256, vocabulary 2048."""
    return ROOT / "lissom" / "demo"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models: the folder that LISSOM_SHARED names, or `shared` beside the repository."""
    folder = Path(os.environ.get("LISSOM_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"needs the shared models and data; set LISSOM_SHARED ({folder} has none)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint of a family, 2 blocks of 32 wide, with random weights and the demo's tokenizer; not to be changed.

    `tiny("qwen2", tied=True)`; every weight is random, the norms' and the biases' too.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    @once
    def made(family: str, tied: bool = False, blocks: int = 2) -> Path:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": blocks, "vocab_size": 2048}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
        config = AutoConfig.for_model(family, **sizes, **heads, **FAMILIES[family], tie_word_embeddings=tied)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1)
        folder = tmp_path_factory.mktemp(f"{family}{'-tied' * tied}")
        model.save_pretrained(folder)
        for file in (ROOT / "lissom" / "demo").glob("tokenizer*"):
            shutil.copyfile(file, folder / file.name)
        return folder

    return made


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a text encoder, as sentence-transformers writes them: a BERT of 2 blocks with random weights, for
    texts of at most 48 tokens of the demo's. To be changed at will.
    """
    from transformers import BertConfig, BertModel

    def made(pooling: str = "mean_tokens", *, normalize: bool = True) -> Path:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        folder = tmp_path_factory.mktemp("encoder")
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = BertModel(BertConfig(vocab_size=2048, max_position_embeddings=64, **sizes))
        model.save_pretrained(folder)
        for file in (ROOT / "lissom" / "demo").glob("tokenizer*"):
            shutil.copyfile(file, folder / file.name)
        kinds = ("Transformer", "Pooling", *(["Normalize"] if normalize else []))
        paths = ("", "1_Pooling", "2_Normalize")
        parts = [{"path": path, "type": f"some.models.{kind}"} for path, kind in zip(paths, kinds, strict=False)]
        modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
        pooled = {"word_embedding_dimension": 32, **{f"pooling_mode_{mode}": mode == pooling for mode in modes}}
        (folder / "1_Pooling").mkdir()
        for name, content in (("modules.json", parts), ("1_Pooling/config.json", pooled)):
            (folder / name).write_text(json.dumps(content))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
        return folder

    return made


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers, in whatever order it runs."""
    torch.manual_seed(0)


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """What `act(group)` returns in each of n threads, whose groups can speak with one another."""

    def run(n: int, act: Callable[[dist.ProcessGroup], Any]) -> list[Any]:
        store, found = dist.HashStore(), [None] * n

        def one(rank: int) -> None:
            group, kind = dist.ProcessGroup(store, rank, n), dist.ProcessGroup.BackendType.GLOO
            gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, n, timedelta(seconds=PATIENCE_S))
            group._set_default_backend(kind)
            group._register_backend(torch.device("cpu"), kind, gloo)
            found[rank] = act(group)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        return found

    return run


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """What a case of a file of cases prints last, as JSON, in each of n processes."""

    def run(n: int, file: Path, *words: object) -> list[Any]:
        meeting = tmp_path_factory.mktemp("meeting") / "place"
        command = [sys.executable, str(file), str(meeting), str(n)]
        started = [
            subprocess.Popen(
                [*command, str(rank), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for rank in range(n)
        ]
        said = [process.communicate(timeout=PATIENCE_S) for process in started]
        assert [process.returncode for process in started] == [0] * n, said
        return [json.loads(out.splitlines()[-1]) for out, _ in said]

    return run


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., list[str]]:
    """What is printed when a script, or a module after -m, is run by so many workers."""

    def run(count: int, *words: object, restarts: int = 0) -> list[str]:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run(
            [*start, "--max-restarts", str(restarts), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=TORCHRUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    return run
