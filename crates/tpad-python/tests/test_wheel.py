"""The wheel in environments of its own, and the types of the package.

`cargo xtask python` builds the wheel and says where it is; by hand, set `TPAD_TEST_DIST` to its
directory and `TPAD_TEST_WHEELS` to one with NumPy's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import tpad

from serving import REPOSITORY, Daemon

DIST = os.environ.get("TPAD_TEST_DIST")

USE = """
    import json, sys
    import tpad, tpad.aio, tpad.publish, tpad.router
    client = tpad.connect(sys.argv[1], handoff="required")
    model = client.model("deepseek_v3_fp8")
    block = client.expert(model, *model.key(model.layers[0], 1))
    scale, weight = block.by_role("down", "scale"), block.by_role("down")
    assert scale.numpy().dtype == "float32" and not scale.numpy().flags.writeable
    assert bytes(weight.raw()) and weight.dtype == "F8_E4M3"
    try:
        weight.numpy()
        missing = None
    except ImportError as error:
        missing = str(error)
    logits = client.router(model, list(model.tiers)[0], model.layers[0])
    mask = client.mask(model)
    print(json.dumps({"missing": missing, "modules": sorted(sys.modules)}))
    """


def use(python: Path | str, daemon: Daemon) -> dict[str, object]:
    """What a worker in some environment reports."""
    command = [python, "-c", textwrap.dedent(USE), daemon.address]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    report: dict[str, object] = json.loads(run.stdout)
    return report


def test_the_wheel_needs_numpy_alone(daemon: Daemon, tmp_path: Path) -> None:
    assert DIST, "there is no wheel: `cargo xtask python` builds it"
    (wheel,) = Path(str(DIST)).glob("tpad-*.whl")
    assert "-cp311-abi3-" in wheel.name, "one wheel for all versions from 3.11 on"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"tpad/py.typed", "tpad/_tpad.pyi", "tpad/_tpad.abi3.so"} <= set(names)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python = tmp_path / "empty/bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    # What it needs comes from a directory that has NumPy and nothing else.
    wheels = os.environ["TPAD_TEST_WHEELS"]
    install = ["install", "--quiet", "--no-index", "--find-links", wheels, wheel]
    subprocess.run([*pip, *install], check=True)
    listed = subprocess.run([*pip, "list", "--format", "json"], capture_output=True, check=True)
    packages = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert packages - {"pip", "setuptools"} == {"numpy", "tpad"}
    report = use(python, daemon)
    assert "pip install ml_dtypes" in str(report["missing"])
    said = subprocess.run([python, "-m", "tpad", daemon.address], capture_output=True, check=True)
    assert b"handoff  yes" in said.stdout


def test_nothing_imports_torch_or_ml_dtypes_unless_asked(daemon: Daemon, tmp_path: Path) -> None:
    script = textwrap.dedent(USE).replace("weight.numpy()", "pass")
    (tmp_path / "use.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(tpad.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, tmp_path / "use.py", daemon.address],
        capture_output=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    modules = set(json.loads(run.stdout)["modules"])
    assert "numpy" in modules and not modules & {"torch", "ml_dtypes"}


def test_the_package_is_typed() -> None:
    # The sources: mypy does not look into what is installed.
    place = REPOSITORY / "crates/tpad-python"
    command = [sys.executable, "-m", "mypy", "--no-incremental", "python/tpad"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert run.returncode == 0, run.stdout


def test_stubs_name_what_is_there() -> None:
    """Every public name of the native half has its stub, with a docstring where people see it."""
    import ast

    stub = ast.parse((Path(tpad.__file__).parent / "_tpad.pyi").read_text())
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    classes = {
        node.name: {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for node in stub.body
        if isinstance(node, ast.ClassDef)
    }
    native = tpad._tpad
    for name in (name for name in dir(native) if not name.startswith("_")):
        thing = getattr(native, name)
        if not isinstance(thing, type):
            assert name in functions, name
            continue
        members = {member for member in vars(thing) if not member.startswith("_")}
        mapping = {"get", "items", "keys", "values"} if name == "Block" else set()
        assert members - mapping == {m for m in classes[name] if not m.startswith("_")}, name
        if getattr(tpad, name, None) is thing:
            assert all(getattr(thing, member).__doc__ for member in members), name
