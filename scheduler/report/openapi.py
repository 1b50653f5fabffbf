"""The description of the JSON API, made from the same structs that it sends."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import msgspec

from scheduler.decision.record import RESULTS, DecisionRecord
from scheduler.report.explanation import Explanation, NotFound
from scheduler.report.observation import ObserveReport
from scheduler.report.views import NodeView, PodView

Schema = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One thing that may be asked of a list. `values`, if there are any, are all that it may be."""

    name: str
    text: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListAbout:
    """One list: what it holds and what may be asked of it."""

    text: str
    item: type
    parameters: tuple[Parameter, ...]
    more: str = ""
    """How to read it, where that is not plain."""


_PAGING = (
    Parameter(name="limit", text="how many items at most"),
    Parameter(name="continue", text="where the page before ended: the value that came with it"),
)
LISTS = {
    "nodes": ListAbout(
        text="GPU nodes by name: pool, load, power, GPUs by state.",
        item=NodeView,
        parameters=(Parameter(name="pool", text="only nodes of this pool"), *_PAGING),
    ),
    "pods": ListAbout(
        text="Pods that ask for GPUs, by namespace and name: profile, where they are bound or promised.",
        item=PodView,
        parameters=(
            Parameter(name="namespace", text="only pods of this namespace"),
            Parameter(name="node", text="only pods bound to this node"),
            *_PAGING,
        ),
    ),
    "decisions": ListAbout(
        text="The last decisions, newest first, each with its reasons.",
        more=(
            "How a node came to its score: `policies` names the profile's policies with the share of the weight that "
            "each has; the shares add up to 1. `scores` of each node in `best` are what those policies gave it, in "
            "the same order, 0 to 1 and higher is better. The sum of share times score is the node's `score`. "
            "`reasons` counts the nodes that were ruled out, by why."
        ),
        item=DecisionRecord,
        parameters=(
            Parameter(name="namespace", text="only decisions for this namespace"),
            Parameter(name="pod", text="only decisions for pods of this name"),
            Parameter(name="uid", text="only decisions for this pod"),
            Parameter(name="result", text="only decisions that ended so", values=RESULTS),
            *_PAGING,
        ),
    ),
}
EXPLAIN_PATH = "/api/v1/explain/{namespace}/{pod}"
EXPLAIN_TEXT = "One pod: why it is where it is, or why it waits, and what would unblock it."

OBSERVE_PATH = "/api/v1/observe"
OBSERVE_TEXT = "What observing has shown: where pods run, beside where they would with us. An estimate."
OBSERVE_LIMIT = 100
# Of 300 bytes each: 0.3 MB, and a few milliseconds.
OBSERVE_MOST = 1000


def openapi(version: str) -> Schema:
    """Return the OpenAPI 3.1 document."""
    structs = [*(about.item for about in LISTS.values()), Explanation, NotFound, ObserveReport]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    *items, explanation, not_found, observe_report = schemas
    for struct in _structs(*structs):
        _describe(cast("Schema", components[struct.__name__]), struct)
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wattbalance",
            "version": version,
            "description": "What the daemon knows and decides. Asking changes nothing; null means unknown.",
        },
        "paths": {
            f"/api/v1/{name}": {"get": _operation(name, about, item)}
            for (name, about), item in zip(LISTS.items(), items, strict=True)
        }
        | {EXPLAIN_PATH: {"get": _explain_operation(explanation, not_found)}}
        | {OBSERVE_PATH: {"get": _observe_operation(observe_report)}},
        "components": {"schemas": {**components, "Error": error}},
    }


def _operation(name: str, about: ListAbout, item: Schema) -> Schema:
    # A decision is kept under its pod's name, so that every item has one.
    named: Schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    answer: Schema = {
        "type": "object",
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": {"allOf": [named, item]}},
            "continue": {"type": "string", "description": "present if there may be more"},
        },
    }
    errors = {"400": "A bad query."} | (
        {"410": "`continue` is no longer kept."} if name == "decisions" else {}
    )
    return {
        "operationId": f"list_{name}",
        "summary": about.text,
        **({"description": about.more} if about.more else {}),
        "parameters": [
            {"name": each.name, "in": "query", "description": each.text, "schema": _schema(each)}
            for each in about.parameters
        ],
        "responses": {
            "200": {"description": "One page.", "content": _json(answer)},
            **{
                code: {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
                for code, text in errors.items()
            },
        },
    }


def _explain_operation(explanation: Schema, not_found: Schema) -> Schema:
    texts = {"namespace": "the pod's namespace", "pod": "its name"}
    error: Schema = {"$ref": "#/components/schemas/Error"}
    return {
        "operationId": "explain_pod",
        "summary": EXPLAIN_TEXT,
        "description": (
            "`decision` is the last one as it was recorded; `now` is a fresh evaluation, over all nodes that exist. "
            "The terms of a node, added up in their order in double precision, are its score. `unblock` says what "
            "would let a pod run that waits."
        ),
        "parameters": [
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in texts.items()
        ],
        "responses": {
            "200": {
                "description": "What is known of it; its state may be `gone`.",
                "content": _json(explanation),
            },
            "400": {"description": "A bad query.", "content": _json(error)},
            "404": {"description": "Nothing is known of such a pod.", "content": _json(not_found)},
        },
    }


def _observe_operation(report: Schema) -> Schema:
    limit = f"how many pods at most, {OBSERVE_LIMIT} if nothing is said, {OBSERVE_MOST} at most"
    schema = {"type": "integer", "minimum": 0}
    return {
        "operationId": "observe",
        "summary": OBSERVE_TEXT,
        "description": "Both worlds are made of the same measurements. `notes` say what the figures rest on.",
        "parameters": [{"name": "limit", "in": "query", "description": limit, "schema": schema}],
        "responses": {
            "200": {"description": "What is known so far.", "content": _json(report)},
            "400": {
                "description": "A bad query.",
                "content": _json({"$ref": "#/components/schemas/Error"}),
            },
        },
    }


def _schema(parameter: Parameter) -> Schema:
    if parameter.name == "limit":
        return {"type": "integer", "minimum": 1}
    return {"type": "string"} | ({"enum": list(parameter.values)} if parameter.values else {})


def _structs(*items: type) -> list[type[msgspec.Struct]]:
    """The structs that these are made of, themselves included."""
    found: dict[type[msgspec.Struct], None] = {}

    def visit(kind: msgspec.inspect.Type) -> None:
        if isinstance(kind, msgspec.inspect.StructType) and kind.cls not in found:
            found[kind.cls] = None
            for each in kind.fields:
                visit(each.type)
        elif isinstance(kind, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
            visit(kind.item_type)
        elif isinstance(kind, msgspec.inspect.UnionType):
            for member in kind.types:
                visit(member)

    for item in items:
        visit(msgspec.inspect.type_info(item))
    return list(found)


def _describe(schema: Schema, struct: type[msgspec.Struct]) -> None:
    """Give each field the line that stands below it in the code: one text for who reads either."""
    properties = cast("dict[str, Schema]", schema["properties"])
    [body] = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    statements = cast("ast.ClassDef", body).body
    for declared, below in pairwise(statements):
        if isinstance(declared, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            properties[cast("ast.Name", declared.target).id]["description"] = inspect.cleandoc(text)


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
