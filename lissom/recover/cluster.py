"""A cluster: what a folder holds, recovered by workers that Ray starts, on one machine or many; who dies is replaced.

Ray Train (Moritz et al., OSDI 2018, arXiv:1712.05889; the extra `ray`) starts the workers and lets them meet, in the
environment that torchrun would give them. When one dies it starts all of them anew, and they go on at the last look.
The examples lie in Ray's object store, put there once; each worker reads them from there in their order, and learns
from its share of every batch: the examples of each step are those of torchrun with as many workers.

Nothing is pickled to disk by us. Ray carries what a call is given between its processes by cloudpickle: here the name
of a function, paths, numbers and words, and on the way back events, the curve and the certificate.

Shapes: n examples, b bytes of one.
"""

import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lissom.artifact import MANIFEST
from lissom.artifact.fingerprint import of_code
from lissom.artifact.manifest import check_free
from lissom.calibrate import Batch
from lissom.calibrate.data import each, tensors
from lissom.errors import ArtifactError, LissomError, RecipeError, reason
from lissom.evaluate import Given, budgets_of, metric
from lissom.progress import Progress, Tell, quiet
from lissom.recover.folder import Learned, recover_folder
from lissom.recover.model import ALL, AS_SAID
from lissom.recover.parallel.layout import Layout
from lissom.recover.parallel.workers import started
from lissom.recover.training import Training
from lissom.techniques.knobs import at_least
from lissom.types import Budget

LOCAL, FOUND = "local", "auto"  # addresses that are none: a Ray of one's own, and the one that runs here
# Of a Ray of one's own: it tells nobody that it is used, and its workers are no less urgent than what else runs here.
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
FAILURES = 8  # times that all are started anew, before it is given up
ROWS = 2**14  # examples of a block
PATIENCE_S = 10  # for an answer of the cluster
LATER_S = 5  # how long the first worker is given to say what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What each worker is told, all of it small: as `recover_folder` takes it; `like` is the data without examples."""

    folder: Path
    out: Path
    training: Mapping[str, Any]
    original: str | None
    held: float | None
    budgets: Mapping[str, Mapping[str, Any]] | None
    layout: Mapping[str, int]
    like: Mapping[str, Batch]
    code: str


def recover_on_ray(
    address: str,
    workers: int,
    folder: str | Path,
    data: Batch,
    out: str | Path,
    training: Training = AS_SAID,
    *,
    original: str | Path | None = None,
    held: Any = 0.05,
    examples: Batch | None = None,
    budgets: Given | None = None,
    layout: Layout = ALL,
    progress: Tell = quiet,
) -> Learned:
    """Let the compressed model of a folder learn, by workers on a Ray cluster; the rest is as for `recover_folder`.

    All machines of the cluster must see the folder, the original and the place of `out` under the same names, and have
    the same lissom. A worker that dies, by whatever, is replaced, up to 8 times in all; who stops all of them makes the
    same call again. Each worker gets a GPU where the cluster has any, and its share of the processors: as many threads.

    Args:
        address: of the cluster, HOST:6379; "auto" is the one that runs on this machine, "local" starts one here that
            ends with the call.
        workers: how many learn together.
        folder, data, out, training, original, held, examples, budgets, layout: as for `recover_folder`, but that
            metrics are given by name.
        progress: told where the workers are, and of each look.

    Raises:
        RecipeError: Ray is not installed or not reached, or has no room for so many workers; or they failed too often.
        ModelError, DataError, ArtifactError: as `recover_folder`; or a worker does not see a folder.
    """
    at_least(1, workers=workers)
    if started() > 1:
        raise RecipeError("--ray: Ray starts the workers, and torchrun has started some; use one of them")
    check_free(out := Path(out).absolute())
    sets = {"data": data, "held": held, "examples": examples}
    sets = {name: batch for name, batch in sets.items() if not isinstance(batch, float | int | None)}
    asked = Asked(
        folder=Path(folder).absolute(),
        out=out,
        training=training.as_dict(),
        original=None if original is None else str(Path(original).absolute() if Path(original).exists() else original),
        held=None if "held" in sets else held,
        budgets=None if budgets is None else by_name(budgets),
        layout=dict(layout),
        like={name: each(batch, lambda part: part[:0].clone()) for name, batch in sets.items()},
        code=of_code(),
    )
    with cluster(address, workers) as resources:
        return run(asked, sets, workers, resources, progress)


def by_name(budgets: Given) -> dict[str, dict[str, Any]]:
    """Budgets as words and numbers.

    Raises:
        DataError: one is of a metric that has no name, or that cannot have it.
        RecipeError: it is of a metric of one's own.
    """
    found = budgets_of(budgets)
    if own := [kind.name for kind in found if metric(kind.name) != kind]:
        raise RecipeError(f"budgets: {own[0]!r} is a metric of your own, which workers do not know; give one by name")
    return {kind.name: asdict(budget) for kind, budget in found.items()}


@contextmanager
def cluster(address: str, workers: int) -> Iterator[dict[str, float]]:
    """Within the block Ray is there; what of it each worker gets.

    Raises:
        RecipeError: Ray is not installed, not reached, or has no room for so many workers.
    """
    try:
        import ray
        from ray.train.torch import TorchTrainer  # noqa: F401, its own needs are missing where only `ray` is installed
    except ImportError as error:
        raise RecipeError(f"--ray: {reason(error)}; install it: pip install 'lissom[ray]'") from None
    reach(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeError(f"--ray {address}: {reason(error).rstrip('.')}; {ADVICE}") from None
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield room(machines, workers, ray.available_resources().get("CPU", 0.0))
    finally:
        ray.shutdown()


ADVICE = "give the address that `ray start --head` printed, such as 10.0.0.1:6379, or local"


def reach(address: str) -> None:
    """See that somebody answers: Ray itself would wait for long, and end the process.

    Raises:
        RecipeError: nobody does, or it is no address.
    """
    if address in (LOCAL, FOUND):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise RecipeError(f"--ray {address}: it is no HOST:PORT of a cluster, seen from one of its machines; {ADVICE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise RecipeError(f"--ray {address}: nobody answers ({reason(error)}); {ADVICE}") from None


def room(machines: Iterable[Mapping[str, float]], workers: int, free: float) -> dict[str, float]:
    """What each worker gets: a GPU where there are any, and its share of the processors.

    Args:
        machines: what each has, by Ray's names of it.
        workers: how many there will be.
        free: processors that nobody uses now, of all machines.

    Raises:
        RecipeError: there is no room for so many.
    """
    machines = list(machines)
    cpus, gpus = (int(sum(machine.get(kind, 0) for machine in machines)) for kind in ("CPU", "GPU"))

    def fit(share: int) -> int:
        several = [(int(machine.get("CPU", 0)) // share, int(machine.get("GPU", 0))) for machine in machines]
        return sum(min(pair) if gpus else pair[0] for pair in several)

    if fit(1) < workers:
        each_one = "a GPU and a processor" if gpus else "a processor"
        raise RecipeError(
            f"--workers {workers}: there is room for {fit(1)}, each with {each_one}: the cluster has {cpus} processors "
            f"and {gpus} GPUs on {len(machines)} machine{'s' * (len(machines) != 1)}; give fewer, or add machines"
        )
    most = max(share for share in range(1, cpus + 1) if fit(share) >= workers)
    share = max(1, min(most, int(free) // workers))
    return {"CPU": float(share), **({"GPU": 1.0} if gpus else {})}


def run(
    asked: Asked, sets: Mapping[str, Batch], workers: int, resources: Mapping[str, float], progress: Tell
) -> Learned:
    """Start the workers, and hear what they say, until one has learned or is mistaken.

    Raises:
        LissomError: what the workers raise, or they failed too often.
    """
    from ray.util.queue import Queue

    inbox = Queue(actor_options={"num_cpus": 0})
    place = asked.out.parent / f".{asked.out.name}.ray"
    learned: Learned | None = None
    try:
        ended = begin(asked, sets, workers, resources, inbox, place)
        for said in iter(inbox.get, None):
            if isinstance(said, LissomError):
                raise said
            if isinstance(said, Learned):
                learned = said
            else:
                progress(said)
        ended.result()
    except LissomError:
        raise
    except Exception as error:  # of Ray's own, which has many
        raise failed(error, asked.out) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if learned is None:  # its worker died between the last two lines of `work`
        raise ArtifactError(f"{asked.out} is complete, but who wrote it died before it could say so; go on with it")
    return learned


def begin(
    asked: Asked, sets: Mapping[str, Batch], workers: int, resources: Mapping[str, float], inbox: Any, place: Path
) -> Future[Any]:
    """Let Ray start them, in a thread of its own, for here it is listened to them; after all has ended comes None."""
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config={"asked": asked, "inbox": inbox},
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=dict(resources)
        ),
        run_config=train.RunConfig(
            name="run",
            storage_path=str(place),
            failure_config=train.FailureConfig(max_failures=FAILURES, controller_failure_limit=FAILURES),
        ),
        datasets={name: ray.data.from_numpy(blocks(batch)) for name, batch in sets.items()},
        dataset_config=train.DataConfig(
            datasets_to_split=[], execution_options=ray.data.ExecutionOptions(preserve_order=True)
        ),
    )
    ended: Future[Any] = Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:
            ended.set_exception(error)
        finally:
            with suppress(Exception):
                if ray.is_initialized():  # else it would start another one
                    inbox.put(None)

    Thread(target=fit, daemon=True).start()
    return ended


def work(given: Mapping[str, Any]) -> None:
    """What each worker does, in a process of its own: as one that torchrun has started.

    Raises:
        LissomError: it is told to whoever has started all, too, who ends it: to begin anew would not help.
    """
    from ray import train

    asked, inbox, me = given["asked"], given["inbox"], train.get_context()
    rank, count = me.get_world_rank(), me.get_world_size()
    if (asked.out / MANIFEST).is_file():  # it was free before: one who has died since has finished it
        return
    host = socket.gethostname()
    inbox.put(Progress(stage="read", text=f"worker {rank} of {count} is process {os.getpid()} on {host}"))
    try:
        check_worker(asked, f"worker {rank} on {host}")
        sets = {name: read(train.get_dataset_shard(name), like) for name, like in asked.like.items()}
        learned = recover_folder(
            asked.folder,
            sets["data"],
            asked.out,
            Training(**asked.training),
            original=asked.original,
            held=sets.get("held", asked.held),
            examples=sets.get("examples"),
            budgets=None if asked.budgets is None else {name: Budget(**own) for name, own in asked.budgets.items()},
            layout=asked.layout,
            progress=inbox.put if rank == 0 else quiet,
        )
    except LissomError as error:
        if rank > 0:  # the first one may be about to say the same, and has a journal to put away
            time.sleep(LATER_S)
        inbox.put(error)
        raise
    if rank == 0:
        inbox.put(learned)


def check_worker(asked: Asked, name: str) -> None:
    """See that a worker can do its part.

    Raises:
        ArtifactError: it does not see what it needs, or runs other code.
    """
    original = Path(asked.original or "")
    for path in (asked.folder, original, asked.out.parent):
        if path.is_absolute() and not path.exists():  # else it is a name on the hub
            raise ArtifactError(
                f"{name} does not see {path}; put it on storage that all machines of the cluster see by that name"
            )
    if of_code() != asked.code:
        raise ArtifactError(f"{name} has another lissom or torch; install the same versions on all machines")


def blocks(batch: Batch) -> list[UInt8[np.ndarray, "n b"]]:
    """Examples as rows of bytes, whatever they are made of, in blocks of so many."""
    parts = [part.detach().cpu().contiguous().flatten().view(torch.uint8) for part in tensors(batch)]
    rows = torch.cat([own.reshape(len(part), -1) for own, part in zip(parts, tensors(batch), strict=True)], 1)
    return [block.numpy() for block in rows.split(ROWS)]


def read(shard: Any, like: Batch) -> Batch:
    """The examples of a data set, in the order in which they were put there; `like` says what a row is made of."""
    found = [block["data"] for block in shard.iter_batches(batch_size=None, batch_format="numpy")]
    return examples_of(torch.from_numpy(np.concatenate(found)), like)


def examples_of(rows: UInt8[Tensor, "n b"], like: Batch) -> Batch:
    """The inverse of `blocks`."""
    place = 0

    def cut(part: Tensor) -> Tensor:
        nonlocal place
        width = part.element_size() * math.prod(part.shape[1:])
        own, place = rows[:, place : place + width].clone().flatten(), place + width
        return own.view(part.dtype).reshape(len(rows), *part.shape[1:])

    return each(like, cut)


def failed(error: Exception, out: Path) -> RecipeError:
    """What Ray says has gone wrong, and what to do."""
    several = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    told = "; ".join(f"worker {rank}: {reason(own)}" for rank, own in several.items())
    return RecipeError(f"--ray: {told}; whoever does the same again goes on at the last look, if {out.parent} has one")
