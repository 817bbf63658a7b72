#!/usr/bin/env bash
# Install with the test extra into a virtual environment (first argument, default .venv-test), check
# the style, and run the tests; remaining arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-test}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet --editable '.[test]'
"$environment/bin/ruff" check .
"$environment/bin/ruff" format --check .
# One process per core, each with whole files: most of the time is compilation, on one core.
"$environment/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "${@:2}"
