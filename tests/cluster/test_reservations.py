"""Reservations by pod, by node and by the instant at which they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.reservations import (
    ENDS_KEPT,
    LAST_CHOICE_S,
    RENEWALS,
    VOLUME_RESERVATION_S,
    Reservation,
    Reservations,
)

ONE = (("nvidia.com/gpu", 1),)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["make", "make for a volume", "renew", "release", "wait"]),
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from(["n1", "n2"]),
        st.sampled_from([0.0, 5.0, 29.0, 31.0, 300.0]),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_is_looked_up_fast_is_what_a_plain_list_would_say(
    steps: list[tuple[str, str, str, float]],
) -> None:
    book, plain, now = Reservations(30.0), dict[str, Reservation](), 100.0
    for step, uid, node, by_s in steps:
        if step.startswith("make") and uid not in plain:
            plain[uid] = book.make(uid, node, ONE, 0.9, now, waits_for_volume=step.endswith("volume"))
        elif step == "renew" and uid in plain and book.renew(uid, now):
            held = book.get(uid)
            assert held is not None
            assert held.until_mono_s > now
            plain[uid] = held
        elif step == "release":
            assert book.release(uid) == plain.pop(uid, None)
        elif step == "wait":
            now += by_s
            want_over = {uid for uid, held in plain.items() if held.until_mono_s <= now}
            assert {held.uid for held in book.take_expired(now)} == want_over
            plain = {uid: held for uid, held in plain.items() if uid not in want_over}
        assert len(book) == len(plain)
        for name in ("n1", "n2"):
            want_held = sorted(
                (held for held in plain.values() if held.node == name), key=lambda held: held.made_mono_s
            )
            assert sorted(book.on_node(name), key=lambda held: held.uid) == sorted(
                want_held, key=lambda held: held.uid
            )
            assert [held.made_mono_s for held in book.on_node(name)] == [h.made_mono_s for h in want_held]


def test_promises_that_were_taken_back_leave_nothing_behind() -> None:
    book = Reservations(30.0)
    for number in range(10 * ENDS_KEPT):
        book.make(f"p{number}", f"n{number}", ONE, 0.9, 0.0)
        book.release(f"p{number}")
    assert len(book) == 0
    assert book.take_expired(1e9) == []
    # The only look inside: what is not seen from outside is memory that a long life would fill.
    assert len(book._ends) <= ENDS_KEPT
    assert book._by_node == {}


def test_a_renewed_promise_does_not_end_at_its_first_end() -> None:
    book = Reservations(30.0)
    book.make("a", "n1", ONE, 0.9, 0.0)
    assert book.renew("a", 20.0)
    assert book.take_expired(30.0) == []
    assert [held.uid for held in book.take_expired(50.0)] == ["a"]


def test_the_first_renewal_is_as_long_as_the_promise_was_and_the_next_as_any() -> None:
    book = Reservations(30.0)
    book.make("a", "n1", ONE, 0.9, 0.0, waits_for_volume=True)
    ends = []
    for _ in range(RENEWALS):
        assert book.renew("a", 600.0)
        ends.append(book.on_node("n1")[0].until_mono_s)
    assert ends == [600.0 + VOLUME_RESERVATION_S, 630.0]


def test_holding_a_promise_never_shortens_it_and_leaves_nothing_behind() -> None:
    book = Reservations(30.0)
    book.make("a", "n1", ONE, 0.9, 0.0)
    book.hold("a", 5.0)
    assert book.on_node("n1")[0].until_mono_s == 30.0
    for number in range(10 * ENDS_KEPT):
        book.hold("a", 40.0 + number)
    assert book.on_node("n1")[0].until_mono_s == 39.0 + 10 * ENDS_KEPT
    assert len(book._ends) <= ENDS_KEPT + 3


def test_a_promise_can_be_renewed_twice_only() -> None:
    book = Reservations(30.0)
    book.make("a", "n1", ONE, 0.9, 0.0)
    assert [book.renew("a", 1.0) for _ in range(RENEWALS + 1)] == [True] * RENEWALS + [False]


def test_old_choices_are_forgotten_and_young_ones_kept() -> None:
    book = Reservations(30.0)
    for now in (0.0, 1.0, 2.0):
        book.note_choice("old", "n1", now)
        book.note_choice("touched", "n1", now)
    book.note_choice("touched", "n2", LAST_CHOICE_S)
    book.forget_old_choices(2 * LAST_CHOICE_S + 3.0)
    assert book.last_choices("old", 3.0) == []
    assert book.last_choices("touched", 3.0) == ["n1"]


def test_one_that_was_touched_again_does_not_keep_the_others_from_being_forgotten() -> None:
    book = Reservations(30.0)
    for uid, now in (("a", 0.0), ("b", 1.0), ("b", 2.0), ("a", 3 * LAST_CHOICE_S)):
        book.note_choice(uid, "n1", now)
    book.forget_old_choices(3 * LAST_CHOICE_S)
    book.note_choice("b", "n1", 3 * LAST_CHOICE_S)
    assert book.last_choices("b", 3 * LAST_CHOICE_S) == [], "it begins anew"
