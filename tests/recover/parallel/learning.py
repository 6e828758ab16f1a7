"""A process of a few that learn together: MEETING N RANK KIND[,KNOB=VALUE] ...; prints how each went, as JSON."""

import hashlib
import json
import sys
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lissom.recover.parallel.gradients import compress_gradients
from lissom.recover.parallel.workers import leave

STEPS, LR = 60, 0.3


def main(meeting: str, n: str, rank: str, *kinds: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", world_size=int(n), rank=int(rank))
    told = {kind.split(",")[0]: learned(int(n), int(rank), *kind.split(",")) for kind in kinds}
    group = weakref.ref(dist.group.WORLD)
    leave()
    print(json.dumps({**told, "left": group() is None}))


def learned(n: int, rank: int, kind: str, *words: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 8))
    x, teacher = torch.randn(256, 32), torch.randn(32, 8)
    y = (x @ teacher).argmax(1)
    own = slice(rank, None, n)
    model = DistributedDataParallel(network, bucket_cap_mb=0.03)
    knobs = {name: int(value) for name, value in (word.split("=") for word in words)}
    meter = None if kind == "none" else compress_gradients(model, kind, **knobs)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[own]), y[own])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).hexdigest()
    told = {"losses": losses, "digest": digest, "weights": sum(p.numel() for p in network.parameters())}
    return told if meter is None else {**told, "sent": meter.sent, "plain": meter.plain}


if __name__ == "__main__":
    main(*sys.argv[1:])
