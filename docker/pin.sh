#!/usr/bin/env bash
# Write the versions that Dockerfile.cuda installs, docker/constraints-cuda<12|13>.txt, anew. Needs uv and PyPI.
# The toolkit's wheels are those of the base image, so that what NVRTC compiles suits every driver that runs the image.
set -euo pipefail
cd "$(dirname "$0")/.."
limits=$(mktemp)
trap 'rm -f "$limits"' EXIT
for toolkit in 12.9.2.0 13.0.3.0; do
    major=${toolkit%%.*}
    printf '%s\n' "cuda-toolkit==$toolkit" "scipy<1.18" >"$limits" # CuPy 14.2 supports SciPy below 1.18
    uv pip compile pyproject.toml --quiet --upgrade --no-annotate --custom-compile-command docker/pin.sh \
        --python-version 3.12 --python-platform x86_64-manylinux_2_28 --constraint "$limits" \
        --extra "cuda$major-wheels" --extra fast --extra plot --extra kafka --extra postgres --extra check \
        --output-file "docker/constraints-cuda$major.txt"
done
