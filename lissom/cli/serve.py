"""The verb that serves models."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lissom.errors import DataError

# As the engine names them: to ask it would take a second.
KV_CACHES = ("auto", "float", "bfloat16", "int8", "int4")
SPECULATE = ("auto", "off")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="folders of models (Hugging Face or lissom), or hub names; NAME=FOLDER names one"),
    ],
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that clients must send")] = None,
    name: Annotated[str | None, typer.Option(help="name of the only model; by default that of its folder")] = None,
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
    tls_certificate: Annotated[
        Path | None, typer.Option(help="serve over HTTPS: a PEM file with the certificate and those that vouch for it")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="and a PEM file with its private key")] = None,
    admin: Annotated[
        Path | None, typer.Option(help="a Unix socket to be made, where models are loaded, exchanged and let go of")
    ] = None,
    uncertified: Annotated[
        bool, typer.Option("--uncertified", help="serve a model also where its certificate does not hold")
    ] = False,
) -> None:
    """Serve models, each in a process of its own: OpenAI's and Anthropic's APIs for language models, the Open Inference
    Protocol for others."""
    if kv_cache not in KV_CACHES:
        raise DataError(f"--kv-cache {kv_cache!r} is no kind of cache; choose {', '.join(KV_CACHES)}")
    if speculate not in SPECULATE:
        raise DataError(f"--speculate {speculate!r} is not possible; choose {' or '.join(SPECULATE)}")
    if draft is not None and speculate == "off":
        raise DataError("--draft guesses tokens ahead, which --speculate off forbids; leave one of them out")
    if len(models) > 1 and (name is not None or draft is not None):
        raise DataError("--name and --draft are for a single model; name several as NAME=FOLDER, and leave --draft out")
    if (tls_certificate is None) != (tls_key is None):
        raise DataError("--tls-certificate and --tls-key go together; give both, or neither")

    from lissom.server import FolderService, InProcess

    services = [
        FolderService(
            folder=folder,
            name=name or called,
            cache=kv_cache,
            draft=draft,
            speculate=speculate,
            uncertified=uncertified,
        )
        for called, folder in map(named, models)
    ]
    called = ", ".join(service.name for service in services)
    with ExitStack() as at_last:
        hosts = [InProcess(service) for service in services]  # they read the folders while this one reads more code
        for one in hosts:
            at_last.callback(one.close)

        from lissom.server import serve as run

        run(
            hosts,
            host=host,
            port=port,
            api_key=api_key,
            tls=None if tls_certificate is None or tls_key is None else (tls_certificate, tls_key),
            admin=admin,
            announce=lambda url: print(f"{called} at {url}", flush=True),
        )


def named(given: str) -> tuple[str, str]:
    """The name of a model and its folder, of NAME=FOLDER or of the folder alone; a folder that is there is one."""
    name, equals, folder = given.partition("=")
    if equals and name and folder and not Path(given).exists():
        return name, folder
    return Path(given).resolve().name, given
