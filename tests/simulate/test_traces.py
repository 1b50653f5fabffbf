"""Trace files: the built-in slice as shipped, and what is said of broken ones."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from scheduler.core.errors import TraceError
from scheduler.simulate.traces import NODE_FILE, TASK_FILE, load_nodes, load_tasks, load_trace, pick_evenly

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,"
TASKS += "scheduled_time\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_slice_keeps_the_mix_of_the_whole_list() -> None:
    trace = load_trace()
    counts = Counter(node.model for node in trace.nodes)
    # Of 1,213: G2 549, T4 404, P100 134, V100M16 55, G3 39, V100M32 30; each to within one node.
    want_counts = {"G2": 549, "T4": 404, "P100": 134, "V100M16": 55, "G3": 39, "V100M32": 30}
    for model, count in want_counts.items():
        assert abs(counts[model] - 300 * count / 1213) <= 1
    assert len(trace.nodes) == 300
    assert sum(task.gpus > 0 for task in trace.tasks) == 1499
    assert sum(task.gpus == 0 for task in trace.tasks) == 231


def test_the_built_in_slice_is_small_and_says_where_it_comes_from() -> None:
    folder = Path(str(files("scheduler.simulate") / "data"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 150_000
    source = (folder / "SOURCE.md").read_text(encoding="utf-8")
    assert "8f3d6417" in source
    assert "Apache-2.0" in source


def test_fewer_nodes_are_the_same_ones_each_time_and_keep_the_mix() -> None:
    one, two = load_trace(nodes=100), load_trace(nodes=100)
    assert one.nodes == two.nodes
    assert len({node.name for node in one.nodes}) == 100
    assert abs(Counter(node.model for node in one.nodes)["G2"] - 136 / 3) <= 1


def test_more_nodes_than_the_slice_has_is_an_error_that_says_how_many_and_where_more_are() -> None:
    with pytest.raises(TraceError) as caught:
        load_trace(nodes=301)
    want_advice = "take fewer --nodes, or the whole published lists with --trace-dir DIR"
    assert (
        str(caught.value) == f"built-in slice of openb: 301 nodes asked, it has 300 with a GPU; {want_advice}"
    )


def test_more_nodes_than_a_list_has_is_an_error_that_names_the_list(tmp_path: Path) -> None:
    write(tmp_path, NODE_FILE, NODES + "a,1000,1024,2,T4\nb,1000,1024,0,\n")
    write(tmp_path, TASK_FILE, TASKS)
    with pytest.raises(TraceError) as caught:
        load_trace(nodes=2, trace_dir=tmp_path)
    assert (
        str(caught.value) == f"{tmp_path / NODE_FILE}: 2 nodes asked, it has 1 with a GPU; take fewer --nodes"
    )


def test_whole_lists_are_read_from_a_directory_or_beside_a_named_file(tmp_path: Path) -> None:
    write(tmp_path, NODE_FILE, NODES + "a,1000,1024,2,T4\nb,1000,1024,0,\n")
    write(tmp_path, TASK_FILE, TASKS + "t,1,1,1,500,T4|G2|T4,LS,Running,0,90,30\n")
    other = write(tmp_path, "other.csv", TASKS + "u,1,1,1,1000,,BE,Pending,10,90,\n")
    whole = load_trace(trace_dir=tmp_path)
    # A node without a GPU takes no part.
    assert [(node.name, node.gpus, node.model) for node in whole.nodes] == [("a", 2, "T4")]
    assert [(task.models, task.run_s, task.shares_gpu) for task in whole.tasks] == [
        (("G2", "T4"), 60.0, True)
    ]
    named = load_trace(trace_file=other)
    assert [node.name for node in named.nodes] == ["a"]
    # Never scheduled: from creation on.
    assert [(task.run_s, task.shares_gpu) for task in named.tasks] == [(80.0, False)]


@pytest.mark.parametrize(
    ("row", "want_line", "want_words"),
    [
        ("t,x,1,1,1000,,LS,Running,0,90,30", 2, "cpu_milli: expected a whole number, got 'x'"),
        ("t,1,1,1,2000,,LS,Running,0,90,30", 2, "gpu_milli: expected 1 to 1000"),
        ("t,1,1,1,0,,LS,Running,0,90,30", 2, "gpu_milli: expected 1 to 1000"),
        (",1,1,1,1000,,LS,Running,0,90,30", 2, "name is empty"),
        ("t,1,1,1000000,1000,,LS,Running,0,90,30", 2, "num_gpu: expected at most 64, got 1000000"),
        ("t,10000001,1,1,1000,,LS,Running,0,90,30", 2, "cpu_milli: expected at most 10000000, got 10000001"),
        ("t,1,1073741825,1,1000,,LS,Running,0,90,30", 2, "memory_mib: expected at most 1073741824, got"),
        ("t,1,1,1,1000,T4|Ü b/+#☃,LS,Running,0,90,30", 2, "gpu_spec: expected a label's value"),
        ("t,1,1", 2, "3 cells where the header has 11"),
        ("t,1,1,1,1000,,LS,Running,0,,30", 2, "deletion_time is empty"),
        ("t,1,1,0,0,,LS,Running,0,9,3\nt,1,1,0,0,,LS,Running,0,9,3", 3, "name 't' stands there twice"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, row: str, want_line: int, want_words: str
) -> None:
    path = write(tmp_path, "tasks.csv", TASKS + row + "\n")
    with pytest.raises(TraceError) as caught:
        load_tasks(path)
    assert (caught.value.file, caught.value.line) == (str(path), want_line)
    assert want_words in str(caught.value)


def test_a_list_without_times_is_refused_by_its_missing_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "multigpu.csv", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\nt,1,1,1,1000\n")
    with pytest.raises(TraceError, match="missing columns: qos, creation_time, deletion_time"):
        load_tasks(path)


@pytest.mark.parametrize("content", [b"", NODES.encode(), b"\xff\xfe\x00", b'sn,cpu_milli\n"a'])
def test_what_is_no_list_is_a_trace_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "nodes.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError):
        load_nodes(path)


def test_a_missing_file_is_a_trace_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        load_trace(trace_dir=tmp_path / "nowhere")


def test_even_picking_keeps_the_order_of_the_list_and_takes_no_item_twice() -> None:
    items = [7, 3, 9, 1, 5, 8, 2, 6, 4, 0]
    picked = pick_evenly(items, 5, key=lambda item: (item,))
    # Sorted they are 0 to 9; the middles of five equal parts are 1, 3, 5, 7, 9.
    assert picked == [7, 3, 9, 1, 5]


def test_a_list_that_is_not_there_is_named_once_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        load_trace(trace_dir=tmp_path)
    want_file = tmp_path / "openb_node_list_gpu_node.csv"
    want = f"{want_file}: cannot be read: No such file or directory; --trace-dir wants the published lists"
    assert str(caught.value) == want


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_bytes(b"\xef\xbb\xbfsn,cpu_milli,memory_mib,gpu,model\r\nn1,1000,1024,2,T4\r\n")
    assert [(node.name, node.model) for node in load_nodes(path)] == [("n1", "T4")]


@pytest.mark.parametrize(
    ("name", "cpu", "want_said"),
    [
        ("t1", "9" * 5000, ":2: cpu_milli: expected a whole number, got '9+' .up to 13 digits"),
        ("a/ü b", "1", ":2: name: expected lower-case letters, digits and dashes"),
    ],
)
def test_what_no_cluster_would_take_is_refused_with_its_line(
    tmp_path: Path, name: str, cpu: str, want_said: str
) -> None:
    path = tmp_path / "tasks.csv"
    path.write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos,creation_time,deletion_time\n"
        f"{name},{cpu},1,1,1000,LS,0,100\n"
    )
    with pytest.raises(TraceError, match=want_said):
        load_tasks(path)


@pytest.mark.parametrize(
    ("row", "want_words"),
    [
        ("b,1000,1024,1000000,T4", "gpu: expected at most 64, got 1000000"),
        ("b,1000,1024,1000000000000,T4", "gpu: expected at most 64, got 1000000000000"),
        ("b,10000001,1024,1,T4", "cpu_milli: expected at most 10000000, got 10000001"),
        ("b,1000,1073741825,1,T4", "memory_mib: expected at most 1073741824, got 1073741825"),
        ("b,1000,1024,1,Ü b/+#☃", "model: expected a label's value"),
        (f"b,1000,1024,1,{'x' * 64}", "model: expected a label's value"),
    ],
)
def test_a_node_that_no_machine_can_be_is_named_by_file_and_line(
    tmp_path: Path, row: str, want_words: str
) -> None:
    path = write(tmp_path, NODE_FILE, f"{NODES}a,1000,1024,64,T4\n{row}\n")
    with pytest.raises(TraceError) as caught:
        load_nodes(path)
    assert str(caught.value).startswith(f"{path}:3: {want_words}")


@pytest.mark.parametrize("name", ["openb_pod_list_gpushare40.csv", "openb_pod_list_gpushare40", "gpushare40"])
def test_a_pod_list_is_found_in_the_directory_by_its_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, NODE_FILE, NODES + "a,1000,1024,2,T4\n")
    write(tmp_path, TASK_FILE, TASKS + "t,1,1,1,500,,LS,Running,0,90,30\n")
    write(tmp_path, "openb_pod_list_gpushare40.csv", TASKS + "u,1,1,1,500,,LS,Running,0,90,30\n")
    trace = load_trace(trace_dir=tmp_path, trace_file=Path(name))
    assert [task.name for task in trace.tasks] == ["u"]
    assert trace.source == str(tmp_path / "openb_pod_list_gpushare40.csv")


def test_a_pod_list_that_is_a_file_elsewhere_goes_with_the_directorys_nodes(tmp_path: Path) -> None:
    write(tmp_path, NODE_FILE, NODES + "a,1000,1024,2,T4\n")
    (tmp_path / "mine").mkdir()
    mine = write(tmp_path / "mine", "tasks.csv", TASKS + "u,1,1,1,500,,LS,Running,0,90,30\n")
    trace = load_trace(trace_dir=tmp_path, trace_file=mine)
    assert ([node.name for node in trace.nodes], [task.name for task in trace.tasks]) == (["a"], ["u"])


def test_a_pod_list_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, NODE_FILE, NODES + "a,1000,1024,2,T4\n")
    for name in ("gpushare40", "default"):
        write(tmp_path, f"openb_pod_list_{name}.csv", TASKS)
    with pytest.raises(TraceError) as caught:
        load_trace(trace_dir=tmp_path, trace_file=Path("gpushare99"))
    want = f"{tmp_path}: it has no pod list 'gpushare99', but default, gpushare40"
    assert str(caught.value) == want
