"""packaging/kubernetes.yaml against the fields of the Kubernetes API (release 1.37).

kubernetes-api.json has them, made by scripts/kubernetes_api.py: each field, its type, and
whether it has to be there. So it is linted without a cluster and without the network. Not seen by
this: values that a field does not allow, and what a policy of a cluster forbids.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from tests.support.mounting import REPOSITORY

MANIFEST: Final = REPOSITORY / "packaging/kubernetes.yaml"
API: Final[dict[str, dict[str, str]]] = json.loads(
    (REPOSITORY / "tests/packaging/kubernetes-api.json").read_text()
)
VERSIONS: Final = {"Pod": "v1", "Secret": "v1", "PersistentVolumeClaim": "v1"}
PLAIN: Final = {"str": str, "int": int, "bool": bool}


def problems(value: Any, kind: str, at: str) -> Iterator[str]:
    """What the API would not take, each with its place."""
    kind = kind.removesuffix("!")
    if inner := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{at}: no list"
            return
        for number, each in enumerate(value):
            yield from problems(each, inner[1], f"{at}[{number}]")
    elif inner := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        if not isinstance(value, dict):
            yield f"{at}: no map"
            return
        for name, each in value.items():
            yield from problems(name, "str", f"{at} key")
            yield from problems(each, inner[1], f"{at}.{name}")
    elif kind in PLAIN:
        # A bool is an int for Python, and none for the API.
        if type(value) is not PLAIN[kind]:
            yield f"{at}: {value!r} is no {kind}"
    else:
        yield from _fields(value, kind, at)


def _fields(value: Any, kind: str, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: no {kind}"
        return
    known = API[kind]
    for name, each in value.items():
        if name in known:
            yield from problems(each, known[name], f"{at}.{name}")
        else:
            yield f"{at}: {kind} has no field {name!r}"
    for name, wanted in known.items():
        if wanted.endswith("!") and name not in value:
            yield f"{at}: {name!r} is missing"


def judged(document: dict[str, Any]) -> list[str]:
    kind = str(document.get("kind"))
    if document.get("apiVersion") != VERSIONS.get(kind):
        return [f"{kind} of {document.get('apiVersion')} is not known"]
    return list(problems(document, f"V1{kind}", kind))


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def test_the_api_takes_the_manifest() -> None:
    assert [document["kind"] for document in documents()] == [
        "Secret",
        "PersistentVolumeClaim",
        "Pod",
    ]
    assert [found for document in documents() for found in judged(document)] == []


def test_all_that_the_manifest_uses_is_known_down_to_plain_values() -> None:
    for kind, fields in API.items():
        for name, wanted in fields.items():
            for word in re.findall(r"\w+", wanted):
                known = {*API, *PLAIN, "List", "Dict", "bytes", "object", "datetime"}
                assert word in known, (kind, name, word)


def _at(document: dict[str, Any], path: str) -> tuple[Any, Any]:
    *above, last = [int(word) if word.isdigit() else word for word in path.split("/")]
    value: Any = document
    for word in above:
        value = value[word]
    return value, last


SIDECAR: Final = "spec/initContainers/0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (f"{SIDECAR}/volumeMounts/0/mountpropagation", "x", "no field 'mountpropagation'"),
        (f"{SIDECAR}/startupProbe/exec/cmd", ["x"], "no field 'cmd'"),
        (f"{SIDECAR}/startupProbe/periodSeconds", "2", "is no int"),
        (f"{SIDECAR}/securityContext/privileged", "yes", "is no bool"),
        (f"{SIDECAR}/env/0/value", 1, "is no str"),
        (f"{SIDECAR}/args", "--serve", "no list"),
        (f"{SIDECAR}/lifecycle/preStop", ["exec"], "no V1LifecycleHandler"),
        (f"{SIDECAR}/resources/limits/memory", 1, "is no str"),
        ("spec/stopGracePeriod", 120, "no field"),
        ("spec/terminationGracePeriodSeconds", True, "is no int"),
        ("metadata/labels", ["a"], "no map"),
        ("apiVersion", "apps/v1", "not known"),
    ],
)
def test_it_finds_what_is_wrong(path: str, value: Any, said: str) -> None:
    pod = copy.deepcopy(documents()[-1])
    where, last = _at(pod, path)
    where[last] = value
    (found,) = judged(pod)
    assert said in found


@pytest.mark.parametrize(
    "path", ["spec/containers", f"{SIDECAR}/name", "spec/volumes/1/persistentVolumeClaim/claimName"]
)
def test_it_finds_what_is_missing(path: str) -> None:
    pod = copy.deepcopy(documents()[-1])
    where, last = _at(pod, path)
    del where[last]
    (found,) = judged(pod)
    assert found.endswith(f"{last!r} is missing")
