# For sanitize.sh and emulate_avx512.sh: a copy of the package with its own native module, and its tests.
# build_aside PYTHON DIRECTORY [CMAKE_OPTION...]; then test_aside [PYTEST_OPTION...]

build_aside() {
    python=$("$1" -c 'import sys; print(sys.executable)') directory=$2
    shift 2
    cmake=$(dirname "$python")/cmake
    [ -x "$cmake" ] || cmake=cmake
    mkdir -p "$(dirname "$directory")"
    "$cmake" -S . -B "$directory" -DPython_EXECUTABLE="$python" "$@" >"$directory.log" 2>&1 ||
        { tail -n 30 "$directory.log" >&2; return 1; }
    "$cmake" --build "$directory" --parallel 2
    rm -rf "$directory/package"
    mkdir -p "$directory/package"
    cp -r deepfast "$directory/package/"
    cp "$directory"/_C.*so "$directory/package/deepfast/"
    # Steps in front of an editable install, also in the processes that the tests start.
    echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]' \
        >"$directory/package/sitecustomize.py"
}

test_aside() {
    PYTHONSAFEPATH=1 PYTHONPATH="$PWD/$directory/package" "$python" -m pytest -q -p no:cacheprovider \
        tests/test_kernels.py tests/test_kernels_grouped.py tests/test_kernels_border.py "$@"
}
