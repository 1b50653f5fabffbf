"""Annotations as people may write them, good and bad; and what must hold of whatever is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hypothesis import strategies as st

from scheduler.cluster.annotations import ELSEWHERE, TABLE, WRITTEN, read
from scheduler.cluster.annotations import KNOWN as KNOWN_KEYS
from scheduler.cluster.contradictions import contradictions
from scheduler.cluster.intent import CONFIGURATION, LIMIT, POD, Fault, IntentSettings, NamespaceRule, Word
from scheduler.cluster.intents import Intents
from scheduler.cluster.limits import allows
from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Kind
from scheduler.core.nouns import PREFIX, Workload
from scheduler.core.units import quoted

# What the API server lets an object's annotations hold together.
MOST_BYTES = 256 * 1024
# A message stands in an event and in a table; the list of all known keys is the longest that one may hold.
MOST_MESSAGE_CHARACTERS = 600
KNOWN = sorted(TABLE)
UNSAID = Word(value=None, text="", where="nobody")

NUMBERS = st.integers(0, 2000).map(str) | st.from_regex(r"[0-9]{1,19}(?:\.[0-9]{1,19})?", fullmatch=True)
UNITS = st.sampled_from(
    [
        *("", "W", "kW", "MW", "w", "mW", " W", "watts", "Gi", "Mi", "GiB", "gb", "k", "P", "%", "percent"),
        *("s", "ms", "us", "m", "h", "d", "min", "/gpu-hour", "/hour", "g/kWh", "kg/kWh", "e3", "°C"),
    ]
)
QUANTITIES = st.lists(st.tuples(NUMBERS, UNITS).map("".join), min_size=1, max_size=3).map("".join)
INSTANTS = st.builds(
    "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{}{}".format,
    st.sampled_from([1969, 1970, 2000, 2027, 9999]),
    st.integers(0, 13),
    st.integers(0, 32),
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from(["", ".5", ".999999999", ".000000001"]),
    st.sampled_from(["Z", "z", "", "+00:00", "+23:59", "-23:59", "+24:00"]),
)
NAMES = st.sampled_from(
    ["dc-1", "aws-a", "mars", "*H100*", "[x", "a b", "", "ü", "-", "x" * 63, "x" * 64, "x" * 101]
)
LISTS = st.lists(NAMES, max_size=70).map(",".join)
CONTROLS = st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp"]) | st.sampled_from("a1,"), max_size=8)


class Long(str):
    """A text whose whole no failing test should print."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Long({self[:8]!r}…, {len(self)} characters)"


LONG = st.builds(
    lambda text, count: Long((text * count)[:MOST_BYTES]),
    st.text(min_size=1, max_size=4) | NAMES.filter(bool),
    st.sampled_from([1024, 4097, MOST_BYTES]),
)
EXAMPLES = st.sampled_from([each for key in KNOWN for each in TABLE[key].examples])
TEXTS = st.one_of(EXAMPLES, QUANTITIES, QUANTITIES, INSTANTS, LISTS, CONTROLS, LONG, st.text(max_size=20))
KEYS = st.one_of(
    *[st.sampled_from(KNOWN)] * 5,
    st.sampled_from(sorted(WRITTEN | ELSEWHERE.keys())),
    st.sampled_from(KNOWN).map(lambda key: key[:-1]),
    st.sampled_from(KNOWN).map(str.upper),
    st.text(max_size=12),
    st.just(Long("k" * 5000)),
)
EVERY_EXAMPLE = st.sampled_from([(key, each) for key in KNOWN for each in TABLE[key].examples])
# As the example, with another number in it: these are read, so the edges of what can be written back are reached.
NEAR = st.builds(
    lambda key_example, number: (
        key_example[0],
        re.sub(r"[0-9]+(\.[0-9]+)?", number, key_example[1], count=1),
    ),
    EVERY_EXAMPLE,
    NUMBERS,
)
SAID = st.dictionaries(KEYS, TEXTS, max_size=4) | st.lists(
    EVERY_EXAMPLE
    | NEAR
    | st.tuples(st.just("deadline"), INSTANTS)
    | st.sampled_from([("min-power", "500W"), ("flex", "50%"), ("preemptible", "false"), ("pools", "mars")]),
    max_size=5,
).map(dict)

TENANTS = "tenants"
ALLOW: dict[str, list[object]] = {
    "workload": [Workload.BATCH],
    "pools": [("dc-1",)],
    "gpu-model": [("*H100*",)],
    "gpu-memory": [2**30],
    "client-region": [],
}
RULE = NamespaceRule(match=lambda name: name == TENANTS, allow=ALLOW)
NAMESPACES = st.sampled_from(["team-a", TENANTS])
DEFAULTS = {"queue": "any", "gang": "all", "gang-size": "2", "min-power": "300W", "flex": "10%"}
SETTINGS = IntentSettings(pools=("dc-1", "aws-a"), rules=[RULE], defaults=DEFAULTS)


def judge(
    pod: Mapping[str, str], owner: Mapping[str, str], shared: Mapping[str, str], namespace: str
) -> tuple[int, int]:
    """Read what a pod, its owner and its namespace say; returns how many words are good and how many bad."""

    def meta(name: str, said: Mapping[str, str], owners: list[OwnerRef] | None = None) -> Meta:
        written = {PREFIX + key: text for key, text in said.items()}
        return Meta(name=name, namespace=namespace, uid=name, annotations=written, owner_references=owners)

    intents = Intents(SETTINGS)
    intents.see_owner(Kind.JOB, Partial(metadata=meta("job", owner)))
    intents.see_namespace(Partial(metadata=meta(namespace, shared)))
    about = meta("pod", pod, [OwnerRef(kind="Job", uid="job", controller=True)])
    found = intents.resolve(about, "")

    # Each fault is of the nearest word of its key, one of a key; those of keys that nobody knows are behind the others.
    said = {**shared, **owner, **pod}
    by = {**dict.fromkeys(shared, f"namespace {namespace}"), **dict.fromkeys(owner, "job job")}
    by |= dict.fromkeys(pod, POD)
    faults = {fault.key: fault for fault in found.faults}
    unknown = [quoted(key)[1:-1] for key in said if key not in WRITTEN and key not in TABLE]
    assert sorted(unknown) == sorted(fault.key for fault in found.faults if fault.key not in TABLE)
    assert [fault.key for fault in found.faults if fault.key in TABLE] == list(faults)[
        : len(faults) - len(set(unknown))
    ]
    assert sum(fault.message.endswith(KNOWN_KEYS) for fault in found.faults) <= 1
    for fault in found.faults:
        assert fault.key not in TABLE or fault.where == by[fault.key]
        assert_told(fault, said)
    for key, word in found.words.items():
        assert TABLE[key].write(word.value) == word.text
        assert read(key, word.text) == word.value
        if word.where == CONFIGURATION:
            assert word.value == read(key, DEFAULTS[key])
        elif word.where == LIMIT:
            assert (word.value,) == tuple(ALLOW[key])
        elif key in faults:
            # Some of the pools are not there; the others count.
            assert (word.where, key) == (by[key], "pools")
            assert word.value == tuple(pool for pool in read(key, said[key]) if pool in ("dc-1", "aws-a"))
        else:
            assert (word.where, word.value) == (by[key], read(key, said[key]))
    # What counts for nothing is told, by itself or with what it lacks; what the configuration says, by nobody.
    for key in said.keys() & TABLE.keys():
        if key not in faults and found.words.get(key, UNSAID).where != by[key]:
            assert any(
                fault.message.endswith(f"; so {key} does not count either") for fault in found.faults
            ), key
    assert not list(contradictions(found.words, found.workload))
    if namespace == TENANTS:
        assert found.workload is Workload.BATCH
        for key in ("pools", "gpu-model"):
            assert allows(key, ALLOW[key], found.value(key)), key
    # Asked again, the same; counted once.
    assert intents.resolve(about, "") == found
    assert intents.errors.total() == len(found.faults)
    return len(found.words), len(found.faults)


def assert_told(fault: Fault, said: Mapping[str, str]) -> None:
    """A person can act on it: it names the key, what stands there and what was expected, in one line."""
    line = str(fault)
    assert line.isprintable()
    assert len(line) < MOST_MESSAGE_CHARACTERS
    assert line.startswith(f"{PREFIX}{fault.key} (")
    assert fault.where not in {CONFIGURATION, LIMIT}
    expected, got, value = fault.message.partition(", got ")
    if not got:
        expected, got, value = fault.message.partition("; got ")
    assert expected.startswith("expected ")
    assert value
    if fault.key not in TABLE:
        assert fault.key in line
        return
    text = said[fault.key].strip(" \t\r\n")
    spellings = {quoted(text)}
    try:
        written = TABLE[fault.key].write(read(fault.key, text))
        spellings |= {written, quoted(written)}
        # Of pools only those that there are not; many of them are cut.
        spellings |= {pool[:30] for pool in written.split(",")} if fault.key == "pools" else set()
    except ValueError:
        # Not readable: it must stand there as it was written, or how much of it there is.
        pass
    counted = re.match(r"[0-9]+( characters)?(;|$)", value)
    assert counted or any(each in value for each in spellings), line
