"""Helm, as the checks use it: both majors, renders as parsed documents."""

import json
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "helm"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
HELMS = [TARGET / "chart-tools" / name for name in ("helm3", "helm4")]


class Refused(Exception):
    """Helm's own words."""


def helm(binary, *arguments):
    """Runs it; its output, or Refused."""
    # Neither plugins nor repositories of whoever runs this.
    with tempfile.TemporaryDirectory() as home:
        places = {f"HELM_{what}_HOME": home for what in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run([binary, *map(str, arguments)], env={**os.environ, **places}, text=True, capture_output=True)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def values_file(directory, values):
    """Values as a file of JSON, which is YAML."""
    path = pathlib.Path(directory) / f"values-{len(list(pathlib.Path(directory).iterdir()))}.json"
    path.write_text(json.dumps(values))
    return path


def template(binary, files=(), values=None, name="understudy", namespace="default"):
    """The documents of a render."""
    return [document for _, document in sourced(binary, files, values, name, namespace)]


def sourced(binary, files=(), values=None, name="understudy", namespace="default"):
    """The documents of a render, each with the template that it is from."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["template", name, CHART, "--namespace", namespace]
        for path in [*files, *([values_file(directory, values)] if values else [])]:
            arguments += ["--values", path]
        text = helm(binary, *arguments)
    found = []
    for part in re.split(r"^---\n", text, flags=re.MULTILINE):
        source = re.match(r"# Source: [^/]+/templates/(\S+)", part)
        document = yaml.safe_load(part)
        if document:
            found.append((source[1], document))
    return found


def key_of(document):
    return document["apiVersion"], document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]


def ordered(documents):
    return sorted(documents, key=key_of)


def the(documents, kind):
    """The one document of a kind that is of the chart's own, not of extraObjects."""
    found = [d for d in documents if d["kind"] == kind and "helm.sh/chart" in d["metadata"].get("labels", {})]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} documents of kind {kind}")
    return found[0]
