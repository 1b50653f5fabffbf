"""The wire records of `samples`, `inventory` and `status`, and their checks. DESIGN: docs/architecture.md, MQTT.

A sample holds one list per field, in the order of the inventory's GPUs; null = unknown. Fields that are read rarely
are sent every 10 s and absent (UNSET) in between, which means unchanged.
"""

from __future__ import annotations

import hashlib
import math

import msgspec
from msgspec import UNSET, UnsetType

from scheduler.core.errors import BadMessage

SCHEMA_VERSION = 1
# A GPU's power above this, or a node with more GPUs, is a broken sensor or a broken message, not hardware.
# GB300 modules draw 2,900 W; sixteen-GPU hosts exist.
MOST_POWER_W = 10_000.0
MOST_GPUS = 64
MOST_PAYLOAD_BYTES = 262_144

FloatList = list[float | None]
IntList = list[int | None]


class GpuInventory(msgspec.Struct, frozen=True, gc=False):
    """What stays true of one GPU until its driver is reloaded. None: the device does not tell."""

    uuid: str
    model: str
    index: int = 0
    memory_total_bytes: int | None = None
    limit_min_w: float | None = None
    limit_max_w: float | None = None
    limit_default_w: float | None = None
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


class Sample(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One message per node and interval. `unix_s` is the node's clock and judged by nobody but a skew metric."""

    v: int
    node: str
    agent: str
    boot: str
    seq: int
    unix_s: float
    span_s: float
    inventory: str
    state: list[str]
    power_w: FloatList
    util_frac: FloatList
    energy_j: FloatList
    power_max_w: FloatList | UnsetType = UNSET
    util_max_frac: FloatList | UnsetType = UNSET
    mem_util_frac: FloatList | UnsetType = UNSET
    mem_used_bytes: IntList | UnsetType = UNSET
    temp_c: FloatList | UnsetType = UNSET
    sm_clock_mhz: FloatList | UnsetType = UNSET
    limit_w: FloatList | UnsetType = UNSET
    limit_requested_w: FloatList | UnsetType = UNSET
    energy_epoch: IntList | UnsetType = UNSET
    throttle: list[list[str] | None] | UnsetType = UNSET
    ecc_uncorrected: IntList | UnsetType = UNSET
    remapped_rows: IntList | UnsetType = UNSET
    xid: IntList | UnsetType = UNSET
    faults: list[dict[str, str]] | UnsetType = UNSET
    """Per GPU: field name -> reason for its being null, from a closed set."""


SAMPLE_DECODER = msgspec.json.Decoder(Sample)
INVENTORY_DECODER = msgspec.json.Decoder(Inventory)
_ENCODER = msgspec.json.Encoder()


def encode(record: Sample | Inventory) -> bytes:
    """Encode one record as JSON."""
    return _ENCODER.encode(record)


def inventory_hash(payload: bytes) -> str:
    """First 16 hex digits of the SHA-256 of the inventory payload as published: ties a sample to its inventory."""
    return hashlib.sha256(payload).hexdigest()[:16]


def decode_sample(payload: bytes, topic_node: str) -> Sample:
    """Decode and check one sample.

    Raises:
        BadMessage: with reason too_large | garbage | version | node_mismatch | shape | range. Count and drop.
    """
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise BadMessage("too_large", f"{len(payload)} bytes")
    try:
        sample = SAMPLE_DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage("garbage", str(error)[:200]) from error
    if sample.v != SCHEMA_VERSION:
        raise BadMessage("version", f"v={sample.v}")
    if sample.node != topic_node:
        raise BadMessage("node_mismatch", sample.node[:80])
    count = len(sample.state)
    if count > MOST_GPUS or not (len(sample.power_w) == len(sample.util_frac) == len(sample.energy_j) == count):
        raise BadMessage("shape", f"{count} GPUs")
    for column in _CHECKED:
        values = getattr(sample, column)
        if values is not UNSET and len(values) != count:
            raise BadMessage("shape", column)
    if not _within(sample.power_w, MOST_POWER_W) or not _within(sample.util_frac, 1.0):
        raise BadMessage("range", "power_w or util_frac")
    if not _within(sample.energy_j, 1e15) or not math.isfinite(sample.unix_s) or not 0 < sample.span_s < 1e6:
        raise BadMessage("range", "energy_j, unix_s or span_s")
    return sample


_CHECKED = ("power_max_w", "util_max_frac", "mem_util_frac", "mem_used_bytes", "temp_c", "sm_clock_mhz")
_CHECKED += ("limit_w", "limit_requested_w", "energy_epoch", "throttle", "ecc_uncorrected", "remapped_rows")
_CHECKED += ("xid", "faults")


def _within(values: FloatList, most: float) -> bool:
    # NaN fails both comparisons, so it is refused too.
    return all(value is None or 0.0 <= value <= most for value in values)


def decode_inventory(payload: bytes, topic_node: str) -> Inventory:
    """Decode and check an inventory. Raises BadMessage like decode_sample, reasons prefixed the same."""
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise BadMessage("too_large", f"{len(payload)} bytes")
    try:
        inventory = INVENTORY_DECODER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage("garbage", str(error)[:200]) from error
    if inventory.v != SCHEMA_VERSION:
        raise BadMessage("version", f"v={inventory.v}")
    if inventory.node != topic_node:
        raise BadMessage("node_mismatch", inventory.node[:80])
    if len(inventory.gpus) > MOST_GPUS:
        raise BadMessage("shape", f"{len(inventory.gpus)} GPUs")
    return inventory
