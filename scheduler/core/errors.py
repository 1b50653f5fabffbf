"""Every error of the project, drawn by what the caller should do.

    SchedulerError
      ConfigError               stop before start, exit 2; carries all problems at once
      DeviceError               one GPU or one call; never fatal for its neighbours
        NotSupported | NoPermission | DeviceTimeout | GpuLost | DriverUnavailable | DeviceUnknown
      BusError
        Disconnected (retry) | BadMessage (count and drop)
      ClusterError
        ApiConflict | ApiNotFound | ApiForbidden | ApiGone | ApiRejected | ApiUnavailable (retry)
      TraceError                file and line
      CannotListen              stop; a person frees the address or sets another

"Does not fit" is not an error: it is a reason code (core.nouns.Reason).
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Self


class SchedulerError(Exception):
    """Base of all errors raised on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault in a configuration: where it is, what stands there, what was expected."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """Render as `line 7: pools[0].kind: expected …`."""
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path or '(file)'}: {self.message}"


class ConfigError(SchedulerError):
    """The configuration cannot be used. The process stops before it starts anything, with exit code 2."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class DeviceError(SchedulerError):
    """A GPU or one call on it failed; the reading becomes unknown and its neighbours go on."""


class NotSupported(DeviceError):
    """This GPU or driver does not have this call; ask again in an hour, not each tick."""


class NoPermission(DeviceError):
    """The process may not do this: run as root with CAP_SYS_ADMIN to set limits."""


class DeviceTimeout(DeviceError):
    """The driver did not answer in time; the GPU is hung until the call returns."""


class GpuLost(DeviceError):
    """The GPU fell off the bus or needs a reset; a person or a reboot must act."""


class DriverUnavailable(DeviceError):
    """No driver library, or it is not loaded; retry with a back-off."""


class DriverMismatch(DeviceError):
    """Library and kernel module differ in version: only a new process can load the new library."""


class DeviceUnknown(DeviceError):
    """The driver answered a code that has no meaning of its own here."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"driver error {code}: {text}")
        self.code = code


class BusError(SchedulerError):
    """Something between agent and daemon."""


class Disconnected(BusError):
    """The broker is away; retried with jittered delays."""


class BadMessage(BusError):
    """A message that cannot be used; `reason` is the label it is counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ClusterError(SchedulerError):
    """The API server said no, or nothing."""

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ApiConflict(ClusterError):
    """409: somebody else was faster; read again and decide anew."""


class ApiNotFound(ClusterError):
    """404: the object is gone."""


class ApiForbidden(ClusterError):
    """403: our role lacks a verb; the message names verb, resource and the rule to add."""


class ApiGone(ClusterError):
    """410: the resource version is too old; list again."""


class ApiRejected(ClusterError):
    """Another 4xx, or admission's no: the request itself is wrong; trying it again cannot help."""


class ApiUnavailable(ClusterError):
    """No answer, 429 or 5xx; retry after a delay (`retry_after_s` where the server named one)."""


class TraceError(SchedulerError):
    """A trace file cannot be read."""

    def __init__(self, file: str, line: int, detail: str) -> None:
        super().__init__(f"{file}:{line}: {detail}" if line else f"{file}: {detail}")
        self.file = file
        self.line = line


class CannotListen(SchedulerError, OSError):
    """A listener cannot be opened. The message names the setting, the address and what to do; a person must act."""

    @classmethod
    def at(cls, setting: str, address: str, error: OSError) -> Self:
        """Say why `address` could not be bound: asyncio's text repeats the address and advises nothing."""
        return cls(f"{setting} ({address}): {_why_not_bound(error)}")


_ADVICE = {
    errno.EADDRINUSE: "end what listens there (`ss -ltnp` shows it), or set another address",
    errno.EADDRNOTAVAIL: "set an address of this machine, or 0.0.0.0 for all of them",
    errno.EACCES: "set a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
}


def _why_not_bound(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"expected an address of this machine, got one that is not known: {error.strerror}"
    if error.errno is None or error.filename is not None:
        # A certificate that cannot be used: its text says all.
        return str(error)
    advice = _ADVICE.get(error.errno)
    return f"cannot be bound: {os.strerror(error.errno)}" + (f"; {advice}" if advice else "")
