"""The models of a server by name: opened together at first, and loaded, exchanged and let go of while it runs.

A model that takes the place of another is opened and asked something before it does. Who was being answered by the old
one is answered to the end; only then is that let go of.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from fastapi import HTTPException

from lissom.artifact import open_tokenizer
from lissom.errors import DataError, LissomError
from lissom.server.failures import unknown_model
from lissom.server.hosts import Host, InProcess, InThread
from lissom.server.language import Language
from lissom.server.line import Line
from lissom.server.metrics import Metrics
from lissom.server.service import FolderService, LanguageService, Limits, Service

if TYPE_CHECKING:
    from lissom.server.modules import Inference

MOMENT = 0.05  # seconds between looks whether an old model has nothing left to do

Model = Union[Language, "Inference"]


class Models:
    """All models of a server.

    Raises:
        DataError: no service, or two of the same name.
        LissomError: a model that cannot be served.
    """

    def __init__(self, services: Sequence[Service | Host], limits: Limits, metrics: Metrics) -> None:
        names = [one.service.name if isinstance(one, Host) else one.name for one in services]
        if not names or len(set(names)) < len(names):
            raise DataError(f"serve: {names or 'nothing'} given; give one or more services of different names")
        self.languages: dict[str, Language] = {}
        self.modules: dict[str, Inference] = {}
        self._limits, self._metrics = limits, metrics
        self._ending = False
        self._leaving: dict[asyncio.Task[None], Model] = {}
        self._one_by_one = asyncio.Lock()
        hosts = [one if isinstance(one, Host) else host_of(one) for one in services]
        with ExitStack() as unless_it_works:
            for host in hosts:
                unless_it_works.callback(host.close)
            for host in hosts:
                self._place(self._opened(host))
            unless_it_works.pop_all()

    @property
    def every(self) -> dict[str, Model]:
        """All of them."""
        return {**self.languages, **self.modules}

    async def start(self) -> None:
        """Begin to work."""
        for one in self.every.values():
            await start(one)

    def drain(self) -> None:
        """Take no new requests, and let those that run finish within the limit."""
        for one in (*self.every.values(), *self._leaving.values()):
            one.line.drain()

    async def stop(self) -> None:
        """Stop now."""
        self._ending = True
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for one in self.every.values():
            await stop(one)

    async def load(self, service: Service) -> None:
        """Open a model, ask it something, and let it take the place of the one of its name, if there is one.

        Raises:
            LissomError: it cannot be served, or does not answer; all stays as it was.
        """
        async with self._one_by_one:  # two at once would need the memory of both
            host = await asyncio.to_thread(host_of, service)
            try:
                new = await asyncio.to_thread(self._opened, host)
            except BaseException:
                host.close()
                raise
            await start(new)
            try:
                await new.try_out()
            except BaseException as error:
                await stop(new)
                if not isinstance(error, HTTPException | LissomError):
                    raise
                why = error.detail if isinstance(error, HTTPException) else error
                raise DataError(f"serve: {service.name} does not answer: {why}") from error
            old = self.every.get(service.name)
            self._place(new)
        if old is not None:
            self._leave(old)

    def unload(self, name: str) -> None:
        """Let go of a model; who is being answered by it is answered to the end.

        Raises:
            HTTPException: there is none of that name.
        """
        if name not in self.every:
            raise unknown_model(name, sorted(self.every))
        old = self.every[name]
        self.languages.pop(name, None)
        self.modules.pop(name, None)
        self._leave(old)

    def _place(self, model: Model) -> None:
        self.languages.pop(model.name, None)
        self.modules.pop(model.name, None)
        if isinstance(model, Language):
            self.languages[model.name] = model
        else:
            self.modules[model.name] = model

    def _leave(self, old: Model) -> None:
        task = asyncio.create_task(self._left(old))
        self._leaving[task] = old
        task.add_done_callback(self._leaving.pop)

    async def _left(self, old: Model) -> None:
        while old.asked and not self._ending:
            await asyncio.sleep(MOMENT)
        await stop(old)

    def _roll_back(self, old: Model) -> bool:
        """Let the other model, which has seen the traffic, take the place of this one; False if that has been taken."""
        if self.every.get(old.name) is not old or old.witness is None:
            return False
        old.witness.other.witness = old.witness  # which still tells what it has seen
        self._place(old.witness.other)
        self._leave(old)
        return True

    def _opened(self, host: Host) -> Model:
        """A model, and the one that will see its traffic, which are read side by side."""
        shadow = host.service.shadow
        if shadow is None:
            return self._alone(host)
        beside = host_of(replace(shadow.service, name=host.service.name))
        with ExitStack() as unless_it_works:
            unless_it_works.callback(beside.close)
            model, other = self._alone(host), self._alone(beside)
            if fault := unlike(model, other):
                raise DataError(f"shadow: it {fault}, and cannot be compared with {model.name}; give its original")
            unless_it_works.pop_all()
        from lissom.server.witness import Witness

        model.witness = Witness(other, shadow, partial(self._roll_back, model))
        return model

    def _alone(self, host: Host) -> Model:
        service = host.service
        with ThreadPoolExecutor(1) as thread:  # it reads the tokenizer while a process reads the rest
            tokenizer = thread.submit(tokenizer_of, service)
            line = Line(host, self._limits)
        if "signature" not in line.greeting:
            return Language(
                service.name, tokenizer.result(), line, self._limits, self._metrics, max_batch=service.max_batch
            )
        from lissom.server.modules import Inference  # which needs PyTorch, and language models do not

        delay = 0.0 if isinstance(service, LanguageService) else service.max_delay_ms
        return Inference(
            service.name,
            tokenizer.result(),
            line,
            self._limits,
            self._metrics,
            max_batch=service.max_batch,
            max_delay_ms=delay,
        )


async def start(model: Model) -> None:
    """Let a model begin to work, and the one that sees its traffic."""
    await model.start()
    if model.witness is not None:
        await model.witness.start()


async def stop(model: Model) -> None:
    """Stop a model now, and the one that sees its traffic."""
    if model.witness is not None:
        await model.witness.stop()
    await model.stop()


def unlike(model: Model, other: Model) -> str | None:
    """What keeps two models from being compared; None where they can be."""
    if isinstance(model, Language) != isinstance(other, Language):
        return "is no language model" if isinstance(model, Language) else "is a language model"
    if isinstance(model, Language) and isinstance(other, Language):
        same = model.worker.vocabulary == other.worker.vocabulary
        return None if same else f"has {other.worker.vocabulary} tokens and not {model.worker.vocabulary}"
    same = model.line.greeting["signature"] == other.line.greeting["signature"]
    return None if same else f"takes and gives other tensors: {other.line.greeting['signature']}"


def host_of(service: Service) -> Host:
    """Where the model of a service runs."""
    return InProcess(service) if isinstance(service, FolderService) else InThread(service)


def tokenizer_of(service: Service) -> Any:
    """The tokenizer of a service; None if its model takes no text."""
    if isinstance(service, FolderService):
        return open_tokenizer(service.folder)
    return service.tokenizer if isinstance(service, LanguageService) else getattr(service.module, "tokenizer", None)
