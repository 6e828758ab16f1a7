"""The verb that serves a model."""

from typing import Annotated, Any, cast

import typer

from lissom.cli.options import Model
from lissom.errors import DataError


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that clients must send")] = None,
    name: Annotated[str | None, typer.Option(help="name of the model; by default that of its folder")] = None,
    kv_cache: Annotated[
        str, typer.Option(help="how keys and values are held: auto, float, bfloat16, int8 or int4")
    ] = "auto",
    draft: Annotated[
        str | None, typer.Option(help="a compressed copy of the model that guesses tokens ahead; it changes no text")
    ] = None,
    speculate: Annotated[
        str, typer.Option(help="guess tokens ahead where that is faster (auto), or not (off); it changes no text")
    ] = "auto",
) -> None:
    """Serve a model: OpenAI's API for language models, the Open Inference Protocol for others."""
    from lissom.artifact import open_folder
    from lissom.engine.cache import AUTO, STORES
    from lissom.engine.lower import lower
    from lissom.engine.speculate import NEVER, WHERE_IT_PAYS
    from lissom.server import LanguageService, TensorService
    from lissom.server import serve as run

    if kv_cache not in (AUTO, *STORES):
        raise DataError(f"--kv-cache {kv_cache!r} is no kind of cache; choose {', '.join([AUTO, *STORES])}")
    if speculate not in (WHERE_IT_PAYS, NEVER):
        raise DataError(f"--speculate {speculate!r} is not possible; choose {WHERE_IT_PAYS} or {NEVER}")
    if draft is not None and speculate == NEVER:
        raise DataError("--draft guesses tokens ahead, which --speculate off forbids; leave one of them out")
    opened = open_folder(model)
    called = name or opened.folder.resolve().name
    running = lower(opened.model)
    if opened.tokenizer is not None:
        service: Any = LanguageService(
            model=cast(Any, running),
            tokenizer=opened.tokenizer,
            name=called,
            evidence=opened.evidence,
            cache=kv_cache,
            draft=None if draft is None else _draft(draft),
            speculate=speculate,
        )
    elif draft is not None:
        raise DataError(f"--draft guesses the tokens of a language model, which {model} is not; leave it out")
    elif opened.signature is None:
        raise DataError(f"{model} does not say what goes in and out; save it with example=a batch to serve it")
    else:
        service = TensorService(module=running, name=called, signature=opened.signature, evidence=opened.evidence)
    run([service], host=host, port=port, api_key=api_key, announce=lambda url: print(f"{called} at {url}", flush=True))


def _draft(folder: str) -> Any:
    """A language model that guesses for another one."""
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower

    opened = open_folder(folder)
    if opened.tokenizer is None:
        raise DataError(f"--draft {folder} is no language model; give a compressed copy of the one that is served")
    return lower(opened.model)
