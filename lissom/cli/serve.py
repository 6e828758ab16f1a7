"""The verbs that serve models, and say to whom."""

import tomllib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.read import fraction
from lissom.cli.show import console
from lissom.errors import DataError
from lissom.files import read_text

if TYPE_CHECKING:
    from lissom.server import FolderService

# As the engine names them: to ask it would take a second.
KV_CACHES = ("auto", "float", "bfloat16", "int8", "int4")
SPECULATE = ("auto", "off")
SURE = 0.99  # of a disagreement, before there is an alarm


def configured(context: Any, file: Path | None) -> Path | None:
    """Take from a file what is given neither as an option nor in the environment.

    Raises:
        DataError: it is no TOML, or names what is no option.
    """
    if file is None:
        return None
    try:
        found = {name.replace("-", "_"): value for name, value in tomllib.loads(read_text(file)).items()}
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{file} is no TOML: {error}") from None
    possible = sorted(str(one.name) for one in context.command.params if one.name not in ("config", "help"))
    if unknown := sorted(found.keys() - set(possible)):
        raise DataError(f"{file}: there is no option {unknown[0]!r}; possible are {', '.join(possible)}")
    context.default_map = found
    return file


def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="folders of models (Hugging Face or lissom), or hub names; NAME=FOLDER names one"),
    ],
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that clients must send")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="a file of keys, each with its own limits: lissom keys FILE")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(is_eager=True, callback=configured, help="a TOML file with any of these, such as port = 80"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of the only model; by default that of its folder")] = None,
    kv_cache: Annotated[
        str,
        typer.Option(
            help="how keys and values are held: float, bfloat16, int8, int4; auto: as certified, or as it was trained"
        ),
    ] = "auto",
    target: Annotated[str, typer.Option(help="what to run on: cpu, or cuda where there is a GPU")] = "cpu",
    draft: Annotated[
        str | None, typer.Option(help="a compressed copy of the model that guesses tokens ahead; it changes no text")
    ] = None,
    speculate: Annotated[
        str, typer.Option(help="guess tokens ahead where that is faster (auto), or not (off); it changes no text")
    ] = "auto",
    shadow: Annotated[
        str | None,
        typer.Option(help="another model, as a rule the original, that a share of what is answered is compared with"),
    ] = None,
    share: Annotated[str | None, typer.Option(help="share of the requests that the shadow sees; by default 5%")] = None,
    max_disagreement: Annotated[
        str | None,
        typer.Option(help="share of places where the two may differ, by default 10%; beyond it the shadow takes over"),
    ] = None,
    rollback: Annotated[
        bool | None,
        typer.Option(
            "--rollback/--no-rollback",
            help="let the shadow take over, which is the default, or only tell (in log, metrics and /evidence)",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say whether it fits into memory, and how fast it can be at most")
    ] = False,
    log: Annotated[
        str, typer.Option(help="what is written to the error stream: text: warnings; json: every request")
    ] = "text",
    tls_certificate: Annotated[
        Path | None, typer.Option(help="serve over HTTPS: a PEM file with the certificate and those that vouch for it")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="and a PEM file with its private key")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="serve models that are no language models by gRPC too, at this port")
    ] = None,
    admin: Annotated[
        Path | None, typer.Option(help="a Unix socket to be made, where models are loaded, exchanged and let go of")
    ] = None,
    uncertified: Annotated[
        bool, typer.Option("--uncertified", help="serve a model also where its certificate does not hold")
    ] = False,
) -> None:
    """Serve models, each in a process of its own: OpenAI's and Anthropic's APIs for language models, the Open Inference
    Protocol for others. Each option may also stand in the environment, as LISSOM_SERVE_PORT, or in a file."""
    if kv_cache not in KV_CACHES:
        raise DataError(f"--kv-cache {kv_cache!r} is no kind of cache; choose {', '.join(KV_CACHES)}")
    if speculate not in SPECULATE:
        raise DataError(f"--speculate {speculate!r} is not possible; choose {' or '.join(SPECULATE)}")
    if draft is not None and speculate == "off":
        raise DataError("--draft guesses tokens ahead, which --speculate off forbids; leave one of them out")
    if len(models) > 1 and any(given is not None for given in (name, draft, shadow)):
        raise DataError("--name, --draft and --shadow are for a single model; name several as NAME=FOLDER")
    watched = {"--share": share, "--max-disagreement": max_disagreement, "--rollback": rollback}
    if shadow is None and (alone := [name for name, given in watched.items() if given is not None]):
        raise DataError(f"{alone[0]} is of a shadow; give that by --shadow FOLDER, or leave {alone[0]} out")
    if (tls_certificate is None) != (tls_key is None):
        raise DataError("--tls-certificate and --tls-key go together; give both, or neither")

    from lissom.engine.logs import KINDS, begin
    from lissom.server import FolderService, InProcess, Shadow
    from lissom.types import Budget

    if log not in KINDS:
        raise DataError(f"--log {log!r} is not possible; choose {' or '.join(KINDS)}")
    begin(log)
    services = [
        FolderService(
            folder=folder,
            name=name or called,
            cache=kv_cache,
            target=target,
            draft=draft,
            speculate=speculate,
            uncertified=uncertified,
            shadow=None
            if shadow is None
            else Shadow(
                service=FolderService(folder=shadow, name=name or called, target=target, uncertified=uncertified),
                share=fraction("share", share or "5%"),
                budget=Budget(max_drop=fraction("max-disagreement", max_disagreement or "10%"), confidence=SURE),
                rollback=rollback is not False,
            ),
        )
        for called, folder in map(named, models)
    ]
    called = ", ".join(service.name for service in services)
    if dry_run:
        show_foreseen(services)
        return
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
            keys=keys,
            tls=None if tls_certificate is None or tls_key is None else (tls_certificate, tls_key),
            admin=admin,
            grpc_port=grpc_port,
            announce=lambda url: tell(f"{called} at {url}"),
        )


def tell(line: str) -> None:
    """A line for whoever reads; a server goes on where there is nobody, or no room for it on a full disk."""
    with suppress(OSError):
        print(line, flush=True)


def show_foreseen(services: "list[FolderService]") -> None:
    """What serving would take and how fast it could be at most; exit code 1 where it does not fit."""
    from rich.filesize import decimal
    from rich.table import Table

    from lissom.cli.foresee import foresee

    every = [*services, *(one.shadow.service for one in services if one.shadow is not None)]
    rows, needed, free = foresee(every)  # type: ignore[arg-type]
    shown = Table("model", "weights", "keys and values", "tokens/s of one, at most", box=None, pad_edge=False)
    for row in rows:
        rates = f"{row['written']:.0f} written, {row['read']:.0f} read" if "written" in row else ""
        shown.add_row(row["model"], decimal(row["weights"]), decimal(row["cache"]) if "cache" in row else "", rates)
    console.print(shown)
    fits = "fits" if needed <= free else "does not fit"
    console.print(f"{decimal(needed)} in all; {decimal(free)} are free: it {fits}", highlight=False)
    if needed > free:
        raise typer.Exit(1)


def keys(
    file: Annotated[Path, typer.Argument(help="a file of keys, for lissom serve --keys; made if there is none")],
    add: Annotated[str | None, typer.Option(help="make a key of that name and print it: it is kept nowhere")] = None,
    remove: Annotated[
        str | None, typer.Option(help="take the key of that name away, also from a running server")
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="of the new key, at most")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="read and written with the new key, at most")] = None,
    priority: Annotated[int, typer.Option(help="of the new key: of two that wait, the lower is answered first")] = 0,
) -> None:
    """Say who may ask a server, and how much: make a key, take one away, or list them."""
    from rich.table import Table

    from lissom.server.keys import add_key, read_keys, remove_key

    if add is not None and remove is not None:
        raise DataError("--add and --remove: one of them at a time; leave one out")
    if add is None and (requests_per_minute is not None or tokens_per_minute is not None or priority):
        raise DataError("--requests-per-minute, --tokens-per-minute and --priority are of a new key: give --add NAME")
    if add is not None:
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        print(add_key(file, add, priority=priority, **limits))
        return
    if remove is not None:
        remove_key(file, remove)
        return
    shown = Table("name", "requests a minute", "tokens a minute", "priority", box=None, pad_edge=False)
    for key in read_keys(file):
        shown.add_row(key.name, *map(limit, (key.requests_per_minute, key.tokens_per_minute)), str(key.priority))
    console.print(shown)


def limit(value: float | None) -> str:
    """A limit, if there is one."""
    return "any" if value is None else f"{value:g}"


def named(given: str) -> tuple[str, str]:
    """The name of a model and its folder, of NAME=FOLDER or of the folder alone; a folder that is there is one."""
    name, equals, folder = given.partition("=")
    if equals and name and folder and not Path(given).exists():
        return name, folder
    return Path(given).resolve().name, given
