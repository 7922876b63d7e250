"""Rules of what is meant for runtimes that start virtual machines (config-vm.md). This one starts none, and says so
instead of running with less isolation than was asked for."""

from __future__ import annotations

from cowshed_runtime.spec.walk import Problem, absolute, filled, mapping, one_of, section, string, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NUMBER = whole(0, 2**63 - 1)

RULES = (
    *section(
        "config-vm.md#hypervisor-object",
        ("vm.hypervisor.path!", absolute),
        ("vm.hypervisor.parameters[]", string),
    ),
    *section(
        "config-vm.md#kernel-object",
        ("vm.kernel!", mapping),
        ("vm.kernel.path!", absolute),
        ("vm.kernel.parameters[]", string),
        ("vm.kernel.initrd", absolute),
    ),
    *section(
        "config-vm.md#image-object",
        ("vm.image.path!", absolute),
        ("vm.image.format!", one_of(("raw", "qcow2", "vdi", "vmdk", "vhd"))),
    ),
    *section(
        "config-vm.md#hwconfig-object",
        ("vm.hwConfig.deviceTree", filled),
        ("vm.hwConfig.vcpus", _NUMBER),
        ("vm.hwConfig.memory", _NUMBER),
        ("vm.hwConfig.dtdevs[]", filled),
        ("vm.hwConfig.iomems[].firstGFN", _NUMBER),
        ("vm.hwConfig.iomems[].firstMFN!", _NUMBER),
        ("vm.hwConfig.iomems[].nrMFNs!", _NUMBER),
        ("vm.hwConfig.irqs[]", _NUMBER),
    ),
)


def together(config: dict[str, Any]) -> Iterator[Problem]:
    """A valid section is refused too."""
    if config.get("vm") is not None:
        text = "this runtime starts no virtual machines: take one that does (cowshed --runtime)"
        yield Problem("vm", text, "config-vm.md")
