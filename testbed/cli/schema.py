"""`testbed schema`: JSON Schema of scenario, topology or study files, for completion and checks in editors."""

from __future__ import annotations

import json

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def schema(kind: str = typer.Argument("scenario", help="scenario, topology, or a kind of study")) -> None:
    """Print the JSON Schema of one kind of file."""
    from pydantic import BaseModel

    from testbed.errors import InputError
    from testbed.experiment.studies import KINDS
    from testbed.schema import Scenario, Topology

    models: dict[str, type[BaseModel]] = {"scenario": Scenario, "topology": Topology}
    if kind not in models and kind not in KINDS:
        raise InputError("there is no such kind of file", key="KIND", value=kind,
                         remedy=f"use one of {', '.join([*models, *KINDS])}")
    document = (models[kind] if kind in models else KINDS[kind].load_schema()).model_json_schema()
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    if kind == "scenario":  # people write a topology as a path, and policies in short
        document["properties"]["topology"] = {"anyOf": [{"type": "string"}, document["properties"]["topology"]]}
        items = document["properties"]["policies"]["items"]
        document["properties"]["policies"]["items"] = {
            "anyOf": [{"enum": ["device-only", "edge-only", "cloud-only"]}, items]}
    print(json.dumps(document, indent=2))
