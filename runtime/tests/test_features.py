"""The structure of `cowshed-runtime features`: each word is put to what uses it (features.md, features-linux.md)."""

import sys

import pytest

from cowshed_linux.capabilities import NUMBERS
from cowshed_runtime import spec
from cowshed_runtime.command.verbs.features import document
from cowshed_runtime.seccomp import program
from cowshed_runtime.settings import Settings

SAID = document()
LINUX = SAID["linux"]
# Those of this byte order that every libseccomp in use knows: a filter is of one byte order
TOGETHER = "AARCH64 ARM MIPSEL MIPSEL64 MIPSEL64N32 PPC64LE RISCV64 X32 X86 X86_64"
PROPERTIES = {
    "": "ociVersionMin ociVersionMax hooks mountOptions linux annotations potentiallyUnsafeConfigAnnotations",
    "linux": "namespaces capabilities cgroup seccomp apparmor selinux intelRdt memoryPolicy mountExtensions netDevices",
    "linux.cgroup": "v1 v2 systemd systemdUser rdma",
    "linux.seccomp": "enabled actions operators archs knownFlags supportedFlags",
    "linux.apparmor": "enabled",
    "linux.selinux": "enabled",
    "linux.intelRdt": "enabled schemata monitoring",
    "linux.memoryPolicy": "modes flags",
    "linux.mountExtensions": "idmap",
    "linux.mountExtensions.idmap": "enabled",
    "linux.netDevices": "enabled",
}


def test_only_what_the_specification_defines_is_said():
    def walk(place, value):
        assert set(value) <= set(PROPERTIES[place].split()), place
        for key, below in value.items():
            if isinstance(below, dict) and key != "annotations":
                walk(f"{place}.{key}".lstrip("."), below)

    walk("", SAID)
    assert all(isinstance(key, str) and key and isinstance(text, str) for key, text in SAID["annotations"].items())


def test_both_versions_are_accepted(caller):
    assert (SAID["ociVersionMin"], SAID["ociVersionMax"]) == ("1.0.0", "1.3.0")
    for key in ("ociVersionMin", "ociVersionMax"):
        caller.config["ociVersion"] = SAID[key]
        assert caller.run("true").returncode == 0


def test_capabilities_are_all_known(box):
    assert LINUX["capabilities"] == list(NUMBERS)
    box.process["capabilities"]["bounding"] = LINUX["capabilities"]
    settings = Settings({**box.process, "args": ["true"]}, box.linux, {})
    assert not [text for text in settings.warnings if "no capability" in text]


@pytest.mark.skipif(sys.byteorder != "little", reason="the architectures are of the other byte order")
@pytest.mark.parametrize(
    "change",
    [
        *({"defaultAction": action} for action in LINUX["seccomp"]["actions"] if "NOTIFY" not in action),
        *({"architectures": [f"SCMP_ARCH_{name}"]} for name in TOGETHER.split()),
        *(
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 1, "valueTwo": 1, "op": operator}]}]}
            for operator in LINUX["seccomp"]["operators"]
        ),
    ],
    ids=str,
)  # fmt: skip
def test_profiles_with_each_word_are_compiled(tmp_path, change):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}
    assert program({**profile, **change}, str(tmp_path))


@pytest.mark.skipif(sys.byteorder != "little", reason="the architectures are of the other byte order")
def test_an_architecture_that_the_library_cannot_have_is_an_error(tmp_path):
    assert {f"SCMP_ARCH_{name}" for name in TOGETHER.split()} < set(LINUX["seccomp"]["archs"])
    with pytest.raises(OSError, match="architecture s390x"):
        program({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}, str(tmp_path))


def test_supported_flags_are_known_ones():
    assert set(LINUX["seccomp"]["supportedFlags"]) <= set(LINUX["seccomp"]["knownFlags"])


@pytest.mark.parametrize("flag", LINUX["seccomp"]["supportedFlags"])
def test_filters_are_loaded_with_each_flag(caller, flag):
    caller.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag]}
    done = caller.run("true")
    assert done.returncode == 0, done


def test_policies_of_memory_become_numbers(box):
    seen = set()
    for mode in LINUX["memoryPolicy"]["modes"]:
        for flags in ([], *([flag] for flag in LINUX["memoryPolicy"]["flags"])):
            policy = {"mode": mode, "flags": flags}
            if mode not in ("MPOL_DEFAULT", "MPOL_LOCAL"):
                policy["nodes"] = "0"
            settings = Settings({**box.process, "args": ["true"]}, {**box.linux, "memoryPolicy": policy}, {})
            seen.add(settings.memory[0])
    assert len(seen) == len(LINUX["memoryPolicy"]["modes"]) * (1 + len(LINUX["memoryPolicy"]["flags"]))


def test_words_that_nobody_has_are_refused(box):
    box.process["args"] = ["true"]
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_DREAM"}
    assert spec.validate(box.config)
