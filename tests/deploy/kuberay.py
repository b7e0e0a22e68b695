"""KubeRay's refusals, as far as they concern deploy/: a JSON Schema of the facts beside it.

An API server drops a field that the CRD does not know with a warning; here it is an error.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

VERSION = "1.7.0"
_FACTS = Path(__file__).with_name(f"kuberay-{VERSION}.yaml")
_QUANTITY = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
_TEXT = {"type": "string"}
_SIZE = {"anyOf": [{"type": "integer"}, _TEXT | {"pattern": _QUANTITY}]}
_KINDS: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in ("string", "integer", "number", "boolean")},
    "map": {"type": "object", "additionalProperties": _TEXT},
    "port": {"type": ["integer", "string"]},
    "quantity": _SIZE,
    "quantities": {"type": "object", "additionalProperties": _SIZE},
}


def _schema(fact: Any, objects: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(fact, list):
        return {"type": "array", "items": _schema(fact[0], objects)}
    if isinstance(fact, dict):
        return {
            "type": "object",
            "properties": {name.rstrip("!"): _schema(each, objects) for name, each in fact.items()},
            "required": [name.rstrip("!") for name in fact if name.endswith("!")],
            "additionalProperties": False,
        }
    if fact in objects and fact not in ("RayJob", "RayService"):
        return {"$ref": f"#/$defs/{fact}"}
    return _KINDS.get(fact, {"enum": fact.split("|")})


@cache
def validator(kind: str) -> Any:
    """Of one kind of manifest."""
    objects = yaml.safe_load(_FACTS.read_text("utf-8"))
    definitions = {name: _schema(fact, objects) for name, fact in objects.items()}
    return jsonschema.Draft202012Validator(definitions[kind] | {"$defs": definitions})


def check(manifest: Mapping[str, Any]) -> None:
    """Raises jsonschema's ValidationError."""
    validator(manifest["kind"]).validate(manifest)
