"""References and platforms: the words that people write and what they mean."""

import pytest

from cowshed.errors import BadUsage
from cowshed.image import manifest, platform, reference
from cowshed.image.platform import Platform

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/me/app:1", "docker.io/me/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b/c:v1.0-x_Y", "127.0.0.1:5000/a/b/c:v1.0-x_Y"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("registry.example/a__b/c---d/e.f", "registry.example/a__b/c---d/e.f:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"r.example/a:1@{DIGEST}", f"r.example/a@{DIGEST}"),
        (f"a@sha512:{HEX}{HEX}", f"docker.io/library/a@sha512:{HEX}{HEX}"),
    ],
)
def test_names(text, name):
    parsed = reference.parse(text)
    assert parsed.name == name
    assert reference.parse(parsed.familiar).name == name
    assert parsed.wanted == (parsed.digest or parsed.tag)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "A", "a:", "a:-x", "a:.x", "a:" + "t" * 129, "a/", "/a", "a//b", "a/-b", "a/b-", "a/b_", "a/.b",
        "a..b", "a___b", "a b", "a\n", "../a", "a/../b", "r.example/", "r.example:port/a", "r.example:99999/a",
        "-r.example/a", "[::1/a", "[xyz]/a", "r..example/a", "x" * 256, f"a@{DIGEST}x", "a@sha256:abc",
        f"a@{DIGEST.upper()}", f"a@md5:{HEX}", f"a@{DIGEST}@{DIGEST}", HEX, "a:1:2", "a?x=1", "a#b",
        "http://r.example/a", "user@r.example/a", "é/a",
    ],
)  # fmt: skip
def test_what_is_no_name(text):
    with pytest.raises(BadUsage) as caught:
        reference.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "sha256:../../etc/passwd",
        "sha256:" + "0" * 63,
        "sha256:" + "G" * 64,
        "sha256",
        "/x:y",
        "sha256:" + "0" * 64 + "/..",
    ],
)
def test_a_digest_is_hex_or_nothing(text):
    """CVE-2024-3727: it becomes part of a path."""
    with pytest.raises(BadUsage):
        reference.check_digest(text)


def test_familiar_names():
    assert reference.familiar("docker.io/library/debian:12") == "debian:12"
    assert reference.familiar("docker.io/me/app:1") == "me/app:1"
    assert reference.familiar("r.example/library/x:1") == "r.example/library/x:1"


# ---------------------------------------------------------------- platforms


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("linux/amd64", ("linux", "amd64", "")),
        ("amd64", ("linux", "amd64", "")),
        ("linux/x86_64", ("linux", "amd64", "")),
        ("aarch64", ("linux", "arm64", "")),
        ("linux/arm64/v8", ("linux", "arm64", "")),
        ("linux/arm", ("linux", "arm", "")),
        ("linux/arm/v7", ("linux", "arm", "")),
        ("linux/arm/7", ("linux", "arm", "")),
        ("armhf", ("linux", "arm", "")),
        ("linux/arm/v6", ("linux", "arm", "v6")),
        ("armel", ("linux", "arm", "v6")),
        ("i386", ("linux", "386", "")),
        ("linux/amd64/v1", ("linux", "amd64", "")),
        ("LINUX/AMD64/V3", ("linux", "amd64", "v3")),
        ("windows/amd64", ("windows", "amd64", "")),
    ],
)
def test_platforms(text, meant):
    assert platform.parse(text) == Platform(*meant)


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/amd64/v2/x", "linux/am d64"])
def test_what_is_no_platform(text):
    with pytest.raises(BadUsage, match="no platform"):
        platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "best"),
    [
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], "linux/amd64"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm64/v8.2", ["linux/arm64", "linux/arm64/v8.1", "linux/arm64/v9"], "linux/arm64/v8.1"),
        ("linux/ppc64le/power9", ["linux/ppc64le/power8", "linux/ppc64le/power10"], "linux/ppc64le/power8"),
        ("linux/riscv64/rva22u64", ["linux/riscv64", "linux/riscv64/rva23u64"], "linux/riscv64"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/amd64", ["windows/amd64", "linux/arm64"], None),
        ("linux/amd64", ["linux/amd64/v2"], None),
    ],
)
def test_the_nearest_variant(wanted, offered, best):
    index = {
        "manifests": [
            {
                "digest": f"sha256:{n:064x}",
                "size": 1,
                "platform": dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False)),
            }
            for n, text in enumerate(offered)
        ]
    }
    index["manifests"].append({"digest": DIGEST, "size": 1, "mediaType": "application/x-unknown"})
    index["manifests"].append({"digest": DIGEST, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}})
    if best is None:
        with pytest.raises(manifest.ImageError, match="nothing for"):
            manifest.choose(index, platform.parse(wanted))
    else:
        assert manifest.choose(index, platform.parse(wanted)).digest == f"sha256:{offered.index(best):064x}"


def test_of_equals_the_first_and_nulls_are_nothing():
    entry = {
        "digest": "sha256:" + "1" * 64,
        "size": 1,
        "platform": {"os": "linux", "architecture": "amd64", "variant": None},
    }
    other = {**entry, "digest": "sha256:" + "2" * 64}
    assert manifest.choose({"manifests": [entry, other]}, platform.parse("amd64")).digest == entry["digest"]
    alone = {"digest": DIGEST, "size": 1, "platform": None, "annotations": None, "urls": None}
    assert manifest.choose({"manifests": [alone]}, platform.parse("amd64")).digest == DIGEST
