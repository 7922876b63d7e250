"""Rules of a configuration that belong to no area of their own."""

import pytest

from cowshed_runtime import defaults, spec


def said(**changes) -> str:
    config = {**defaults.config(), **changes}
    config["process"]["args"] = ["true"]
    return "; ".join(map(str, spec.validate(config)))


@pytest.mark.parametrize(
    "version", ["1.0.0", "1.2.0", "1.3.0", "1.0.2-dev", "1.10.33", "1.3.0-rc.1+build.007", "1.3.0+-"]
)
def test_versions_of_the_specification(version):
    assert said(ociVersion=version) == ""


@pytest.mark.parametrize(
    "version",
    ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.02.0", "1.x.0", "v1.0.0", "1.0.0-", "1.0.0+", "1.0.0-a..b", "1.0.0-ä",
     "1.²0.0", "1. 0.0", 1.0, None],
)  # fmt: skip
def test_what_is_no_version(version):
    assert "ociVersion" in said(ociVersion=version)


@pytest.mark.parametrize("version", ["0.9.0", "2.0.0"])
def test_versions_that_are_not_known(version):
    assert "is not 1.x" in said(ociVersion=version)


def test_unknown_properties_are_ignored():
    config = defaults.config()
    config["process"]["args"] = ["true"]
    config["nonesuch"] = config["process"]["nonesuch"] = config["linux"]["nonesuch"] = {"deep": [1]}
    config["mounts"][0]["nonesuch"] = True
    assert spec.validate(config) == []


@pytest.mark.parametrize(
    ("vm", "text"),
    [
        ({}, "vm.kernel: is missing"),
        ({"kernel": {}}, "vm.kernel.path: is missing"),
        ({"kernel": {"path": "relative"}}, "vm.kernel.path: must be an absolute path"),
        ({"kernel": {"path": "/k"}, "image": {"path": "/i", "format": "zip"}}, "vm.image.format: must be one of"),
        (
            {"kernel": {"path": "/k"}, "hwConfig": {"iomems": [{"firstMFN": 1}]}},
            "vm.hwConfig.iomems[0].nrMFNs: is missing",
        ),
        ({"kernel": {"path": "/k"}, "hypervisor": {"parameters": []}}, "vm.hypervisor.path: is missing"),
        ({"kernel": {"path": "/k", "initrd": "/i"}}, "vm: this runtime starts no virtual machines"),
    ],
)
def test_virtual_machines(vm, text):
    assert text in said(vm=vm)
