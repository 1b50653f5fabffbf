"""The configuration of a running daemon: looked at once a second, checked, and exchanged within one turn of the loop.

A file that cannot be used, or is no longer there, changes nothing: the one before it stays in force. What only a
restart can bring about stays as it was too, and is named until the file says the old value again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scheduler import config, parts
from scheduler.bindings import Bindings
from scheduler.cluster.intent import IntentSettings
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.port import EventNote
from scheduler.cluster.store import Store, StoreSettings
from scheduler.config_changes import differing, merge
from scheduler.config_settings import Settings
from scheduler.config_yaml import MOST_CHARACTERS
from scheduler.core.aio import SideThread
from scheduler.core.clock import Clock
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.files import read_regular
from scheduler.core.log import kv
from scheduler.core.nouns import Workload
from scheduler.decision.decider import Decider
from scheduler.knowledge import Knowledge
from scheduler.leadership import Leadership
from scheduler.policy.profiles import NamedFilter, Profile

log = logging.getLogger(__name__)

LOOK_S = 1.0
# A mount can hang; and the longest file that is allowed takes some seconds to check.
READ_S = 10.0
CHECK_S = 60.0
# Of a digest, as many bits as a float holds.
HASH_DIGITS = 12
# In an event; the log has all.
PROBLEMS_TOLD = 3
CONFIG_REFUSED = "ConfigRefused"
CONFIG_RELOADED = "ConfigReloaded"
RESTART_NEEDED = "ConfigNeedsRestart"


class Running(Protocol):
    """What of a daemon is exchanged."""

    settings: Settings
    clock: Clock
    store: Store
    decider: Decider
    bindings: Bindings
    knowledge: Knowledge
    leadership: Leadership
    cluster: KubernetesCluster


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds now, or why it cannot be read; `digest` tells one from another."""

    digest: str
    raw: bytes
    problems: tuple[Problem, ...] = ()


class Reload:
    """Looks at the file, and exchanges what a running daemon can take.

    Args:
        file: the configuration, or a link to it: a mounted ConfigMap is exchanged by its link.
        running: whose settings these are.
        write: takes a note for people and does not wait.
    """

    def __init__(self, file: Path | None, running: Running, write: Callable[[EventNote], None]) -> None:
        self.results = {"ok": 0, "refused": 0}
        self.restart_needed: tuple[str, ...] = ()
        """Keys of the file that differ from what is in force until a restart."""
        self.problems: tuple[Problem, ...] = ()
        """Why the file is not in force; none if it is."""
        self.taken_unix_s = running.clock.unix_s()
        """Instant at which the file was taken last; the start's, if never since."""
        self.taken_digest = ""
        self._file = file
        self._running = running
        self._write = write
        self._files = SideThread("config.read")
        self._checks = SideThread("config.check")
        self._judged = ""
        self._begun = False

    @property
    def taken_hash(self) -> float:
        """A number that replicas with the same file have in common; 0 before the first look."""
        return float(int(self.taken_digest[:HASH_DIGITS] or "0", 16))

    async def run(self) -> None:
        """Look for ever."""
        seen = ""
        while self._file is not None:
            found = await self._look(self._file)
            # Twice the same: what is written in place, or taken away and put back, is not read half way.
            if found.digest == seen:
                await self.judge(found)
            seen = found.digest
            await asyncio.sleep(LOOK_S)
        await asyncio.Event().wait()

    async def _look(self, file: Path) -> Content:
        try:
            return await self._files.run(lambda: read(file), READ_S)
        except TimeoutError:
            return _unreadable(file, f"no answer within {READ_S:g} s")

    async def judge(self, found: Content) -> None:
        """Take what the file holds, or keep what is in force; nothing if it was judged before."""
        if found.digest == self._judged:
            return
        first, self._begun = not self._begun, True
        self._judged = found.digest
        try:
            if found.problems:
                raise ConfigError(list(found.problems))
            settings = await self._checks.run(lambda: config.load_raw(found.raw, str(self._file)), CHECK_S)
            if first and settings == self._running.settings:
                # What we were started with.
                self.taken_digest = found.digest
                return
            self._take(settings, found.digest)
        except ConfigError as error:
            self._refuse(error.problems)
        except TimeoutError:
            # Tried again, since it says nothing of the file: the check of the one before may be what is not over.
            self._judged = ""
            late = Problem(path=str(self._file), message=f"expected to be checked in {CHECK_S:g} s")
            if self.problems != (late,):
                self._refuse([late])
        except Exception as error:
            # A fault of ours in reading it must not end a daemon that has a good configuration.
            log.exception("the configuration cannot be checked")
            self._refuse([Problem(path=str(self._file), message=f"cannot be checked: {error!r}")])

    def _take(self, settings: Settings, digest: str) -> None:
        before = self._running.settings
        merged = merge(before, settings)
        exchange(self._running, merged)
        changed, needed = differing(before, merged), tuple(differing(merged, settings))
        self.problems = ()
        self.results["ok"] += 1
        self.taken_unix_s, self.taken_digest = self._running.clock.unix_s(), digest
        log.info("configuration reloaded", extra=kv(file=str(self._file), changed=changed))
        self._tell_of_lost_pools(before, merged)
        for problem in config.warnings(settings):
            log.warning("configuration: %s", problem, extra=kv(file=str(self._file)))
        if changed:
            self._tell(CONFIG_RELOADED, f"Configuration reloaded: {', '.join(changed)} changed.", digest)
        if needed and needed != self.restart_needed:
            log.warning("configuration: these keys change with a restart only", extra=kv(keys=list(needed)))
            text = f"These keys of the configuration change with a restart only: {', '.join(needed)}."
            self._tell(RESTART_NEEDED, text, ",".join(needed), warning=True)
        self.restart_needed = needed

    def _tell_of_lost_pools(self, before: Settings, now: Settings) -> None:
        """Who still names a pool that is gone, or has another name: for them the default holds from now on."""
        lost = {pool.name for pool in before.pools} - {pool.name for pool in now.pools}
        if not lost:
            return
        store = self._running.store
        pods, namespaces = store.intents.naming(lost, (facts.meta for facts in store.waiting.values()))
        if pods or namespaces:
            told = kv(pools=sorted(lost), waiting_pods=pods, namespaces=namespaces)
            log.warning("configuration: annotations name pools that are gone", extra=told)

    def _refuse(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        self.results["refused"] += 1
        told = [str(problem) for problem in problems]
        log.error(
            "configuration refused, the one before it stays in force",
            extra=kv(file=str(self._file), problems=told),
        )
        more = f"; and {len(told) - PROBLEMS_TOLD} more, see the log" if len(told) > PROBLEMS_TOLD else ""
        text = f"Configuration refused, the one before it stays in force: {'; '.join(told[:PROBLEMS_TOLD])}{more}"
        self._tell(CONFIG_REFUSED, text, self._judged, warning=True)

    def _tell(self, reason: str, text: str, about: str, *, warning: bool = False) -> None:
        """Write an event about our own pod; outside of one about the Lease that we hold."""
        leadership = self._running.leadership
        if not leadership.may_act():
            return
        kind, name, uid = "Pod", leadership.pod_name, leadership.pod_uid
        if not uid:
            if leadership.elector is None:
                return
            kind, name = "Lease", self._running.settings.lease.name
        self._write(
            EventNote(
                kind=kind,
                namespace=leadership.namespace,
                name=name,
                uid=uid,
                reason=reason,
                note=text,
                about=about,
                warning=warning,
                action="Reloading",
            )
        )


def watchable(path: str) -> Path | None:
    """The file to look at; None where the configuration came from a pipe, which can be read once only."""
    file = Path(path)
    try:
        return file if stat.S_ISREG(file.stat().st_mode) else None
    except OSError:
        # Gone since it was read: that is told once we run.
        return file


def read(file: Path) -> Content:
    """Read a file for its digest."""
    try:
        raw = read_regular(file, MOST_CHARACTERS)
    except OSError as error:
        if error.strerror is not None:
            return _unreadable(file, error.strerror)
        # What is no file says so itself, behind its path.
        return _unusable(file, str(error).removeprefix(f"{file}: "))
    return Content(hashlib.sha256(raw).hexdigest(), raw)


def _unreadable(file: Path, reason: str) -> Content:
    return _unusable(file, f"expected a readable file, got: {reason}")


def _unusable(file: Path, message: str) -> Content:
    problem = Problem(path=str(file), message=message)
    return Content(hashlib.sha256(f"unusable: {message}".encode()).hexdigest(), b"", (problem,))


def exchange(running: Running, settings: Settings) -> None:
    """Let a daemon go on with other settings. Whatever it raises, it goes on with those before."""
    before, parts_before = running.settings, _make(running.settings)
    made = _make(settings)
    try:
        _use(running, settings, made)
    except Exception:
        # All in one turn: no decision sees half of either.
        _use(running, before, parts_before)
        raise
    if settings.log.level is not before.log.level:
        logging.getLogger().setLevel(settings.log.level.value.upper())


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is made of settings, and may refuse them, before anything is exchanged."""

    profiles: dict[Workload, Profile]
    filters: tuple[NamedFilter, ...]
    store: StoreSettings
    intents: IntentSettings


def _make(settings: Settings) -> _Parts:
    return _Parts(
        parts.make_profiles(settings),
        parts.make_filters(settings),
        parts.store_settings(settings),
        parts.intent_settings(settings),
    )


def _use(running: Running, settings: Settings, made: _Parts) -> None:
    running.settings = settings
    running.store.use(made.store, made.intents, running.clock.mono_s())
    # After the store: its texts are made of the store's pools.
    running.decider.use(made.profiles, made.filters)
    running.decider.drop_observed_promises(running.clock.mono_s())
    running.bindings.use(settings.scheduler_names, settings.managed_resources)
    running.knowledge.use(settings)
    running.cluster.probe_every_s = parts.probe_every_s(settings)
