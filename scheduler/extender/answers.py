"""Write our answers to kube-scheduler. Pure: rows and codes in, JSON bytes out.

A refused filter names thousands of nodes twice. Written name by name that is half a millisecond; so each
node's quoted name is kept ready, padded with blanks to one width (blanks between JSON tokens are legal), and
an answer is gathered by numpy: 0.03 ms for 5,000 names.
Source: libs trial, 2026-10; kube-scheduler/extender/v1/types.go for the shapes.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scheduler.extender.wire import FilterArgs, OfferedNodes, Victims

    Rows = NDArray[np.intp]
    Bytes = NDArray[np.bytes_]

MAX_SCORE = 10
"""kube-scheduler's MaxExtenderPriority; it neither clamps nor normalises what we send."""

# Beyond this many times the median width, one odd name would widen every row of every answer.
_ODD_WIDTH = 4
# Up to so many names, joining them costs less than setting up a table (a decisive answer has one).
_FEW = 16

_HOST = b'{"Host":'
_SCORE = b',"Score":'
# The digits of each score, a blank before a single one.
_DIGITS = np.array([b"%2d" % score for score in range(MAX_SCORE + 1)]).view(np.uint16)


class Fragments:
    """Every known node's name and every reason, ready for answers. Built anew when the set of nodes changes.

    Args:
        names_by_row: the name of each row's node; None for a row that has none. Such rows never reach an
            answer.
        reason_texts: what a reason code means, by code; at most 256.
    """

    def __init__(self, names_by_row: Sequence[str | None], reason_texts: Sequence[str]) -> None:
        encode = msgspec.json.encode
        quoted = [b"" if name is None else encode(name) for name in names_by_row]
        widths = [len(name) for name in quoted if name] or [2]
        self._known = np.array([bool(name) for name in quoted], bool)
        self._has_gaps = not self._known.all()
        self._joins = max(widths) > _ODD_WIDTH * median(widths)
        reasons = [b":" + encode(text) + b"," for text in reason_texts]
        self._name_list = quoted
        self._reason_list = reasons
        self._names = _padded([b""] if self._joins else quoted)
        self._reasons = _padded(reasons)
        # Whole items of a HostPriorityList, the score left blank: one gather, and two bytes to fill in per item.
        self._hosts = _padded([_HOST + bytes(name) + _SCORE + b"  }," for name in self._names])

    def failures(self, rows: Rows, codes: NDArray[np.uint8]) -> bytes:
        """Write `"name":"reason",` for each row."""
        if not len(rows):
            return b""
        if self._has_gaps:
            known = self._known[rows]
            rows, codes = rows[known], codes[known]
        if self._joins:
            names, reasons = self._name_list, self._reason_list
            pairs = zip(rows.tolist(), codes.tolist(), strict=True)
            return b"".join([names[row] + reasons[code] for row, code in pairs])
        return _side_by_side((self._names[rows], self._reasons[codes]))

    def names(self, rows: Rows) -> bytes:
        """Write `"name",` for each row."""
        rows = self._kept(rows)
        if self._joins or len(rows) <= _FEW:
            return b"".join([self._name_list[row] + b"," for row in rows.tolist()])
        return _side_by_side((self._names[rows], b","))

    def scores(self, rows: Rows, scores: NDArray[np.uint8]) -> bytearray:
        """Write `[{"Host":"name","Score":7},`: an item for each row, each with its comma."""
        scores = np.minimum(scores, MAX_SCORE)
        if self._has_gaps:
            known = self._known[rows]
            rows, scores = rows[known], scores[known]
        if self._joins:
            names = self._name_list
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            items = [b"%s%s%s%d}," % (_HOST, names[row], _SCORE, score) for row, score in pairs]
            return bytearray(b"[" + b"".join(items))
        # Written where it is sent from: to copy 300 KB costs as much as to judge 5,000 nodes.
        width = self._hosts.itemsize
        answer = bytearray(1 + len(rows) * width)
        answer[0:1] = b"["
        if len(rows):
            self._hosts.take(rows, out=np.frombuffer(answer, self._hosts.dtype, offset=1), mode="clip")
            # As one number of two bytes per item: several times faster than as two columns of bytes.
            digits = np.ndarray(len(rows), np.uint16, answer, offset=1 + width - 4, strides=(width,))
            digits[:] = _DIGITS[scores]
        return answer

    def _kept(self, rows: Rows) -> Rows:
        return rows[self._known[rows]] if self._has_gaps else rows


def scaled(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bring scores of 0 to 1 to the protocol's whole numbers 0 to 10; what is not a number counts as 0."""
    # fmax and fmin take the number where the other is none.
    tenths: NDArray[np.float32] = np.rint(np.fmin(np.fmax(scores, 0.0), 1.0) * MAX_SCORE)
    return tenths.astype(np.uint8)


def filter_answer(
    fragments: Fragments,
    *,
    kept_rows: Rows,
    failed_rows: Rows,
    failed_codes: NDArray[np.uint8],
    unresolvable: NDArray[np.bool_],
    unknown_names: Sequence[str] = (),
    unknown_text: str = "",
    nominated: str = "",
) -> bytes:
    """Write the ExtenderFilterResult of a question that sent names.

    Args:
        fragments: of the node set that the rows belong to.
        kept_rows: nodes that the pod may go to.
        failed_rows: nodes that it may not.
        failed_codes: why, beside `failed_rows`.
        unresolvable: where preemption cannot help, beside `failed_rows`. Those are named in
            FailedAndUnresolvableNodes, and in FailedNodes too for 1.20, which lacks the former.
        unknown_names: nodes without a row that it may not; preemption cannot help there.
        unknown_text: why.
        nominated: where the pod waits to go. Called unresolvable, kube-scheduler would take it for lost and evict
            a second set of pods elsewhere, while those of the first are still ending.
    """
    reason = b":" + msgspec.json.encode(unknown_text) + b","
    unknown = b"".join([msgspec.json.encode(name) + reason for name in unknown_names])
    unknown_never = unknown
    if nominated and nominated in unknown_names:
        unknown_never = b"".join(
            [msgspec.json.encode(name) + reason for name in unknown_names if name != nominated]
        )
    failed = fragments.failures(failed_rows, failed_codes)
    never = failed
    if not unresolvable.all():
        never = fragments.failures(failed_rows[unresolvable], failed_codes[unresolvable])
    return b"".join(
        (
            b'{"Nodes":null,"NodeNames":[',
            *_last_comma_off(fragments.names(kept_rows)),
            b'],"FailedNodes":{',
            *_last_comma_off(failed, unknown),
            b'},"FailedAndUnresolvableNodes":{',
            *_last_comma_off(never, unknown_never),
            b'},"Error":""}',
        )
    )


def filter_nodes_answer(
    offered: OfferedNodes, *, kept: Iterable[int], failed: Mapping[str, str], unresolvable: Mapping[str, str]
) -> bytes:
    """Write the ExtenderFilterResult of a question that sent whole nodes: the kept ones go back as they came.

    Args:
        offered: the question's nodes.
        kept: their positions, in the order offered.
        failed: reason by name, for FailedNodes.
        unresolvable: reason by name, for FailedAndUnresolvableNodes.
    """
    positions = list(kept)
    return msgspec.json.encode(
        {
            "Nodes": {"metadata": {}, "items": [offered.raw[position] for position in positions]},
            "NodeNames": [offered.nodes[position].metadata.name for position in positions],
            "FailedNodes": failed,
            "FailedAndUnresolvableNodes": unresolvable,
            "Error": "",
        }
    )


def filter_all_answer(args: FilterArgs) -> bytes:
    """Answer with everything that was offered, known to us or not: what `observe` and `pause` do."""
    if args.nodes is not None:
        return filter_nodes_answer(args.nodes, kept=range(len(args.nodes.raw)), failed={}, unresolvable={})
    nothing: dict[str, str] = {}
    return msgspec.json.encode(
        {
            "Nodes": None,
            "NodeNames": args.names,
            "FailedNodes": nothing,
            "FailedAndUnresolvableNodes": nothing,
            "Error": "",
        }
    )


def prioritize_answer(
    fragments: Fragments,
    rows: Rows,
    scores: NDArray[np.uint8],
    unknown_names: Sequence[str] = (),
) -> bytearray:
    """Write the HostPriorityList; names without a row score 0."""
    answer = fragments.scores(rows, scores)
    for name in unknown_names:
        answer += b"%s%s%s0}," % (_HOST, msgspec.json.encode(name), _SCORE)
    if len(answer) > 1:
        # The last item's comma.
        del answer[-1]
    answer += b"]"
    return answer


def preempt_answer(kept: Mapping[str, Victims]) -> bytes:
    """Write the ExtenderPreemptionResult: always by uid, whichever form the question had."""
    return msgspec.json.encode(
        {
            "NodeNameToMetaVictims": {
                name: {
                    "Pods": [{"UID": uid} for uid in victims.uids],
                    "NumPDBViolations": victims.pdb_violations,
                }
                for name, victims in kept.items()
            }
        }
    )


def bind_answer(error: str = "") -> bytes:
    """Write the ExtenderBindingResult; empty means bound."""
    return error_answer(error)


def error_answer(error: str) -> bytes:
    """Write `{"Error": …}`: what every refusal of a request carries."""
    return msgspec.json.encode({"Error": error})


def _padded(texts: Sequence[bytes]) -> Bytes:
    array = np.array(list(texts) or [b""])
    return np.char.ljust(array, max(array.dtype.itemsize, 1))


def _side_by_side(columns: Sequence[Bytes | bytes]) -> bytes:
    # One structured record a row: each column is copied at its offset, and the whole read as plain bytes.
    rows = next(len(column) for column in columns if isinstance(column, np.ndarray))
    kinds = [
        column.dtype if isinstance(column, np.ndarray) else np.dtype(f"S{len(column)}") for column in columns
    ]
    table = np.empty(rows, [(f"c{position}", kind) for position, kind in enumerate(kinds)])
    for position, column in enumerate(columns):
        table[f"c{position}"] = column
    return table.tobytes()


def _last_comma_off(*parts: bytes) -> list[bytes]:
    # Every item ends in a comma and perhaps blanks; the last one of all must not.
    full = [part for part in parts if part]
    if full:
        end = full[-1].rstrip(b" ")
        full[-1] = end[:-1]
    return full
