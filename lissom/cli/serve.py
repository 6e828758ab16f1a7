"""The verb that serves a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer

from lissom.cli.options import Model
from lissom.errors import DataError

# As the engine names them: to ask it would take a second.
KV_CACHES = ("auto", "float", "bfloat16", "int8", "int4")
SPECULATE = ("auto", "off")


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that clients must send")] = None,
    name: Annotated[str | None, typer.Option(help="name of the model; by default that of its folder")] = None,
    kv_cache: Annotated[
        str,
        typer.Option(
            help="how keys and values are held: float, bfloat16, int8, int4; auto: as certified, or as it was trained"
        ),
    ] = "auto",
    draft: Annotated[
        str | None, typer.Option(help="a compressed copy of the model that guesses tokens ahead; it changes no text")
    ] = None,
    speculate: Annotated[
        str, typer.Option(help="guess tokens ahead where that is faster (auto), or not (off); it changes no text")
    ] = "auto",
) -> None:
    """Serve a model: OpenAI's API for language models, the Open Inference Protocol for others."""
    if kv_cache not in KV_CACHES:
        raise DataError(f"--kv-cache {kv_cache!r} is no kind of cache; choose {', '.join(KV_CACHES)}")
    if speculate not in SPECULATE:
        raise DataError(f"--speculate {speculate!r} is not possible; choose {' or '.join(SPECULATE)}")
    if draft is not None and speculate == "off":
        raise DataError("--draft guesses tokens ahead, which --speculate off forbids; leave one of them out")
    with starting():
        service = _service(model, name, kv_cache=kv_cache, draft=draft, speculate=speculate)

        from lissom.server import serve as run
    called = service.name
    run([service], host=host, port=port, api_key=api_key, announce=lambda url: print(f"{called} at {url}", flush=True))


@contextmanager
def starting() -> Iterator[None]:
    """What is imported and loaded meanwhile stays: to look through it for garbage would take a fifth of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _service(model: str, name: str | None, *, kv_cache: str, draft: str | None, speculate: str) -> Any:
    """What is served of a folder."""
    from lissom.artifact import open_folder

    opened = open_folder(model, bare=True)  # first, since it checks the files while PyTorch is imported

    from lissom.engine.lower import lower
    from lissom.server import LanguageService, TensorService

    called = name or opened.folder.resolve().name
    running = lower(opened.model)
    if opened.tokenizer is not None:
        return LanguageService(
            model=cast(Any, running),
            tokenizer=opened.tokenizer,
            name=called,
            evidence=opened.evidence,
            cache=opened.cache if kv_cache == "auto" else kv_cache,
            draft=None if draft is None else _draft(draft),
            speculate=speculate,
        )
    if draft is not None:
        raise DataError(f"--draft guesses the tokens of a language model, which {model} is not; leave it out")
    if opened.signature is None:
        raise DataError(f"{model} does not say what goes in and out; save it with example=a batch to serve it")
    return TensorService(module=running, name=called, signature=opened.signature, evidence=opened.evidence)


def _draft(folder: str) -> Any:
    """A language model that guesses for another one."""
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower

    opened = open_folder(folder, bare=True)
    if opened.tokenizer is None:
        raise DataError(f"--draft {folder} is no language model; give a compressed copy of the one that is served")
    return lower(opened.model)
