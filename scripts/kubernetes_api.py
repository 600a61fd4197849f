"""The fields of the Kubernetes API that packaging/kubernetes.yaml is linted by.

`python -m scripts.kubernetes_api WHEEL`: from a wheel of PyPI's `kubernetes` (made by its authors
from the API's own OpenAPI document) the kinds of the manifest and all that is below them, each
field with its type, `!` behind those that have to be there. Nothing of the wheel is run.

Called by hand, for a newer API: pip download --no-deps kubernetes
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import zipfile
from pathlib import Path
from typing import Final

TARGET: Final = Path(__file__).resolve().parents[1] / "tests/packaging/kubernetes-api.json"
KINDS: Final = ("V1Pod", "V1Secret", "V1PersistentVolumeClaim")
_WRITTEN: Final = frozenset(("status",))
"""Fields that nobody but the cluster writes."""


def models(wheel: zipfile.ZipFile) -> dict[str, ast.ClassDef]:
    """Every model's class, by name."""
    found = {}
    for name in wheel.namelist():
        if re.fullmatch(r"kubernetes/client/models/\w+\.py", name):
            for node in ast.parse(wheel.read(name)).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name] = node
    return found


def fields(model: ast.ClassDef) -> dict[str, str]:
    """Its fields by their names in a manifest."""
    declared = {
        node.target.id: node
        for node in model.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    types, names = (
        ast.literal_eval(value)
        for name in ("openapi_types", "attribute_map")
        if (value := declared[name].value) is not None
    )
    required = {
        _alias(name, node)
        for name, node in declared.items()
        if not ast.unparse(node.annotation).startswith(("Optional", "ClassVar"))
    }
    return {
        names[name]: kind + ("!" if names[name] in required else "")
        for name, kind in types.items()
        if name not in _WRITTEN
    }


def _alias(name: str, node: ast.AnnAssign) -> str:
    given = node.value.keywords if isinstance(node.value, ast.Call) else []
    for keyword in given:
        if keyword.arg == "serialization_alias" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return name


def reached(all_models: dict[str, ast.ClassDef]) -> dict[str, dict[str, str]]:
    """The kinds, and what they hold."""
    found: dict[str, dict[str, str]] = {}
    waiting = list(KINDS)
    while waiting:
        name = waiting.pop()
        if name in found or name not in all_models:
            continue
        found[name] = fields(all_models[name])
        for kind in found[name].values():
            waiting += re.findall(r"\w+", kind)
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    path = parser.parse_args().wheel
    with zipfile.ZipFile(path) as wheel:
        found = reached(models(wheel))
    lines = [f"{json.dumps(name)}: {json.dumps(held)}" for name, held in found.items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
