# shellcheck shell=bash
# The environment of the stages: the project's own when `make venv` has built it, else the python on PATH.
root=$(cd ../.. && pwd)
[ ! -x "$root/.venv/bin/python" ] || PATH=$root/.venv/bin:$PATH
export PATH
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # jobs share the cores among themselves
