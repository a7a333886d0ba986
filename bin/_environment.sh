# shellcheck shell=bash
# Sourced by bin/quickstart, bin/run_tests and .ci/run: a virtual environment with the package in it.

# Prints a Python that runs (a version manager's stub may not) and that TensorFlow has packages for.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "Found no Python 3.11, 3.12 or 3.13 with venv on PATH: install one" \
    "(on Debian and Ubuntu with its package python3-venv) and start again." >&2
  return 1
}

# make_environment VENV: creates the virtual environment, unless it is there and whole.
make_environment() {
  local venv=$1 python
  if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    return
  fi
  python=$(find_python)
  echo "Creating the virtual environment $venv with $("$python" --version) ..."
  "$python" -m venv --clear "$venv"
}

# install_package VENV ROOT [EXTRA]: installs the checkout ROOT, editable, unless that was done and
# nothing that the installation reads has changed since.
install_package() {
  local venv=$1 root=$2 extra=${3:-}
  local stamp=$venv/installed_fisher_keras${extra:+_$extra} wanted
  wanted=$(echo "$root" && cd "$root" && cat setup.cfg setup.py pyproject.toml fisher_keras/_version.py)
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  echo "Installing into $venv (about 0.8 GB to download if pip has not kept it) ..."
  "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
    --editable "$root${extra:+[$extra]}"
  printf '%s\n' "$wanted" >"$stamp"
}
