"""From payloads to the store, through everything that may refuse them on the way."""

from __future__ import annotations

from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.readings import StoreHandler
from scheduler.core.clock import ManualClock
from scheduler.telemetry.drain import Drain
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.mailbox import Mailbox
from tests.builders import make_node, make_store
from tests.telemetry.bus_tools import make_inventory, make_sample

TOPIC = "wattbalance/v1/c1/nodes/n1/"


def test_an_agent_that_runs_on_while_its_node_is_deleted_and_created_is_believed_at_once() -> None:
    store, clock = make_store(), ManualClock()
    handler, mailbox = StoreHandler(store), Mailbox("c1", clock)
    drain = Drain(mailbox, Intake(), handler, clock)

    def hear(kind: str, payload: bytes) -> None:
        clock.advance(1.0)
        mailbox.put(TOPIC + kind, payload, retained=False)
        # 1. Decode. 2. Hand over.
        drain.turn()
        drain.turn()
        store.tick(clock.mono_s())

    def known() -> float | None:
        return float(store.snapshot.known_gpus[store.rows["n1"]]) if "n1" in store.rows else None

    store.apply(Changed(Kind.NODE, make_node(gpus=2)), clock.mono_s())
    hear("inventory", make_inventory())
    hear("samples", make_sample(seq=1))
    assert known() == 2
    store.apply(Gone(Kind.NODE, make_node()), clock.mono_s())
    hear("samples", make_sample(seq=2))
    assert known() is None
    store.apply(Changed(Kind.NODE, make_node(gpus=2)), clock.mono_s())
    assert known() == 0
    hear("samples", make_sample(seq=3))
    assert known() == 2
    assert not handler.drops
    assert store.counters == {"samples_unknown_node": 1}
