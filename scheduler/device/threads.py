"""A daemon thread for calls that may never return: the process is kept, the thread is given up.

Drivers hang, sometimes unkillably. An executor's threads are joined when the process ends, so one hung call would
hold it; a daemon thread does not. Nothing here knows which driver it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

# The device number of a call that concerns the whole library.
LIBRARY = -1
# How often within a deadline the open call is looked at. Counting looks, not seconds, keeps a process that was
# itself frozen (SIGSTOP, a suspended machine) from taking its own pause for a hang.
LOOKS = 4


class HungError(Exception):
    """One call was open for a whole deadline; says on which device. Stays within this room."""

    def __init__(self, device: int, call: str) -> None:
        super().__init__(f"{call} on device {device} does not return")
        self.device = device
        self.call = call


class AbandonedError(Exception):
    """Raised in a thread that was given up, once its call came back; ends the job, so that its answer is dropped."""


class CallThread:
    """Runs blocking jobs one after another in a daemon thread of its own, and is watched from the event loop.

    Args:
        name: The thread's name, with its generation: a replacement gets the next one.
        on_return: Called on the loop with the device's number when a thread that was given up comes back.
        on_exit: Called in the thread as its last act.
    """

    def __init__(self, name: str, on_return: Callable[[int], None], on_exit: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_return = on_return
        self._on_exit = on_exit
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._abandoned = False
        # What is open now. Written by the thread before each call, read by the loop.
        self._device: int | None = None
        self._call = ""
        self._begun = 0
        # Whose call it was given up for; the open one may have come back in the very same moment.
        self._given_up_for = LIBRARY
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, device: int, name: str, function: Callable[..., T], *args: object) -> T:
        """Make one driver call, from within a job. Raises AbandonedError once this thread was given up."""
        if self._abandoned:
            raise AbandonedError
        self._call, self._device = name, device
        self._begun += 1
        try:
            return function(*args)
        finally:
            if self._abandoned:
                # Whatever came back, an answer or an error, is too late.
                raise AbandonedError
            self._device = None

    async def run(self, job: Callable[[], T], deadline_s: float) -> T:
        """Run a job and return its result; a slow one may take its time as long as each call is within the deadline.

        Raises HungError when one call was open for a whole deadline. The thread is of no use afterwards.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, future))
        seen, looks = self._begun, 0
        try:
            while not future.done():
                await asyncio.wait({future}, timeout=deadline_s / LOOKS)
                device = self._device
                if self._begun != seen or device is None:
                    seen, looks = self._begun, 0
                    continue
                looks += 1
                if looks >= LOOKS and not future.done():
                    self._give_up(device)
                    raise HungError(device, self._call)
            return future.result()
        finally:
            # Given up or cancelled: nobody will look at what still comes.
            future.cancel()

    def _give_up(self, device: int) -> None:
        self._given_up_for = device
        self._abandoned = True
        # Its call may have come back a moment ago, so that it waits for work already.
        self._jobs.put(None)

    def stop(self) -> None:
        """Let the thread end once it is idle; waits for nothing."""
        self._jobs.put(None)

    def _work(self) -> None:
        try:
            while not self._abandoned and (job := self._jobs.get()) is not None:
                self._answer(*job)
        finally:
            self._on_exit()
            if self._abandoned:
                self._post(self._on_return, self._given_up_for)

    def _answer(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        try:
            result = work()
        except AbandonedError:
            return
        except BaseException as error:  # noqa: BLE001 (carried to whoever awaits the job, whatever it is)
            self._post(_settle, future, None, error)
        else:
            self._post(_settle, future, result, None)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        # The loop may be closed already when a hung call comes back: then nobody is left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
