#!/bin/sh
# install-packages.sh INSTALLER VENV REQUIREMENTS...
# Creates a virtual environment without pip and installs packages in it, each checked against its hash. For the Dockerfile.
set -eu
installer=$1 venv=$2 tools=$(mktemp -d)
shift 2
requirements=
for file; do requirements="$requirements --requirement $file"; done

python3 -m venv --without-pip "$venv"
python3 -m venv "$tools"
case $installer in
    uv)
        "$tools"/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement pinned-uv.txt
        "$tools"/bin/uv pip install --quiet --no-cache --python "$venv/bin/python" --compile-bytecode \
            --torch-backend=cpu --require-hashes $requirements
        ;;
    pip)
        "$tools"/bin/pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-cache-dir \
            --require-hashes $requirements
        ;;
    *)
        echo "INSTALLER must be uv or pip, got '$installer'" >&2
        exit 2
        ;;
esac
rm -rf "$tools"

# Remove 190 MB of torch that only compilers and its own tests need. It looks for torch_shm_manager when imported.
for torch in "$venv"/lib/python3*/site-packages/torch; do
    rm -rf "$torch/include" "$torch/test"
    find "$torch/bin" -type f ! -name torch_shm_manager -delete 2>/dev/null || true
done

# Remove the packages' own tests: 15 MB of NumPy, and 45 MB of what torch needs.
find "$venv" -type d -name tests -prune -exec rm -rf {} +
