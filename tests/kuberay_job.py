"""The book's RayJob by KubeRay's own schema: `nox -s kuberay -- CRD.yaml`.

The file is the definition of RayJobs that KubeRay publishes (in its repository,
helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml), or what a cluster has: `kubectl get crd rayjobs.ray.io -o yaml`.
It has 25,000 lines, so it is not kept here.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[1] / "recipes" / "cloud"


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not name: a cluster drops that without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(each) for key, each in schema.items()}
    if isinstance(found.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in found:
        found.setdefault("additionalProperties", False)
    if found.pop("x-kubernetes-int-or-string", False):  # a rule of its own, which the patterns spell out
        found.pop("type", None)
    return found


def compare(ours: dict, theirs: dict, place: str = "") -> int:
    """Assert that our schema's keys are KubeRay's, and of the same type; how many there are."""
    count = 0
    for key, value in ours.get("properties", {}).items():
        assert key in theirs["properties"], f"{place}.{key}: KubeRay has no such key"
        other = theirs["properties"][key]
        assert value.get("type", "string") == other["type"], (
            f"{place}.{key}: KubeRay's is of type {other['type']}"
        )
        count += 1 + compare(value, other, f"{place}.{key}")
        if value.get("type") == "array":
            count += compare(value["items"], other["items"], f"{place}.{key}[]")
    return count


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(
            "kuberay_job.py: give the file with KubeRay's definition of RayJobs: kuberay_job.py CRD.yaml"
        )
    definition = yaml.load(Path(sys.argv[1]).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    theirs = closed(version["schema"]["openAPIV3Schema"])
    theirs["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    validator = Draft202012Validator(theirs)
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
    validator.validate(job)
    keys = compare(json.loads((FOLDER / "rayjob.schema.json").read_text(encoding="utf-8")), theirs)
    pod = ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec")
    for path, key, value in (
        (("spec",), "shutDownAfterJobFinishes", True),
        (("spec",), "backoffLimit", "3"),
        (pod, "restartPolicies", "Never"),
        (pod, "volumes", {}),
    ):
        broken = copy.deepcopy(job)
        inside: Any = broken
        for step in path:
            inside = inside[step]
        inside[key] = value
        assert not validator.is_valid(broken), (path, key)
    print(f"KubeRay's RayJob takes rayjob.yaml, and has the {keys} keys of rayjob.schema.json")


main()
