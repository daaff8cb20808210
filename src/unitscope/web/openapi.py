"""The description of `/api` as OpenAPI: what each path gives, from the pages' own dataclasses."""

from importlib.metadata import version
from typing import Any

import msgspec

from unitscope.web.comparison import ComparisonPage, LayerComparisonPage
from unitscope.web.downloads import TABLE_KINDS
from unitscope.web.notes import Notes, StoredNotes
from unitscope.web.page_records import (
    ClassPage,
    ConceptPage,
    ImagePage,
    LabelPage,
    LayerPage,
    MistakePage,
    NetworkPage,
    PredictionsPage,
    UnitPage,
    UnitsPage,
)
from unitscope.web.unit_lists import ORDERS, SHOWN

PATHS = {
    "/api/index.json": NetworkPage,
    "/api/units.json": UnitsPage,
    "/api/layers/{layer}.json": LayerPage,
    "/api/units/{layer}/{unit}.json": UnitPage,
    "/api/images/{image}.json": ImagePage,
    "/api/labels/{label}.json": LabelPage,
    "/api/concepts/{concept}.json": ConceptPage,
    "/api/predictions.json": PredictionsPage,
    "/api/classes/{position}.json": ClassPage,
    "/api/mistakes/{label_class}-{predicted}.json": MistakePage,
    "/api/compare/index.json": ComparisonPage,
    "/api/compare/{layer}.json": LayerComparisonPage,
}
TABLES = {
    "/index": "The layers.",
    "/predictions": "The most frequent mistakes of the network and the most certain ones.",
    "/units": "The units of all layers that the query asks for, with the columns of layers' tables.",
    "/layers/{layer}": "The units of a layer, with names, labels, statistics and the numbers of added tables: all of them by number, or the list that the query asks for.",
    "/units/{layer}/{unit}": "The peaks of a unit, with their images and boxes.",
    "/units/{layer}/{unit}-troughs": "The troughs of a unit, where nothing rectifies its layer, with their images and boxes.",
    "/units/{layer}/{unit}-sample": "The values of a unit in the sample of images.",
    "/images/{image}": "The peaks that lie in an image.",
    "/labels/{label}": "The units with most peaks among the images of a label.",
    "/concepts/{concept}": "The units of a name.",
    "/classes/{position}": "The units that raise a class, and those that lower it.",
    "/mistakes/{label_class}-{predicted}": "The units that differ in a mistake.",
    "/mistakes/{label_class}-{predicted}-images": "The images of a mistake of which the network is most certain, with the probabilities of both classes.",
}
"""What can be had as `.csv` and `.parquet`, too."""
PICTURES = {
    "/blocks/{layer}/{unit}.png": "The patches of a unit in a square.",
    "/layers/{layer}.png": "The blocks of units of a layer, those of `?units=3,1,7` or the first ones.",
}
PARAMETERS = {
    "layer": ("string", "A layer's name as in the addresses of pages: `#` is written `@`."),
    "unit": ("integer", "A unit's number, from 0."),
    "image": ("integer", "An image's number in the `images` table."),
    "position": ("integer", "A class's position among the network's outputs, from 0."),
    "label_class": ("integer", "The position of the class that images' labels are."),
    "predicted": ("integer", "The position of the class that they are taken for."),
    "label": ("string", "A label as in the addresses of pages."),
    "concept": ("string", "The id of a name, a WordNet id or the name itself, as in the addresses of pages."),
}

LIST: dict[str, tuple[dict[str, Any], str]] = {
    "sort": (
        {"type": "string"},
        "A sort key's column; `unit`, by number, where there is none. Dead units and those without a value come last.",
    ),
    "order": ({"enum": list(ORDERS)}, "Descending where there is none, by number ascending."),
    "show": ({"enum": list(SHOWN)}, "Units of that kind alone."),
    "label": ({"type": "string"}, "Units that can be found by a label which has these letters."),
    "name": ({"type": "string"}, "Units whose name has these letters."),
    "score": ({"type": "number"}, "Units of this predictability or more."),
    "units": ({"type": "string"}, "Of these units, numbers with commas between."),
}
"""What a query may ask for of a layer's units, as the addresses of their page have it."""
NETWORK_LIST = {name: entry for name, entry in LIST.items() if name != "units"} | {
    "layer": ({"type": "string"}, "Units of layers whose names have these letters.")
}
"""Of the units of all layers."""


def describe_api(has_comparison: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description of the paths that give JSON or files; those of a comparison only where two atlases are compared."""
    pages = {path: page for path, page in PATHS.items() if has_comparison or "compare" not in path}
    _, schemas = msgspec.json.schema_components([*pages.values(), StoredNotes, Notes], ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "unitscope",
            "version": version("unitscope"),
            "description": "What the explorer's pages show, as JSON, and files to keep.",
        },
        "paths": {path: _describe_path(path, page) for path, page in pages.items()} | _describe_files() | _describe_notes(),
        "components": {"schemas": schemas},
    }


def _describe_path(path: str, page: type) -> dict[str, Any]:
    described = _describe_get(path, page.__name__, (page.__doc__ or "").strip(), _json_content(page))
    if page is UnitsPage:
        described["parameters"] += [_list_parameter(name) for name in NETWORK_LIST]
    return {"get": described}


def _json_content(record: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{record.__name__}"}}}


def _describe_get(path: str, name: str, description: str, content: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": json_type}}
        for name, (json_type, text) in PARAMETERS.items()
        if f"{{{name}}}" in path
    ]
    responses = {"200": {"description": description, "content": content}}
    if parameters:
        responses["404"] = {"description": "There is no such page."}
    return {"summary": description.splitlines()[0], "operationId": name, "parameters": parameters, "responses": responses}


def _describe_files() -> dict[str, Any]:
    files = {f"{path}.{ending}": (text, kind) for path, text in TABLES.items() for ending, (kind, _) in TABLE_KINDS.items()}
    files |= {path: (text, "image/png") for path, text in PICTURES.items()}
    described = {
        path: {"get": _describe_get(path, path.strip("/"), text, {kind: {"schema": {"type": "string", "format": "binary"}}})}
        for path, (text, kind) in files.items()
    }
    described["/layers/{layer}.png"]["get"]["parameters"].append(_list_parameter("units"))
    for kind in TABLE_KINDS:
        described[f"/layers/{{layer}}.{kind}"]["get"]["parameters"] += [_list_parameter(name) for name in LIST]
        described[f"/units.{kind}"]["get"]["parameters"] += [_list_parameter(name) for name in NETWORK_LIST]
    return described


def _list_parameter(name: str) -> dict[str, Any]:
    schema, text = (LIST | NETWORK_LIST)[name]
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _describe_notes() -> dict[str, Any]:
    get = _describe_get("/notes.json", "notes", (StoredNotes.__doc__ or "").strip(), _json_content(StoredNotes))
    tag = {
        "name": "If-Match",
        "in": "header",
        "required": True,
        "description": "The tag of the notes that these take the place of.",
        "schema": {"type": "string"},
    }
    responses = {
        "204": {"description": "They are kept."},
        "409": {"description": "Notes can't be kept."},
        "412": {"description": "Others have written meanwhile."},
    }
    put = {
        "summary": "Keep these notes.",
        "operationId": "put-notes",
        "parameters": [tag],
        "requestBody": {"required": True, "content": _json_content(Notes)},
        "responses": responses,
    }
    return {"/notes.json": {"get": get, "put": put}}
