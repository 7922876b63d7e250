"""The generated declarations are those of abi.py, and the library has the functions."""

import importlib.util
import os
from pathlib import Path

import pytest

import cowshed_driver_devicemapper
from cowshed_driver_devicemapper.libdevmapper import DeviceMapper, ffi

HERE = Path(__file__).parents[1]


def test_generated_module_is_current(tmp_path):
    spec = importlib.util.spec_from_file_location("abi", HERE / "abi.py")
    abi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(abi)
    abi.HERE = tmp_path  # where it writes
    kept = (Path(cowshed_driver_devicemapper.__file__).parent / "_abi.py").read_text()
    assert abi.generate() == kept, "run `python drivers/devicemapper/abi.py`"


def test_the_library_has_every_function_that_is_declared():
    library = DeviceMapper()
    assert library.library_version().startswith("1.02.")
    names = [name for name in dir(library._library) if name.startswith("dm_")]
    assert len(names) > 20
    assert all(getattr(library._library, name) != ffi.NULL for name in names)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("cowshed_driver_devicemapper.libdevmapper.SONAME", "libdevmapper.so.none")
    with pytest.raises(FileNotFoundError, match=r"libdevmapper\.so\.none is not installed"):
        DeviceMapper()


def test_without_the_kernels_device_mapper_calls_say_so_and_print_nothing(capfd):
    """On a kernel that has it there is nothing to see here; guests test the rest."""
    library = DeviceMapper()
    if os.path.exists("/dev/mapper/control") and "device-mapper" in Path("/proc/misc").read_text():
        assert library.info("cowshed-there-is-none") is None
    else:
        with pytest.raises(OSError, match="device-mapper does not answer"):
            library.driver_version()
        with pytest.raises(OSError, match="look at device x"):
            library.info("x")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
