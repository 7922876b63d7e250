"""Seccomp profiles from files, in docker's form."""

import json
import os

import pytest

from cowshed.container import profile
from cowshed.errors import BadUsage


@pytest.fixture
def read(tmp_path):
    def made(document, *capabilities):
        path = tmp_path / "profile.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return profile.read(str(path), list(capabilities))

    return made


def rule(*names, **more):
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", "args": None, "comment": "", **more}


def names(found):
    return [name for one in found["syscalls"] for name in one["names"]]


def test_rules_for_capabilities_are_for_those_who_have_them(read):
    document = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
        rule("read"),
        rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        rule("clone", excludes={"caps": ["CAP_SYS_ADMIN"]}),
    ]}  # fmt: skip
    assert names(read(document)) == ["read", "clone"]
    assert names(read(document, "CAP_SYS_ADMIN")) == ["read", "mount"]
    assert read(document)["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}


def test_rules_for_kernels_and_architectures(read, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "5.10.0-23-amd64", "v", "x86_64")))
    found = read({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        rule("old", includes={"minKernel": "4.8"}), rule("new", includes={"minKernel": "5.11"}),
        rule("gone", excludes={"minKernel": "5.9"}), rule("here", includes={"arches": ["amd64", "x32"]}),
        rule("there", includes={"arches": ["s390x"]}), rule("not-here", excludes={"arches": ["amd64"]}),
        {"name": "alone", "action": "SCMP_ACT_ALLOW"},
    ], "archMap": [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ]})  # fmt: skip
    assert names(found) == ["old", "here", "alone"]
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


@pytest.mark.parametrize("document", ["", "[]", '"text"', '{"syscalls": [{"action": "x"}]}', '{"syscalls": [3]}'])
def test_what_is_no_profile_is_told_as_such(read, document):
    with pytest.raises(BadUsage, match="profile"):
        read(document)


def test_a_file_that_is_not_there():
    with pytest.raises(BadUsage, match="No such file"):
        profile.read("/nonexistent", [])
