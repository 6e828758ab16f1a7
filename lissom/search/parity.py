"""Parity: what was written is opened in a process of its own and says what was certified, before it counts as done.

Of a language model the engine is asked, which computes attention and norms by other sums than those that certified it:
the likeliest next token of each prompt must be the same, but for near ties, and its log probability alike, on the
average of the prompts: where kernels round inputs to 8 bits the least difference may grow, and now and then a lot. A
module of a class of its own runs there from its graph, whose kernels may round inputs elsewhere: outputs must be
nearly equal.

Shapes: n prompts or examples, t tokens, v entries of a vocabulary.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.data import device_of, each
from lissom.compress.layers import said
from lissom.errors import ArtifactError
from lissom.evaluate.examples import evaluating

EXAMPLES = 16
ALIKE = 0.1  # nats, on the average, that log probabilities may differ by, and that a near tie is apart
NEARLY = 0.03  # of outputs that an example's may be off, as Euclidean norms


def check_parity(folder: Path, model: nn.Module, examples: Batch, language: bool) -> dict[str, float]:
    """Open a folder in a process of its own and compare it with the model that was certified.

    Returns how many examples were compared, and the mean and largest difference: in nats, or relative to the output.

    Raises:
        ArtifactError: the folder says something else, or cannot be opened.
    """
    few = each(examples, lambda part: part[:EXAMPLES].contiguous())
    with tempfile.TemporaryDirectory(prefix="lissom-") as scratch:
        asked, told = Path(scratch) / "asked.safetensors", Path(scratch) / "told.safetensors"
        save_file(named(few), asked)
        command = [sys.executable, "-m", "lissom.search.parity", str(folder), str(asked), str(told)]
        ran = subprocess.run([*command, json.dumps(language)], capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = ran.stderr.strip().rpartition("\n")[2]
            raise ArtifactError(f"{folder} cannot be opened in a process of its own: {reason}")
        found = load_file(told)
    if language:
        assert isinstance(few, Tensor)
        output = last_logits(model, few)
        apart = differences(output, found)
    else:
        with evaluating(model):
            output = said(model, call(model, each(few, lambda part: part.to(device_of(model))))).float().cpu()
        apart = relative(output, found["output"])
    mean, largest = float(apart.mean()), float(apart.max())
    if not (mean <= ALIKE if language else largest <= NEARLY):
        raise ArtifactError(
            f"{folder} says something else than what was certified, by {mean:.3g}, at most {largest:.3g}"
        )
    return {"examples": len(output), "mean_difference": mean, "largest_difference": largest}


def last_logits(model: nn.Module, prompts: Int[Tensor, "n t"]) -> Float[Tensor, "n v"]:
    """What a language model says after each prompt; one at a time, for those of all tokens may not fit."""
    with evaluating(model), torch.inference_mode():
        each = (
            said(model, call(model, prompt.to(device_of(model))))[:, -1].float().cpu().clone()
            for prompt in prompts.split(1)  # a copy: else those of all tokens stay with it
        )
        return torch.cat([*each])


def differences(logits: Float[Tensor, "n v"], found: dict[str, Tensor]) -> Float[Tensor, " n"]:
    """How far the engine's likeliest token is from the certified model's, in nats, and its log probability."""
    log_p = logits.log_softmax(-1)
    of_token = log_p.gather(1, found["token"].unsqueeze(1)).squeeze(1)
    return torch.maximum(log_p.amax(1) - of_token, (of_token - found["logprob"]).abs())


def relative(output: Tensor, other: Tensor) -> Tensor:
    """‖f - g‖ of each example, beside ‖f‖ of all as a root mean square: one that says nearly nothing is no measure."""
    before, after = (each.reshape(len(each), -1) for each in (output, other))
    power = before.square().sum(1).mean().clamp(min=torch.finfo(torch.float32).tiny)
    return ((before - after).square().sum(1) / power).sqrt()


def named(batch: Batch) -> dict[str, Tensor]:
    """A batch as a file holds it."""
    if isinstance(batch, Tensor):
        return {"0": batch}
    return {str(n): part for n, part in enumerate(batch)} if isinstance(batch, tuple) else dict(batch)


def batch_of(tensors: dict[str, Tensor]) -> Batch:
    """The inverse of `named`."""
    if not all(name.isdecimal() for name in tensors):
        return tensors
    parts = tuple(tensors[str(number)] for number in range(len(tensors)))
    return parts[0] if len(parts) == 1 else parts


def answer(folder: str, asked: str, told: str, language: str) -> None:
    """What a folder says to the examples of a file, written to another."""
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower

    batch, as_engine = batch_of(load_file(asked)), json.loads(language)
    opened = open_folder(folder, bare=as_engine)
    model: Any = lower(opened.model)
    if not as_engine:
        with torch.inference_mode():
            save_file({"output": said(model, call(model, batch)).float().cpu().contiguous()}, told)
        return
    from lissom.engine.bench import engine
    from lissom.engine.sequence import Sampling

    assert isinstance(batch, Tensor)
    running = engine(model, opened.tokenizer, len(batch), batch.shape[1], 1, cache=opened.cache)
    sampling = Sampling(temperature=0, max_tokens=1, ignore_eos=True, logprobs=1)
    sequences = [running.add(tokens, sampling) for tokens in batch.tolist()]
    running.step()
    save_file(
        {
            "token": torch.tensor([one.choices[0].token for one in sequences]),
            "logprob": torch.tensor([one.choices[0].logprob for one in sequences]),
        },
        told,
    )


if __name__ == "__main__":
    answer(*sys.argv[1:])
