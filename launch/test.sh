#!/usr/bin/env bash
# Install with the test extra into a virtual environment (first argument, default .venv-test), check
# style, types and layers, build the documentation, and run the tests; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-test}
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet --editable '.[test]'
"$environment/bin/ruff" check .
"$environment/bin/ruff" format --check .
"$environment/bin/mypy"
"$environment/bin/lint-imports"
NO_MKDOCS_2_WARNING=1 "$environment/bin/mkdocs" build --strict
# A process per core: most of the time goes into tracing and compiling, on one core. Each begins with
# its share of whole folders and, when it has none left, takes the rest of another's.
"$environment/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "${@:2}"
