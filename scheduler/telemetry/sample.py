"""The wire records of `samples` and `inventory`, and their checks. DESIGN: docs/architecture.md, MQTT.

A sample holds one list per field, in the order of the inventory's GPUs; null = unknown. Fields that are read
rarely are sent every 10 s and absent (UNSET) in between, which means unchanged.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.core.errors import BadMessage

SCHEMA_VERSION = 1
# A GPU's power above this, or a node with more GPUs, is a broken sensor or a broken message, not hardware.
# GB300 modules draw 2,900 W; sixteen-GPU hosts exist.
MOST_POWER_W = 10_000.0
MOST_GPUS = 64
MOST_PAYLOAD_BYTES = 262_144

# Bounds are part of the types: msgspec checks them in C while it decodes, at a tenth of a Python loop's cost.
_MOST_ENERGY_J = 1e15
_MOST_TEMP_C = 1000.0
# Counters leave the wire for int64 and float64 arrays; beyond 2^53 the latter would round.
_MOST_COUNT = 2**53
Watts = Annotated[float, Meta(ge=0.0, le=MOST_POWER_W)]
Count = Annotated[int, Meta(ge=0, le=_MOST_COUNT)]
WattList = list[Watts | None]
FracList = list[Annotated[float, Meta(ge=0.0, le=1.0)] | None]
JouleList = list[Annotated[float, Meta(ge=0.0, le=_MOST_ENERGY_J)] | None]
CelsiusList = list[Annotated[float, Meta(ge=-_MOST_TEMP_C, le=_MOST_TEMP_C)] | None]
MegahertzList = list[Annotated[float, Meta(ge=0.0, le=1e6)] | None]
CountList = list[Count | None]


class GpuInventory(msgspec.Struct, frozen=True, gc=False):
    """What stays true of one GPU until its driver is reloaded. None: the device does not tell."""

    uuid: str
    model: str
    index: Count = 0
    memory_total_bytes: Count | None = None
    limit_min_w: Watts | None = None
    limit_max_w: Watts | None = None
    limit_default_w: Watts | None = None
    power_domain: str = ""
    mig_enabled: bool | None = None
    pci_bus_id: str = ""


class Inventory(msgspec.Struct, frozen=True, gc=False):
    """Retained message: what a node has and what its agent may do."""

    v: int
    node: str
    gpus: list[GpuInventory]
    driver: str = ""
    agent_version: str = ""
    can_set_limit: bool = False
    topology: dict[str, str] = {}


# Kept for each node, so bounded; ours are 16 to 36 characters long.
ShortId = Annotated[str, Meta(max_length=64)]


class Sample(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One message per node and interval. `unix_s` is the node's clock, judged by nobody but a skew metric."""

    v: int
    node: str
    agent: ShortId
    boot: ShortId
    seq: Count
    unix_s: float
    span_s: Annotated[float, Meta(gt=0.0, le=1e6)]
    inventory: str
    state: list[str]
    power_w: WattList
    util_frac: FracList
    energy_j: JouleList
    power_max_w: WattList | UnsetType = UNSET
    util_max_frac: FracList | UnsetType = UNSET
    mem_util_frac: FracList | UnsetType = UNSET
    mem_used_bytes: CountList | UnsetType = UNSET
    temp_c: CelsiusList | UnsetType = UNSET
    sm_clock_mhz: MegahertzList | UnsetType = UNSET
    limit_w: WattList | UnsetType = UNSET
    limit_requested_w: WattList | UnsetType = UNSET
    energy_epoch: CountList | UnsetType = UNSET
    throttle: list[list[str] | None] | UnsetType = UNSET
    ecc_uncorrected: CountList | UnsetType = UNSET
    remapped_rows: CountList | UnsetType = UNSET
    xid: CountList | UnsetType = UNSET
    faults: list[dict[str, str]] | UnsetType = UNSET
    """Per GPU: field name -> reason for its being null, from a closed set."""


Message = TypeVar("Message", Sample, Inventory)

SAMPLE_DECODER = msgspec.json.Decoder(Sample)
INVENTORY_DECODER = msgspec.json.Decoder(Inventory)
_ENCODER = msgspec.json.Encoder()


def encode(record: Sample | Inventory) -> bytes:
    """Encode one record as JSON."""
    return _ENCODER.encode(record)


def inventory_hash(payload: bytes) -> str:
    """First 16 hex digits of the SHA-256 of an inventory as published: ties a sample to its inventory."""
    return hashlib.sha256(payload).hexdigest()[:16]


def _decode(decoder: msgspec.json.Decoder[Message], payload: bytes, topic_node: str) -> Message:
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise BadMessage("too_large", f"{len(payload)} bytes")
    try:
        message = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, payload, topic_node) from error
    if message.v != SCHEMA_VERSION:
        raise BadMessage("version", f"v={message.v}")
    if message.node != topic_node:
        raise BadMessage("node_mismatch", message.node[:80])
    return message


def decode_sample(payload: bytes, topic_node: str) -> Sample:
    """Decode and check one sample.

    Raises:
        BadMessage: with reason too_large | garbage | version | node_mismatch | shape | range. Count and drop.
    """
    sample = _decode(SAMPLE_DECODER, payload, topic_node)
    count = len(sample.state)
    lengths = {len(sample.power_w), len(sample.util_frac), len(sample.energy_j)}
    if count > MOST_GPUS or lengths != {count}:
        raise BadMessage("shape", f"{count} GPUs")
    for column in _CHECKED:
        values = getattr(sample, column)
        if values is not UNSET and len(values) != count:
            raise BadMessage("shape", column)
    return sample


_CHECKED = (
    "power_max_w",
    "util_max_frac",
    "mem_util_frac",
    "mem_used_bytes",
    "temp_c",
    "sm_clock_mhz",
    "limit_w",
    "limit_requested_w",
    "energy_epoch",
    "throttle",
    "ecc_uncorrected",
    "remapped_rows",
    "xid",
    "faults",
)


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """What a payload says of itself, read only when the rest could not be."""

    v: object = None
    node: object = None


_ENVELOPE_DECODER = msgspec.json.Decoder(_Envelope)


def _refusal(error: Exception, payload: bytes, topic_node: str) -> BadMessage:
    """Name why a payload did not decode: a wrong version or node says more than the field that broke it."""
    detail = str(error)[:200]
    try:
        envelope = _ENVELOPE_DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BadMessage("garbage", detail)
    if isinstance(envelope.v, int) and envelope.v != SCHEMA_VERSION:
        return BadMessage("version", f"v={envelope.v}")
    if isinstance(envelope.node, str) and envelope.node != topic_node:
        return BadMessage("node_mismatch", envelope.node[:80])
    # msgspec has one error class for a wrong type and a broken bound; its text tells them apart ("<= 1.0").
    bounds = ("` <", "` >", "of length")
    return BadMessage("range" if any(each in detail for each in bounds) else "garbage", detail)


def decode_inventory(payload: bytes, topic_node: str) -> Inventory:
    """Decode and check an inventory. Raises BadMessage like decode_sample, reasons prefixed the same."""
    inventory = _decode(INVENTORY_DECODER, payload, topic_node)
    if len(inventory.gpus) > MOST_GPUS:
        raise BadMessage("shape", f"{len(inventory.gpus)} GPUs")
    return inventory
