"""The generated declarations are those of abi.py."""

import importlib.util
from pathlib import Path

import cowshed_driver_zfs

HERE = Path(__file__).parents[1]


def test_generated_module_is_current(tmp_path):
    spec = importlib.util.spec_from_file_location("zfs_abi", HERE / "abi.py")
    abi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(abi)
    abi.HERE = tmp_path  # where it writes
    kept = (Path(cowshed_driver_zfs.__file__).parent / "_abi.py").read_text()
    assert abi.generate() == kept, "run `python drivers/zfs/abi.py`"
