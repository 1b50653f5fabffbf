"""Whatever people write in annotations: nothing raises, nothing is lost, and each fault says what to do."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import example, given

from tests.properties.annotations import MOST_BYTES, NAMESPACES, SAID, Long, judge


@given(SAID, SAID, SAID, NAMESPACES)
@example({"queue": Long("q" * MOST_BYTES), Long("k" * MOST_BYTES): ""}, {}, {}, "team-a")
def test_any_annotations_are_good_or_faults_that_say_what_is_wrong(
    pod: Mapping[str, str], owner: Mapping[str, str], shared: Mapping[str, str], namespace: str
) -> None:
    judge(pod, owner, shared, namespace)
