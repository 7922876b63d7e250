"""The generated declarations are those of abi.py."""

import importlib.util
from pathlib import Path

import cowshed_linux

HERE = Path(__file__).parents[1]


def test_generated_module_is_current(tmp_path):
    spec = importlib.util.spec_from_file_location("abi", HERE / "abi.py")
    abi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(abi)
    abi.HERE = tmp_path  # where it writes
    kept = (Path(cowshed_linux.__file__).parent / "_abi.py").read_text()
    assert abi.generate() == kept, "run `python linux/abi.py`"
