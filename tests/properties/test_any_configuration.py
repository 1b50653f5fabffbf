"""Whatever stands in a configuration: it is refused with problems that a person can act on, or means what it says."""

from __future__ import annotations

from hypothesis import given

from tests.properties.configurations import BYTES, CONFIGURATIONS, Wrong, as_block, as_flow, bent, judge


@given(CONFIGURATIONS)
def test_any_settings_that_are_good_are_loaded_again_as_they_were_written(data: object) -> None:
    assert judge(as_flow(data).encode()) == judge(as_block(data).encode())


@given(bent())
def test_one_thing_that_is_wrong_is_said_at_its_place(wrong: Wrong) -> None:
    judge(as_flow(wrong.data).encode(), wrong)


@given(BYTES)
def test_any_bytes_are_settings_or_problems(raw: bytes) -> None:
    judge(raw)
