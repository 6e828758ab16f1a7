"""An engine at work for the other end of a link, in a thread or in a process of its own (process.py).

What comes in is asked as soon as it is there: {"begin": job, "prompts", "samplings", "owner", "priority"} for a
continuation of every prompt with every sampling, and {"forget": job} exactly once for each that was begun. What goes
out, after every step and whenever something has changed, is {"accepted": [job, ...], "refused": [[job, why], ...],
"news", "state"}. When the other end sends no more, the work is over.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from queue import Empty, SimpleQueue
from typing import Any

from lissom.engine.engine import Engine
from lissom.engine.link import Link, sampling_of
from lissom.engine.sequence import Choice
from lissom.engine.sequence import Sequence as EngineSequence
from lissom.errors import DataError

log = logging.getLogger("lissom.engine")


@dataclass(slots=True, kw_only=True)
class Ticket:
    """Whose a sequence is, and how many of its characters and tokens have been told."""

    job: int
    index: int
    shown: int = 0
    told: int = 0
    read: int = 0


class Host:
    """Runs an engine for whoever is at the other end of the link; `leave` is called when that has gone."""

    def __init__(self, engine: Engine, link: Link, *, leave: Callable[[], None] = lambda: None) -> None:
        self._engine, self._link, self._leave = engine, link, leave
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._jobs: dict[int, list[EngineSequence]] = {}
        self._gone: set[int] = set()  # forgotten before they began
        self._tickets: dict[EngineSequence, Ticket] = {}
        self._accepted: list[int] = []
        self._refused: list[tuple[int, str]] = []
        self._running = True

    def run(self) -> None:
        """Work until the other end has gone."""
        threading.Thread(target=self._listen, name="what the engine is asked", daemon=True).start()
        known = None
        try:
            while self._running:
                self._answer_calls()
                if self._accepted or self._refused or self._state() != known:  # which a long step would hold back
                    known = self._state()
                    self._tell([], known)
                if self._engine.busy:
                    news = [self._news(sequence) for sequence in self._engine.step()]
                    known = self._state()
                    self._tell(news, known)
        except ConnectionError:  # nobody is left to be told
            return
        except Exception:  # the boundary of the thread or the process: the other end sees that it is over
            log.exception("the engine failed")
        finally:
            self._link.close()

    def _listen(self) -> None:
        """Read what is asked, in a thread of its own: to make sequences takes time that the engine need not wait."""
        try:
            while (frame := self._link.receive()) is not None:
                said, _ = frame
                if "begin" in said:
                    self._calls.put(partial(self._begin, said["begin"], *self._prepared(said)))
                else:
                    self._calls.put(partial(self._forget, said["forget"]))
        finally:  # whatever it was, nobody would be heard any more
            self._leave()
            self._calls.put(self._halt)

    def _prepared(self, said: Mapping[str, Any]) -> tuple[list[EngineSequence], str | None]:
        """The sequences that are asked for, or why there can be none."""
        try:
            samplings = [sampling_of(one) for one in said["samplings"]]
            whose = {name: said[name] for name in ("owner", "priority")}
            return [self._engine.prepare(*one, **whose) for one in product(said["prompts"], samplings)], None
        except DataError as error:
            return [], str(error)

    def _answer_calls(self) -> None:
        """Wait for a call when there is nothing else to do; otherwise answer those that are there."""
        if not self._engine.busy:
            self._calls.get()()
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            call()

    def _begin(self, job: int, sequences: Sequence[EngineSequence], fault: str | None) -> None:
        if job in self._gone:
            self._gone.remove(job)
            return
        self._jobs[job] = list(sequences)
        if fault is not None:
            self._refused.append((job, fault))
            return
        self._accepted.append(job)
        for index, sequence in enumerate(sequences):
            self._tickets[sequence] = Ticket(job=job, index=index)
            self._engine.enqueue(sequence)

    def _forget(self, job: int) -> None:
        if job not in self._jobs:
            self._gone.add(job)
            return
        for sequence in self._jobs.pop(job):
            self._tickets.pop(sequence, None)
            self._engine.cancel(sequence)

    def _halt(self) -> None:
        self._running = False

    def _tell(self, news: Sequence[Mapping[str, Any]], state: Mapping[str, float]) -> None:
        self._link.send({"accepted": self._accepted, "refused": self._refused, "news": news, "state": state})
        self._accepted, self._refused = [], []

    def _news(self, sequence: EngineSequence) -> dict[str, Any]:
        ticket = self._tickets[sequence]
        news = {
            "job": ticket.job,
            "index": ticket.index,
            "text": sequence.text[ticket.shown :],
            "tokens": sequence.generated[ticket.told :],
            "choices": [listed(one) for one in sequence.choices[ticket.told :]],
            "read": [listed(one) for one in sequence.read[ticket.read :]],
            "finish": sequence.finish,
            "ended_by": sequence.detokenizer.ended_by,
            "reused": sequence.reused,
        }
        ticket.shown, ticket.told, ticket.read = len(sequence.text), len(sequence.generated), len(sequence.read)
        if sequence.finish is not None:
            del self._tickets[sequence]
        return news

    def _state(self) -> dict[str, float]:
        schedule, speculation = self._engine.schedule, self._engine.speculation
        return {
            "waiting": len(schedule.waiting),
            "running": len(schedule.running),
            "usage": self._engine.usage,
            "preemptions": schedule.preemptions,
            "reused_tokens": schedule.reused_tokens,
            "read_tokens": self._engine.read_tokens,
            "read_seconds": self._engine.read_seconds,
            "guessed": speculation.guessed,
            "accepted": speculation.accepted,
        }


def listed(choice: Choice) -> tuple[Any, ...]:
    """A choice as it is told."""
    return choice.token, choice.logprob, choice.top


def greeting(engine: Engine) -> dict[str, Any]:
    """What a server has to know of an engine before it asks anything."""
    return {"context": engine.context, "vocabulary": engine.vocabulary}
