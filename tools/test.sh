#!/bin/sh
# The tests: without arguments all of them, first those that need nothing of this machine, side by side on its cores, then
# those that build networks, start containers or brokers or boot a kernel, one at a time, because they measure. With arguments: pytest.
set -u
cd "$(dirname "$0")/.." || exit
pytest=".venv/bin/python -m pytest"
if [ $# -gt 0 ]; then
    # shellcheck disable=SC2086 # a command and its arguments
    exec $pytest "$@"
fi
status=0
$pytest tests -m "not net and not container and not kafka and not kernel" -n auto --dist loadfile --maxprocesses 4 || status=$?
$pytest tests -m "net or container or kafka or kernel" || status=$?
exit $status
