"""What `wattbalance pause` and `resume` do: write and delete the ConfigMap, with the rights of whoever asks.

Composition: the command line's side of pause.py, over the cluster's transport. The daemon never writes it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from scheduler.cluster.access import Credentials
from scheduler.cluster.api_request import Target
from scheduler.cluster.credentials import find
from scheduler.cluster.objects import ConfigMap
from scheduler.cluster.transport import Transport
from scheduler.core.clock import Clock, SystemClock
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiNotFound, ApiUnavailable, ClusterError
from scheduler.pause import BY, BY_IS, CLAIMED, KNOWN, MOST_BY_CHARS, NAME, REASON, Paused, plain

# Of all requests of one command together; one to a server that is away takes 5 s to say so.
MOST_S = 30.0


class _UserInfo(msgspec.Struct, frozen=True):
    username: str = ""


class _ReviewStatus(msgspec.Struct, frozen=True, rename="camel"):
    user_info: _UserInfo = _UserInfo()


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class _ConfigMaps(msgspec.Struct, frozen=True):
    items: list[ConfigMap] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What stands in the cluster, or stood there until now; None where there was no pause."""

    paused: Paused | None
    done: bool
    """Whether this order changed anything."""
    lonely: str = ""
    """Why nobody may heed it, for a person; empty if somebody surely does."""
    elsewhere: tuple[str, ...] | None = ()
    """Where nothing was to be resumed: other namespaces in which a pause stands; None if we may not look there."""


class Orders:
    """Pause, and resume, over an open transport."""

    def __init__(self, transport: Transport, credentials: Credentials, namespace: str) -> None:
        self._transport = transport
        self._credentials = credentials
        self._namespace = namespace

    async def pause(self, reason: str) -> Outcome:
        """Pause all replicas of the namespace. One that stands already stays as it is.

        Raises:
            ClusterError: it could not be written; ApiUnavailable, nobody knows whether it was.
        """
        by, known = await self._who()
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": self._namespace},
            "data": {BY: plain(by, MOST_BY_CHARS), BY_IS: KNOWN if known else CLAIMED, REASON: reason},
        }
        try:
            made = await self._call("create", "", body)
        except ApiNotFound as error:
            raise ApiNotFound(
                f"namespace {self._namespace} does not exist: give the daemon's as --namespace"
            ) from error
        except ApiConflict:
            # Deleted again this instant: then what stood there is not there to be told.
            standing = await self.standing()
            if standing is None:
                raise ApiConflict("somebody resumed at the same moment: look again, and pause anew") from None
            return Outcome(paused=standing, done=False)
        return Outcome(paused=_read(made), done=True, lonely=await self._lonely())

    async def resume(self) -> Outcome:
        """End the pause. What was made anew meanwhile is another pause, and stays.

        Raises:
            ClusterError: it could not be deleted; ApiUnavailable, nobody knows whether it was.
        """
        standing = await self.standing()
        if standing is None:
            return Outcome(
                paused=None, done=False, lonely=await self._lonely(), elsewhere=await self._elsewhere()
            )
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": standing.uid}}
        try:
            await self._call("delete", NAME, options)
        except ApiNotFound:
            return Outcome(paused=None, done=False)
        except ApiConflict as error:
            raise ApiConflict("somebody resumed and paused anew at the same moment: look again") from error
        return Outcome(paused=standing, done=True)

    async def standing(self) -> Paused | None:
        """The pause that stands now."""
        try:
            return _read(await self._call("get", NAME))
        except ApiNotFound:
            return None

    async def _call(self, verb: str, name: str, body: object = None) -> bytes:
        target = Target(resource="configmaps", namespace=self._namespace, name=name)
        try:
            return await self._transport.call(verb, target, body=body)
        except ApiForbidden as error:
            if error.status != 403:
                raise
            # The rule is to be added to a role of theirs, not of ours.
            said = str(error).partition("(the server said: ")[2].removesuffix(")")
            raise ApiForbidden(
                f"you may not {verb} configmaps in namespace {self._namespace}: deploy/pause-role.yaml allows it to "
                f"whom you bind its Role (the server said: {said})",
                status=error.status,
            ) from error

    async def _who(self) -> tuple[str, bool]:
        """Our name, and whether the API server says so."""
        target = Target(group="authentication.k8s.io", resource="selfsubjectreviews")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = await self._transport.call("create", target, body=body)
            name = msgspec.json.decode(answer, type=_Review).status.user_info.username
        except (ClusterError, msgspec.DecodeError):
            # Before 1.28, or not allowed. Nobody is kept from pausing by that; what is wrong with more than this
            # question will be told by what follows.
            name = ""
        if name:
            return name, True
        return (await self._credentials.access()).user or os.environ.get("USER", ""), False

    async def _elsewhere(self) -> tuple[str, ...] | None:
        """In which namespaces a pause stands; None if nobody tells us, as where we have rights in one alone."""
        try:
            answer = await self._transport.call(
                "list",
                Target(resource="configmaps"),
                params={"fieldSelector": f"metadata.name={NAME}"},
            )
            found = msgspec.json.decode(answer, type=_ConfigMaps).items
        except (ClusterError, msgspec.DecodeError):
            return None
        return tuple(sorted(each.metadata.namespace for each in found if Paused.of(each) is not None))

    async def _lonely(self) -> str:
        """Whether there is no sign of a daemon in this namespace: a pause there would stop nobody."""
        target = Target(
            group="coordination.k8s.io", resource="leases", namespace=self._namespace, name="wattbalance"
        )
        try:
            await self._transport.call("get", target)
        except ApiNotFound:
            return (
                f"no replica has led in namespace {self._namespace} (there is no Lease wattbalance): if yours run in "
                "another one, give it as --namespace; one that runs outside any pod is in its lease.namespace, else in "
                "wattbalance"
            )
        except ClusterError:
            # Not allowed to look, or too late to: nothing is known against it.
            return ""
        return ""


async def order(
    *,
    namespace: str,
    kubeconfig: Path | None,
    context: str | None,
    reason: str | None,
    clock: Clock | None = None,
) -> Outcome:
    """Pause with a reason, resume with None.

    Raises:
        ConfigError: nobody could be logged in.
        ClusterError: the API server refused, or did not answer.
    """
    clock = clock or SystemClock()
    credentials = find(clock=clock, kubeconfig=kubeconfig, context=context)
    transport = Transport(credentials, clock)
    try:
        async with asyncio.timeout(MOST_S):
            await transport.open()
            orders = Orders(transport, credentials, namespace)
            return await (orders.resume() if reason is None else orders.pause(reason))
    except TimeoutError as error:
        raise ApiUnavailable(
            f"no answer within {MOST_S:g} s; whether it was carried out is unknown"
        ) from error
    finally:
        await transport.close()


def _read(body: bytes) -> Paused | None:
    try:
        return Paused.of(msgspec.json.decode(body, type=ConfigMap))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiUnavailable(f"the answer is not a ConfigMap: {error}") from error
