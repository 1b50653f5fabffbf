"""Bad annotation values: counted once for a pod, and not remembered for ever."""

from __future__ import annotations

import random

import msgspec
import pytest

from scheduler.cluster import intents as intent_module
from scheduler.cluster.annotations import MOST_UNKNOWN
from scheduler.cluster.intent import CONFIGURATION, LIMIT, POD, IntentSettings, NamespaceRule
from scheduler.cluster.intents import LONGEST_KEPT_CHARS, MOST_CHANGES, NAMESPACE, Intents
from scheduler.cluster.objects import Meta, OwnerRef, Partial, Pod
from scheduler.cluster.port import Kind, Listed
from scheduler.core.nouns import PREFIX, Workload
from tests.builders import lose_pod, make_pod, make_store, see_node, see_pod

PROFILES = {workload: (workload.value, 0.9) for workload in Workload}


def wrong(name: str = "p1", value: str = "crunching", node: str = "") -> Pod:
    return make_pod(name, annotations={PREFIX + "workload": value}, node=node)


def test_a_bad_value_is_counted_once_however_often_its_pod_is_asked_about() -> None:
    store = make_store()
    see_node(store, "n1")
    for pod in (wrong(), wrong(), wrong(node="n1")):
        see_pod(store, pod)
        store.request(pod, 0.0, PROFILES)
        # As a GET of /api/v1/pods does.
        store.intents.workload(store.pods["uid-p1"].meta, "")
    lose_pod(store, wrong(node="n1"))
    assert store.intents.errors == {"workload": 1}


def test_a_pod_that_the_store_does_not_keep_is_counted_once_too() -> None:
    store = make_store()
    for _ in range(3):
        slice_of_one = make_pod(gpus=0, annotations={PREFIX + "workload": "crunching"})
        see_pod(store, slice_of_one)
        store.request(slice_of_one, 0.0, PROFILES)
    assert store.intents.errors == {"workload": 1}


def test_another_pod_and_another_value_are_counted_too() -> None:
    intents = Intents()
    for pod in (wrong(), wrong("p2"), wrong(value="serving"), wrong(), wrong("p2")):
        intents.workload(pod.metadata, "")
    assert intents.errors == {"workload": 3}


@pytest.mark.parametrize("how", ["deleted", "finished", "not listed"])
def test_what_was_counted_is_forgotten_with_the_pod(how: str) -> None:
    store = make_store()
    see_pod(store, wrong(node="n1"))
    store.request(wrong(), 0.0, PROFILES)
    if how == "deleted":
        lose_pod(store, wrong())
    elif how == "finished":
        finished = make_pod(phase="Succeeded", node="n1")
        see_pod(store, finished)
    else:
        store.apply(Listed(Kind.POD, frozenset()), 0.0)
    store.request(wrong(), 0.0, PROFILES)
    assert store.intents.errors == {"workload": 2}


def test_pods_that_nobody_tells_the_end_of_are_forgotten_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intent_module, "MOST_PODS", 3)
    intents = Intents()
    for name in ("a", "b", "c", "d", "d", "b", "a"):
        intents.workload(wrong(name).metadata, "")
    assert intents.errors == {"workload": 5}


def test_a_pod_that_tries_ever_other_values_is_remembered_in_bounds() -> None:
    intents = Intents()
    for number in range(1000):
        intents.workload(wrong(value=f"v{number}").metadata, "")
    assert intents.errors == {"workload": intent_module.MOST_VALUES}


# --- inheritance -----------------------------------------------------------------------------------------------------


def meta(name: str = "p1", owner: str = "", **said: str) -> Meta:
    """A pod of team-a; `gpu_memory="40Gi"` is its annotation of that key."""
    owners = [OwnerRef(kind="ReplicaSet", uid=owner, controller=True)] if owner else None
    annotations = {PREFIX + key.replace("_", "-"): text for key, text in said.items()}
    return Meta(
        name=name, namespace="team-a", uid=f"uid-{name}", annotations=annotations, owner_references=owners
    )


def inheriting(settings: IntentSettings | None = None) -> Intents:
    """A ReplicaSet `rs` of a Deployment `web`, in a namespace that speaks too."""
    intents = Intents(settings)
    deployment = Meta(
        name="web", uid="web", annotations={PREFIX + "gpu-memory": "20Gi", PREFIX + "gang": "g"}
    )
    replicas = Meta(
        name="rs", uid="rs", owner_references=[OwnerRef(kind="Deployment", uid="web", controller=True)]
    )
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=deployment))
    intents.see_owner(Kind.REPLICASET, Partial(metadata=replicas))
    shared = {PREFIX + "gpu-memory": "10Gi", PREFIX + "gang-size": "4", PREFIX + "pools": "dc-1"}
    intents.see_namespace(Partial(metadata=Meta(name="team-a", annotations=shared)))
    return intents


def test_the_nearest_word_counts_and_says_who_said_it() -> None:
    found = inheriting(IntentSettings(defaults={"queue": "q", "pools": "aws-a"})).resolve(
        meta(owner="rs", gpu_memory="40Gi"), ""
    )
    assert {key: (word.text, word.where) for key, word in found.words.items()} == {
        "gpu-memory": ("40Gi", "pod"),
        "gang": ("g", "deployment web"),
        "gang-size": ("4", "namespace team-a"),
        "pools": ("dc-1", "namespace team-a"),
        "queue": ("q", "configuration"),
    }
    assert not found.faults
    assert (found.workload, found.workload_by) == (Workload.INFERENCE, "owner's kind Deployment")
    assert found.not_acted_on.keys() >= {"gang", "gang-size", "queue"}


def test_a_bad_word_means_the_default_and_not_a_farther_word() -> None:
    found = inheriting().resolve(meta(owner="rs", gpu_memory="lots"), "")
    assert found.value("gpu-memory") is None
    (fault,) = found.faults
    assert (fault.key, fault.where) == ("gpu-memory", "pod")
    assert str(fault).startswith("wattbalance.io/gpu-memory (pod): expected an amount of memory")


def test_an_owner_that_says_nothing_any_more_is_not_heard_nor_is_such_a_namespace() -> None:
    intents = inheriting()
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web")))
    intents.see_namespace(Partial(metadata=Meta(name="team-a")))
    assert not intents.resolve(meta(owner="rs"), "").words


def test_a_list_of_one_kind_says_nothing_of_owners_of_another() -> None:
    intents = inheriting()
    intents.keep_owners(Kind.REPLICASET, {"rs"})
    assert intents.resolve(meta(owner="rs"), "").value("gpu-memory") == 20 * 2**30
    intents.keep_owners(Kind.REPLICASET, set())
    assert intents.resolve(meta(owner="rs"), "").value("gpu-memory") == 10 * 2**30
    assert set(intents.owners) == {"web"}


def test_where_no_owner_controls_a_pod_the_first_one_counts() -> None:
    owners = [OwnerRef(kind="ReplicaSet", uid="rs"), OwnerRef(kind="Job", uid="job")]
    found = inheriting().resolve(msgspec.structs.replace(meta(), owner_references=owners), "")
    assert found.words["gpu-memory"].where == "deployment web"


def test_a_priority_class_tells_more_than_an_owners_kind_and_less_than_a_word() -> None:
    intents = inheriting(IntentSettings(priority_classes={"fast": Workload.TRAINING}))
    found = intents.resolve(meta(owner="rs"), "fast")
    assert (found.workload, found.workload_by) == (Workload.TRAINING, "priority class fast")
    assert intents.resolve(meta(owner="rs"), "slow").workload is Workload.INFERENCE
    assert intents.resolve(meta(owner="rs", workload="batch"), "fast").workload is Workload.BATCH


def test_a_chain_is_followed_so_far_and_no_farther() -> None:
    intents = Intents()
    for number in range(intent_module.LONGEST_CHAIN + 1):
        owners = [OwnerRef(kind="ReplicaSet", uid=f"o{number + 1}", controller=True)]
        said = {PREFIX + "queue": "last"} if number == intent_module.LONGEST_CHAIN - 1 else {}
        said |= {PREFIX + "client-region": "beyond"} if number == intent_module.LONGEST_CHAIN else {}
        found = Meta(name=f"o{number}", uid=f"o{number}", annotations=said, owner_references=owners)
        intents.see_owner(Kind.REPLICASET, Partial(metadata=found))
    assert intents.resolve(meta(owner="o0"), "").words.keys() == {"queue"}


def test_a_chain_in_a_circle_ends() -> None:
    intents = Intents()
    for own, parent in (("a", "b"), ("b", "a")):
        owners = [OwnerRef(kind="ReplicaSet", uid=parent, controller=True)]
        said = {PREFIX + "queue": own}
        intents.see_owner(
            Kind.REPLICASET,
            Partial(metadata=Meta(name=own, uid=own, annotations=said, owner_references=owners)),
        )
    assert intents.resolve(meta(owner="a"), "").words["queue"].where == "replicaset a"


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ({"pools": "moon,mars"}, {"pools": "expected names of pools (aws-a, dc-1), got 'moon,mars'"}),
        (
            {"min_power": "400W", "max_power": "300W"},
            dict.fromkeys(
                ("min-power", "max-power"), "expected min-power below max-power, got 400W and 300W"
            ),
        ),
        ({"gang": "g"}, {"gang": "expected it together with gang-size, got 'g' alone"}),
        ({"gang_size": "3"}, {"gang-size": "expected it together with gang, got '3' alone"}),
        ({"max_latency": "5ms"}, {"max-latency": "expected it together with client-region, got '5ms' alone"}),
        (
            {"flex": "25%", "power": "firm"},
            {
                "flex": "expected 0 beside power: firm, which gives nothing away; got 25%",
                "power": "expected elastic beside flex: 25%, got firm",
            },
        ),
        (
            {"checkpoint_interval": "5m", "preemptible": "false"},
            {
                "checkpoint-interval": "expected preemptible: true beside it, got 5m beside false",
                "preemptible": "expected true beside checkpoint-interval: 5m, got false",
            },
        ),
        ({"flex": "0", "power": "firm"}, {}),
        ({"min_power": "300W", "max_power": "300W"}, {}),
    ],
)
def test_words_that_contradict_each_other_do_not_count(said: dict[str, str], want: dict[str, str]) -> None:
    intents = Intents(IntentSettings(pools={"dc-1", "aws-a"}))
    found = intents.resolve(meta(**said), "")
    assert {fault.key: fault.message for fault in found.faults} == want
    assert found.words.keys() == {key.replace("_", "-") for key in said} - want.keys()


def test_a_namespace_may_ask_for_what_the_configuration_allows() -> None:
    rule = NamespaceRule(
        match=lambda name: name.startswith("team-"),
        allow={"pools": [("dc-1", "edge")], "workload": [Workload.BATCH], "queue": []},
    )
    intents = Intents(IntentSettings(rules=[rule], defaults={"workload": "training"}))
    found = intents.resolve(meta(pools="edge", workload="inference", queue="q", gpu_memory="1Gi"), "")
    assert found.words.keys() == {"pools", "gpu-memory"}
    assert {fault.key: fault.message for fault in found.faults} == {
        "workload": "expected what namespace team-a may ask for (batch), got 'inference'",
        "queue": "expected what namespace team-a may ask for (nothing), got 'q'",
    }
    # Also where the configuration says otherwise; a file that does is refused.
    assert (found.workload, found.workload_by) == (Workload.BATCH, CONFIGURATION)


def test_a_limit_on_models_takes_other_spellings_of_what_it_allows() -> None:
    rule = NamespaceRule(match=lambda _: True, allow={"gpu-model": [("NVIDIA-A100*",)], "pools": [("a-1",)]})
    intents = Intents(IntentSettings(rules=[rule]))
    said = {PREFIX + "gpu-model": "nvidia a100*", PREFIX + "pools": "a_1"}
    found = intents.resolve(Meta(name="p", namespace="team-a", uid="u", annotations=said), "")
    assert found.value("gpu-model") == ("nvidia a100*",)
    assert [fault.key for fault in found.faults] == ["pools"], "names of pools are compared sign by sign"


@pytest.mark.parametrize(
    ("key", "texts", "want"),
    [
        ("pools", ["aws-a", "dc-1,aws-a", "dc1", "default", "", "mars,aws-a"], ("dc-1", "edge")),
        ("gpu-model", ["*", "*L4*", "[", ""], ("*H100*", "*A100*")),
    ],
)
def test_a_pod_for_which_nothing_that_counts_was_asked_is_held_to_what_its_namespace_may_have(
    key: str, texts: list[str], want: tuple[str, ...]
) -> None:
    allow = {"pools": [("edge",), ("dc-1", "edge")], "gpu-model": [("*H100*",), ("*A100*", "*H100*")]}
    rule = NamespaceRule(match=lambda name: name == "team-a", allow=allow)
    settings = IntentSettings(rules=[rule], pools=("dc-1", "aws-a", "edge", "default"))
    intents = Intents(settings)
    for said in ({}, *({PREFIX + key: text} for text in texts)):
        found = intents.resolve(Meta(name="p", namespace="team-a", uid="u", annotations=said), "")
        assert found.words[key].value == want, said
        assert found.words[key].where == LIMIT
        assert [fault.key for fault in found.faults] == [key] * bool(said), said
        # Nobody holds it where no limit is.
        free = intents.resolve(Meta(name="p", namespace="ops", uid="v", annotations=said), "")
        assert all(word.where == POD for word in free.words.values())
    # Who speaks for it is held to the same.
    intents.see_namespace(Partial(metadata=Meta(name="team-a", annotations={PREFIX + "pools": "aws-a"})))
    assert intents.resolve(meta(), "").words["pools"].where == LIMIT
    intents.settings = IntentSettings(pools=settings.pools)
    assert intents.resolve(meta(), "").value("pools") == ("aws-a",), "no limit any more"


def test_an_empty_limit_lets_nobody_ask_and_holds_nobody() -> None:
    allow: dict[str, list[object]] = {"pools": [], "workload": [], "gpu-model": []}
    rule = NamespaceRule(match=lambda _: True, allow=allow)
    intents = Intents(IntentSettings(rules=[rule], pools=("dc-1",), defaults={"pools": "dc-1"}))
    found = intents.resolve(meta(pools="dc-1", gpu_model="*", workload="batch"), "")
    assert {key: word.where for key, word in found.words.items()} == {"pools": CONFIGURATION}
    assert {fault.key for fault in found.faults} == {"pools", "gpu-model", "workload"}
    assert found.workload is Workload.BATCH


@pytest.mark.parametrize("text", ["mars", "", "aws-a", "dc 1"])
def test_where_a_word_is_bad_or_refused_the_configurations_default_holds_and_no_farther_word(
    text: str,
) -> None:
    rule = NamespaceRule(match=lambda name: name == "team-a", allow={"pools": [("dc-1",), ("edge",)]})
    defaults = {"pools": "dc-1", "gpu-memory": "1Gi", "workload": "training"}
    pools = ("dc-1", "edge", "aws-a")
    intents = inheriting(IntentSettings(rules=[rule], pools=pools, defaults=defaults))
    intents.see_namespace(Partial(metadata=Meta(name="team-a", annotations={PREFIX + "pools": "edge"})))
    assert intents.resolve(meta(), "").words["pools"].where == "namespace team-a"
    found = intents.resolve(meta(owner="rs", pools=text, gpu_memory="lots", workload="?"), "")
    assert {key: (found.words[key].text, found.words[key].where) for key in defaults} == {
        key: (default, CONFIGURATION) for key, default in defaults.items()
    }
    assert found.workload is Workload.TRAINING
    assert [(fault.key, fault.where) for fault in found.faults if fault.key in defaults] == [
        (key, POD) for key in ("pools", "gpu-memory", "workload")
    ]


def test_a_workload_that_is_inferred_is_one_that_is_allowed() -> None:
    allow = {"workload": [Workload.BATCH, Workload.TRAINING]}
    rule = NamespaceRule(match=lambda name: name == "team-a", allow=allow)
    intents = inheriting(IntentSettings(rules=[rule], priority_classes={"fast": Workload.TRAINING}))
    for pod, priority, want in (
        (meta(owner="rs"), "", (Workload.BATCH, LIMIT)),
        (meta(owner="rs", workload="inference"), "", (Workload.BATCH, LIMIT)),
        (meta(owner="rs"), "fast", (Workload.TRAINING, "priority class fast")),
        (meta(owner="rs", workload="training"), "", (Workload.TRAINING, POD)),
    ):
        found = intents.resolve(pod, priority)
        assert (found.workload, found.workload_by) == want
    elsewhere = msgspec.structs.replace(meta(owner="rs"), namespace="ops")
    assert intents.resolve(elsewhere, "").workload is Workload.INFERENCE


def test_of_several_pools_those_count_that_there_are() -> None:
    intents = Intents(IntentSettings(pools=("dc-1", "aws-a", "edge")))
    found = intents.resolve(meta(pools="gone,edge, dc-1,mars"), "")
    assert found.words["pools"].text == "edge,dc-1"
    [fault] = found.faults
    want = "expected names of pools (aws-a, dc-1, edge), got 'gone,mars'; the others count"
    assert (fault.key, fault.message) == ("pools", want)


def test_pods_and_namespaces_that_name_certain_pools_are_counted() -> None:
    intents = inheriting()
    web = Meta(name="web", uid="web", annotations={PREFIX + "pools": "aws-a, gone"})
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=web))
    pods = [meta(owner="rs"), meta(), meta(pools="gone"), meta(pools="edge", owner="rs")]
    assert intents.naming({"gone"}, pods) == (2, 0)
    assert intents.naming({"gone", "dc-1"}, pods) == (3, 1)
    assert intents.naming({"gon"}, pods) == (0, 0)


@pytest.mark.parametrize(
    ("near", "far", "want"),
    [
        (
            {"max_power": "200W"},
            {"min-power": "300W"},
            "expected min-power below max-power, got 300W and 200W",
        ),
        (
            {"min_power": "300W"},
            {"max-power": "200W"},
            "expected min-power below max-power, got 300W and 200W",
        ),
        (
            {"power": "firm"},
            {"flex": "25%"},
            "expected 0 beside power: firm, which gives nothing away; got 25%",
        ),
        ({"flex": "25%"}, {"power": "firm"}, "expected elastic beside flex: 25%, got firm"),
        (
            {"preemptible": "false"},
            {"checkpoint-interval": "5m"},
            "expected preemptible: true beside it, got 5m beside false",
        ),
        (
            {"checkpoint_interval": "5m"},
            {"preemptible": "false"},
            "expected true beside checkpoint-interval: 5m, got false",
        ),
    ],
)
@pytest.mark.parametrize("whose", ["owner", "namespace", "configuration"])
def test_of_two_words_that_contradict_each_other_the_farther_gives_way(
    near: dict[str, str], far: dict[str, str], want: str, whose: str
) -> None:
    intents = Intents(IntentSettings(defaults=far if whose == "configuration" else {}))
    said = {PREFIX + key: text for key, text in far.items()}
    if whose == "owner":
        intents.see_owner(Kind.JOB, Partial(metadata=Meta(name="j", uid="j", annotations=said)))
    if whose == "namespace":
        intents.see_namespace(Partial(metadata=Meta(name="team-a", annotations=said)))
    owners = [OwnerRef(kind="Job", uid="j", controller=True)]
    [(key, text)] = near.items()
    found = intents.resolve(msgspec.structs.replace(meta(**near), owner_references=owners), "")
    assert {key: word.where for key, word in found.words.items()} == {key.replace("_", "-"): POD}
    if whose == "configuration":
        assert not found.faults, "a default that does not fit is nobody's mistake"
        return
    [fault] = found.faults
    assert [fault.key] == list(far)
    assert fault.where == {"owner": "job j", "namespace": "namespace team-a"}[whose]
    assert fault.message == f"{want}; {key.replace('_', '-')}: {text} (pod) is nearer"


def test_what_gives_way_makes_room_for_a_default_that_fits() -> None:
    defaults = {"min-power": "100W"}
    intents = Intents(IntentSettings(defaults=defaults))
    said = {PREFIX + "min-power": "300W"}
    intents.see_namespace(Partial(metadata=Meta(name="team-a", annotations=said)))
    found = intents.resolve(meta(max_power="200W"), "")
    assert found.words["min-power"].where == CONFIGURATION
    assert [fault.where for fault in found.faults] == ["namespace team-a"]
    found = intents.resolve(meta(max_power="90W"), "")
    assert found.words.keys() == {"max-power"}
    assert len(found.faults) == 1


@pytest.mark.parametrize(
    ("said", "want_key"),
    [
        ({"gang": "a", "gang_size": "many"}, "gang-size"),
        ({"gang": "not a name", "gang_size": "3"}, "gang"),
        ({"max_latency": "5ms", "client_region": "?"}, "client-region"),
        ({"flex": "25%", "power": "frim", "workload": "inference"}, "power"),
    ],
)
def test_a_word_that_needs_a_bad_one_does_not_count_and_is_told_there(
    said: dict[str, str], want_key: str
) -> None:
    found = Intents().resolve(meta(**said), "")
    [fault] = found.faults
    assert fault.key == want_key
    [other] = {key.replace("_", "-") for key in said} - {want_key, "workload"}
    assert fault.message.endswith(f"; so {other} does not count either")
    assert found.words.keys() == {"workload"} & said.keys()


def test_of_a_pod_that_is_inference_the_power_is_firm_unless_it_says_elastic() -> None:
    intents = inheriting()
    found = intents.resolve(meta(owner="rs", flex="25%"), "")
    [fault] = found.faults
    assert str(fault) == (
        "wattbalance.io/flex (pod): expected 0 beside power: firm, the default for inference; got 25%"
    )
    assert "flex" not in found.words
    for said in ({"power": "elastic"}, {"workload": "training"}):
        found = intents.resolve(meta(owner="rs", flex="25%", **said), "")
        assert found.value("flex") == 0.25
        assert not found.faults
    # Of what holds anyway nothing is taken away.
    found = intents.resolve(meta(owner="rs", flex="25%", power="firm"), "")
    assert ([fault.key for fault in found.faults], found.value("power")) == (["flex"], "firm")
    for default in ({"flex": "25%"}, {"flex": "25%", "power": "elastic"}):
        found = inheriting(IntentSettings(defaults=default)).resolve(meta(owner="rs"), "")
        assert ("flex" in found.words) is ("power" in default)
        assert not found.faults


def test_faults_of_known_keys_come_first_and_the_known_keys_are_listed_once() -> None:
    intents = inheriting()
    said = {PREFIX + "pools": "dc 1", PREFIX + "zzz": "", PREFIX + "min-power": "9W", PREFIX + "gang": "g"}
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web", annotations=said)))
    pod = meta(owner="rs", qqq="1", xxx="2", gpu_memry="3", max_power="8W", vvv="4")
    found = intents.resolve(pod, "")
    want = ["pools", "min-power", "qqq", "xxx", "gpu-memry", "vvv", "zzz"]
    assert [fault.key for fault in found.faults] == want
    told = [fault.message for fault in found.faults]
    assert ["; known: workload, pools" in message for message in told] == [key == "qqq" for key in want]
    assert "did you mean wattbalance.io/gpu-memory?" in told[4]
    # Whichever of them lists the keys, it is the same mistake.
    counted = intents.errors.total()
    intents.resolve(msgspec.structs.replace(pod, annotations={PREFIX + "xxx": "2"}), "")
    assert intents.errors.total() == counted


# --- a Deployment and its ReplicaSets ---------------------------------------------------------------------------------


def replica_set(intents: Intents, said: str, kind: str = "Deployment") -> None:
    """One of `web`, with what was copied to it."""
    owners = [OwnerRef(kind=kind, uid="web", controller=True)]
    annotations = {PREFIX + "gpu-memory": said}
    copied = Meta(name="rs", uid="rs", owner_references=owners, annotations=annotations)
    intents.see_owner(Kind.REPLICASET, Partial(metadata=copied))


def test_a_deployment_speaks_for_its_replica_sets_also_when_it_says_nothing() -> None:
    intents = inheriting()
    replica_set(intents, "40Gi")
    assert intents.resolve(meta(owner="rs"), "").words["gpu-memory"].where == "deployment web"
    for said in ({}, {PREFIX + "queue": "q"}):
        intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web", annotations=said)))
        assert intents.resolve(meta(owner="rs"), "").words["gpu-memory"].where == "namespace team-a"
    # Its mistakes are its own.
    replica_set(intents, "lots")
    web = Meta(name="web", uid="web", annotations={PREFIX + "gpu-memory": "lots"})
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=web))
    [fault] = [each for each in intents.resolve(meta(owner="rs"), "").faults if each.key == "gpu-memory"]
    assert fault.where == "deployment web"


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("how", ["deleted", "not listed"])
def test_a_replica_set_speaks_where_its_deployment_is_not_known(how: str, *, plain: bool) -> None:
    intents = Intents()
    replica_set(intents, "40Gi")
    assert intents.resolve(meta(owner="rs"), "").words["gpu-memory"].where == "replicaset rs"
    said = {} if plain else {PREFIX + "queue": "q"}
    generation = intents.generation
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web", annotations=said)))
    assert intents.generation > generation, "what its pods ask for is another thing now"
    assert "gpu-memory" not in intents.resolve(meta(owner="rs"), "").words
    generation = intents.generation
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web", annotations=said)))
    assert intents.generation == generation
    if how == "deleted":
        intents.forget_owner("web")
    else:
        intents.keep_owners(Kind.DEPLOYMENT, frozenset())
    assert intents.generation > generation
    assert intents.resolve(meta(owner="rs"), "").words["gpu-memory"].where == "replicaset rs"


def test_a_replica_set_of_something_else_speaks_for_itself() -> None:
    intents = inheriting()
    replica_set(intents, "40Gi", kind="Rollout")
    assert intents.resolve(meta(owner="rs"), "").words["gpu-memory"].where == "replicaset rs"


# --- counting ---------------------------------------------------------------------------------------------------------


def test_faults_are_counted_once_a_pod_and_key() -> None:
    intents = Intents()
    bad = {"gpu_memory": "lots", "gpu_memry": "1Gi", "workload": "?"}
    for name in ("p1", "p1", "p2"):
        found = intents.resolve(meta(name, **bad), "")
        assert {fault.key for fault in found.faults} == {"gpu-memory", "gpu-memry", "workload"}
    intents.resolve(meta("p1", **bad, max_power="x"), "")
    assert intents.errors == {"gpu-memory": 2, "unknown": 2, "workload": 2, "max-power": 1}


def test_each_question_about_a_pod_with_faults_tells_of_them() -> None:
    store = make_store()
    told: list[tuple[str, list[str]]] = []
    store.on_faults = lambda about, faults: told.append((about.name, [fault.key for fault in faults]))
    for pod in (wrong(), make_pod("good"), wrong()):
        see_pod(store, pod)
        store.request(pod, 0.0, PROFILES)
    assert told == [("p1", ["workload"])] * 2


@pytest.mark.parametrize("whose", ["pod", "owner", "namespace"])
def test_of_thousands_of_unknown_keys_some_are_named_and_that_there_are_more(whose: str) -> None:
    # As many as 256 KiB hold; `pools` is behind them all.
    said = {f"{PREFIX}k{index:05}": "" for index in range(13_000)} | {PREFIX + "pools": "dc 1"}
    store = make_store()
    owner = Partial(metadata=Meta(name="j", uid="uid-j", annotations=said if whose == "owner" else None))
    store.intents.see_owner(Kind.JOB, owner)
    space = Partial(metadata=Meta(name="team-a", annotations=said if whose == "namespace" else None))
    store.intents.see_namespace(space)
    owner_ref = OwnerRef(kind="Job", uid="uid-j", controller=True)
    pod = make_pod("p1", annotations=said if whose == "pod" else {}, owner=owner_ref)
    see_pod(store, pod)
    want = ["pools", *(f"k{index:05}" for index in range(MOST_UNKNOWN)), "…"]
    # As kube-scheduler asks, and as the store keeps it.
    for meta in (pod.metadata, store.waiting["uid-p1"].meta):
        faults = store.intents.resolve(meta, "").faults
        assert [fault.key for fault in faults] == want
        assert f"more than {MOST_UNKNOWN}" in faults[-1].message
    for kept in (
        store.waiting["uid-p1"].meta.annotations or {},
        store.intents.namespaces.get("team-a", {}),
        *(each.annotations for each in store.intents.owners.values()),
    ):
        assert len(kept) <= MOST_UNKNOWN + 2


def test_as_many_unknown_keys_as_are_named_are_all_there_are() -> None:
    said = {f"{PREFIX}k{index:05}": "" for index in range(MOST_UNKNOWN)}
    faults = Intents().resolve(make_pod("p1", annotations=said).metadata, "").faults
    assert [fault.key for fault in faults] == [key.removeprefix(PREFIX) for key in said]


# --- who controls ----------------------------------------------------------------------------------------------------


def controlled(intents: Intents, name: str, by: OwnerRef | None, kind: Kind = Kind.JOB) -> None:
    found = Meta(name=name, uid=f"uid-{name}", owner_references=[by] if by else None)
    intents.see_owner(kind, Partial(metadata=found))


def by_name(kind: str, name: str) -> OwnerRef:
    return OwnerRef(
        kind=kind, uid=f"uid-{name}", name=name, controller=True, api_version=f"{kind.lower()}s/v1"
    )


def test_who_controls_in_the_end_is_known_by_name_though_it_says_nothing_itself() -> None:
    intents = Intents()
    replicas, deployment = by_name("ReplicaSet", "web-7f"), by_name("Deployment", "web")
    assert intents.topmost(None) is None
    # Before the watch has told of the ReplicaSet, and where owners may not be read.
    assert intents.topmost(replicas) == replicas
    controlled(intents, "web", None, Kind.DEPLOYMENT)
    controlled(intents, "web-7f", deployment, Kind.REPLICASET)
    assert intents.topmost(replicas) == deployment
    # Of a kind that is not read: its name is in what it owns.
    controlled(intents, "set-0", by_name("JobSet", "set"))
    found = intents.topmost(by_name("Job", "set-0"))
    assert found is not None
    assert (found.kind, found.name, found.uid, found.api_version) == (
        "JobSet",
        "set",
        "uid-set",
        "jobsets/v1",
    )
    intents.forget_owner("uid-web-7f")
    assert intents.topmost(replicas) == replicas


def test_owners_that_control_each_other_or_are_a_long_chain_come_to_one_end() -> None:
    intents = Intents()
    controlled(intents, "a", by_name("Job", "b"))
    controlled(intents, "b", by_name("Job", "a"))
    controlled(intents, "self", by_name("Job", "self"))
    for name, want in (("a", "b"), ("b", "a"), ("self", "self")):
        found = intents.topmost(by_name("Job", name))
        assert found is not None
        assert found.name == want
    for number in range(20):
        controlled(intents, f"o{number}", by_name("Job", f"o{number + 1}"))
    found = intents.topmost(by_name("Job", "o0"))
    assert found is not None
    assert found.name == f"o{intent_module.LONGEST_CHAIN}"


def test_what_is_wanted_of_a_pod_names_its_own_controller() -> None:
    assert Intents().resolve(meta(owner="rs"), "").controller == OwnerRef(
        kind="ReplicaSet", uid="rs", controller=True
    )
    assert Intents().resolve(meta(), "").controller is None


def test_who_says_something_else_is_told_by_name_and_pods_know_whose_words_count_for_them() -> None:
    intents = Intents()
    assert intents.voices(meta()) == (f"{NAMESPACE}{meta().namespace}",)
    assert intents.voices(meta(owner="rs"))[0] == "rs"
    assert "web" not in intents.voices(meta(owner="rs"))
    generation = intents.generation
    replica_set(intents, "40Gi")
    assert intents.changed_since(generation) == {"rs"}
    # The first one that is not known counts among them: it may come to be.
    assert intents.voices(meta(owner="rs"))[:2] == ("rs", "web")
    generation = intents.generation
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web")))
    space = Meta(name="team-a", annotations={PREFIX + "queue": "q"})
    intents.see_namespace(Partial(metadata=space))
    assert intents.changed_since(generation) == {"web", f"{NAMESPACE}team-a"}
    assert intents.changed_since(intents.generation) == set()
    intents.forget_namespace("team-a")
    assert intents.changed_since(intents.generation - 1) == {f"{NAMESPACE}team-a"}


def test_after_many_changes_or_one_of_nobody_knows_whom_it_may_have_been_anybody() -> None:
    intents = Intents()
    intents.see_owner(Kind.DEPLOYMENT, Partial(metadata=Meta(name="web", uid="web")))
    generation = intents.generation
    intents.keep_owners(Kind.DEPLOYMENT, frozenset())
    assert intents.changed_since(generation) is None
    generation = intents.generation
    for turn in range(MOST_CHANGES + 1):
        assert intents.changed_since(generation) is not None
        space = Meta(name="team-a", annotations={PREFIX + "queue": f"q{turn}"})
        intents.see_namespace(Partial(metadata=space))
    assert intents.changed_since(generation) is None


def test_faults_that_are_told_by_what_is_said_are_those_of_each_pod_by_itself() -> None:
    """Thousands of pods say the same; what is wrong with it is made out once, told and counted for each."""
    dice = random.Random(0)
    values = {
        "gpu-memory": ("40Gi", "lots", "more"),
        "pools": ("dc-1", "nowhere", ","),
        "min-power": ("300W", "x"),
        "max-power": ("200W", "500W"),
        "nonsense": ("1", "2"),
        "gpu-model": ("A100", "y" * 2 * LONGEST_KEPT_CHARS),
    }

    def words() -> dict[str, str]:
        return {
            PREFIX + key: dice.choice(values[key]) for key in dice.sample(sorted(values), dice.randrange(3))
        }

    quick, plain = Intents(), Intents()
    for turn in range(3000):
        change = dice.randrange(40)
        if change < 3:
            uid, kind = (("web", Kind.DEPLOYMENT), ("rs", Kind.REPLICASET), ("job", Kind.JOB))[change]
            parent = [OwnerRef(kind="Deployment", uid="web", controller=True)] if uid == "rs" else None
            # Another of this name says who it is in another way.
            owner = Meta(
                name=f"{uid}-{dice.randrange(2)}", uid=uid, annotations=words(), owner_references=parent
            )
            for each in (quick, plain):
                each.see_owner(kind, Partial(metadata=owner))
        elif change == 3:
            space = Meta(name="team-a", annotations=words())
            for each in (quick, plain):
                each.see_namespace(Partial(metadata=space))
        elif change == 4:
            known = dice.choice((None, ("dc-1",), ("nowhere",)))
            settings = IntentSettings(pools=known, defaults={"gpu-memory": dice.choice(("80Gi", "bad"))})
            quick.settings = plain.settings = settings
        elif change == 5:
            for each in (quick, plain):
                each.forget_owner("web")
        ref = [
            OwnerRef(kind=kind, uid=uid, controller=True)
            for kind, uid in (("ReplicaSet", "rs"), ("Job", "job"))
        ]
        pod = Meta(
            name="p",
            namespace=dice.choice(("team-a", "team-b")),
            uid=f"uid-{turn // 2}",
            annotations=words(),
            owner_references=[dice.choice(ref)] if dice.randrange(3) else None,
        )
        by_class = dice.choice(("", "dear"))
        assert quick.faults(pod, by_class) == plain.resolve(pod, by_class).faults
        assert quick.errors == plain.errors
    assert sum(quick.errors.values()) > 1000


def test_no_more_is_kept_of_what_pods_say_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intent_module, "MOST_SAID", 3)
    intents = Intents()
    for index in range(20):
        [fault] = intents.faults(meta(f"p{index}", gpu_memory=f"bad-{index}"), "")
        assert fault.key == "gpu-memory"
        assert len(intents._faults) <= 3
    intents.faults(meta("long", gpu_memory="x" * 2 * LONGEST_KEPT_CHARS), "")
    assert not any("x" * LONGEST_KEPT_CHARS in str(said) for said in intents._faults)
