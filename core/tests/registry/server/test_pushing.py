"""Pushing, as the distribution specification has it."""

import json
import os
import sys

import pytest
from cowshed_testing.distribution import INDEX, MANIFEST, descriptor, digest, manifest

from cowshed.registry.server import garbage, scrub

DATA = bytes(range(256)) * 20


def test_post_then_put(ask):
    location = ask.begin()
    answer = ask("PUT", f"{location}?digest={digest(DATA)}", DATA)
    assert answer.status == 201
    assert answer["Location"] == f"/v2/a/b/blobs/{digest(DATA)}"
    assert ask("GET", answer["Location"]).body == DATA


def test_the_location_of_an_upload_has_an_uuid_of_its_own(ask):
    first, second = ask.begin().rpartition("/")[2], ask.begin().rpartition("/")[2]
    assert first != second
    assert [len(part) for part in first.split("-")] == [8, 4, 4, 4, 12]


def test_single_post(ask):
    answer = ask("POST", f"/v2/a/b/blobs/uploads/?digest={digest(DATA)}", DATA, Content_Type="application/octet-stream")
    assert answer.status == 201
    assert ask("GET", answer["Location"]).body == DATA


def test_single_post_without_a_body_begins_an_upload(ask):
    answer = ask("POST", f"/v2/a/b/blobs/uploads/?digest={digest(DATA)}", b"")
    assert answer.status == 202
    assert ask("PUT", f"{answer['Location']}?digest={digest(DATA)}", DATA).status == 201


def test_chunks(ask):
    location = ask.begin()
    for first, last in ((0, 1023), (1024, 2047), (2048, len(DATA) - 1)):
        answer = ask("PATCH", location, DATA[first : last + 1], Content_Range=f"{first}-{last}")
        assert (answer.status, answer["Range"]) == (202, f"0-{last}")
        location = answer["Location"]
    assert ask("PUT", f"{location}?digest={digest(DATA)}").status == 201
    assert ask("GET", f"/v2/a/b/blobs/{digest(DATA)}").body == DATA


def test_the_last_chunk_may_come_with_the_put(ask):
    location = ask("PATCH", ask.begin(), DATA[:1000], Content_Range="0-999")["Location"]
    answer = ask("PUT", f"{location}?digest={digest(DATA)}", DATA[1000:], Content_Range=f"1000-{len(DATA) - 1}")
    assert answer.status == 201
    assert ask("GET", answer["Location"]).body == DATA


def test_a_stream_without_a_length(ask):
    location = ask.begin()
    answer = ask("PATCH", location, iter([DATA[:100], DATA[100:]]))
    assert (answer.status, answer["Range"]) == (202, f"0-{len(DATA) - 1}")
    assert ask("PUT", f"{answer['Location']}?digest={digest(DATA)}").status == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_the_first_chunk_begins_at_the_beginning(ask, method):
    location = ask.begin()
    query = f"?digest={digest(DATA)}" if method == "PUT" else ""
    assert ask(method, location + query, DATA, Content_Range=f"1-{len(DATA)}").status == 416
    assert ask("GET", location).status == 204
    assert ask("PUT", f"{location}?digest={digest(DATA)}", DATA, Content_Range=f"0-{len(DATA) - 1}").status == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize(("first", "last"), [(2000, 2099), (999, 1098), (0, 99)])
def test_chunks_out_of_order(ask, method, first, last):
    location = ask("PATCH", ask.begin(), DATA[:1000], Content_Range="0-999")["Location"]
    query = f"?digest={digest(DATA)}" if method == "PUT" else ""
    answer = ask(method, location + query, DATA[first : last + 1], Content_Range=f"{first}-{last}")
    assert (answer.status, answer["Range"]) == (416, "0-999")
    there = ask("GET", location)
    assert (there.status, there["Range"], there["Location"]) == (204, "0-999", location)
    assert ask("PUT", f"{location}?digest={digest(DATA)}", DATA[1000:]).status == 201


def test_a_chunk_has_the_length_that_its_range_says(ask):
    assert ask("PATCH", ask.begin(), DATA[:10], Content_Range="0-99").code == "SIZE_INVALID"
    assert ask("PATCH", ask.begin(), DATA[:10], Content_Range="9-0").status == 416


def test_a_wrong_digest(ask):
    location = ask.begin()
    for answer in (
        ask("PUT", f"{location}?digest={digest(b'other')}", DATA),
        ask("POST", f"/v2/a/b/blobs/uploads/?digest={digest(b'other')}", DATA, Content_Type="application/octet-stream"),
    ):
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        assert ask("GET", f"/v2/a/b/blobs/{digest(b'other')}").status == 404
    assert ask("GET", location).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize(
    "wrong", ["md5:" + "0" * 32, "sha256:0", "sha256:" + "G" * 64, "../../etc/passwd", "", "sha256"]
)
def test_a_digest_that_is_none(ask, wrong):
    for answer in (
        ask("PUT", f"{ask.begin()}?digest={wrong}", DATA),
        ask("POST", f"/v2/a/b/blobs/uploads/?digest={wrong}", DATA),
        ask("POST", f"/v2/a/b/blobs/uploads/?mount={wrong}&from=c/d", b""),
    ):
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert ask("PUT", ask.begin(), DATA).code == "DIGEST_INVALID"


@pytest.fixture(params=["sha512", "blake3"])
def algorithm(request):
    if request.param == "blake3":
        pytest.importorskip("blake3")
    return request.param


def test_another_algorithm(ask, algorithm):
    wanted = digest(DATA, algorithm)
    location = ask.begin(query=f"?digest-algorithm={algorithm}")
    assert ask("PATCH", location, DATA).status == 202
    assert ask("PUT", f"{location}?digest={wanted}")["Docker-Content-Digest"] == wanted
    assert ask("GET", f"/v2/a/b/blobs/{wanted}").body == DATA
    assert ask("POST", f"/v2/c/d/blobs/uploads/?mount={wanted}&from=a/b", b"").status == 201
    assert ask("HEAD", f"/v2/c/d/blobs/{wanted}")["Docker-Content-Digest"] == wanted
    assert ask("POST", "/v2/a/b/blobs/uploads/?digest-algorithm=md5", b"").code == "DIGEST_INVALID"
    assert ask("DELETE", f"/v2/a/b/blobs/{wanted}").status == 202


def test_another_algorithm_at_once(ask, algorithm):
    wanted = digest(DATA, algorithm)
    where = f"/v2/a/b/blobs/uploads/?digest={wanted}"
    assert ask("POST", where, DATA[1:], Content_Type="a/b").code == "DIGEST_INVALID"
    assert ask("POST", where, DATA, Content_Type="a/b")["Docker-Content-Digest"] == wanted


def test_another_algorithm_that_was_not_announced(ask, algorithm):
    wanted = digest(DATA, algorithm)
    location = ask("PATCH", ask.begin(), DATA)["Location"]
    assert ask("PUT", f"{location}?digest={wanted}").status == 201


def test_an_image_of_another_algorithm(ask, served, algorithm):
    """Its blobs, its manifest, what refers to it: found, collected and checked as all others."""
    config, layer = (ask.blob(data, algorithm=algorithm) for data in (b"config", DATA))
    data = manifest(config, [layer], [6, len(DATA)])
    named = digest(data, algorithm)
    assert ask("PUT", f"/v2/a/b/manifests/{named}?tag=v1", data, Content_Type=MANIFEST).status == 201
    assert ask("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == named
    about = ask.image(tag="", blobs=(b"x",), subject=descriptor(named, len(data), MANIFEST))
    assert [one["digest"] for one in ask("GET", f"/v2/a/b/referrers/{named}").json["manifests"]] == [about]
    loose = ask.blob(b"loose", algorithm=algorithm)
    assert garbage.collect(served.store, grace=-60).blobs == 1
    assert ask("GET", f"/v2/a/b/blobs/{loose}").status == 404
    assert ask("GET", f"/v2/a/b/blobs/{layer}").body == DATA
    assert list(scrub.look(served.store)) == []
    path = served.store.pool_path(layer)
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(b"wrong")
    assert [one.object for one in scrub.look(served.store) if one.code == "blob.damaged"] == [layer]


def test_without_the_package_of_an_algorithm(ask, served, monkeypatch):
    """What is here can still be read, mounted and kept; nothing is believed that cannot be computed."""
    pytest.importorskip("blake3")
    wanted = ask.blob(DATA, algorithm="blake3")
    data = manifest(ask.blob(b"config"), [wanted], [6, len(DATA)])
    assert ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST).status == 201
    monkeypatch.setitem(sys.modules, "blake3", None)
    assert ask("GET", f"/v2/a/b/blobs/{wanted}").body == DATA
    assert ask("POST", f"/v2/c/d/blobs/uploads/?mount={wanted}&from=a/b", b"").status == 201
    for answer in (
        ask("POST", f"/v2/a/b/blobs/uploads/?digest=blake3:{'0' * 64}", DATA, Content_Type="a/b"),
        ask("POST", "/v2/a/b/blobs/uploads/?digest-algorithm=blake3", b""),
        ask("PUT", f"{ask.begin()}?digest={wanted}", DATA),
    ):
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        assert "cannot be verified here" in answer.json["errors"][0]["message"]
    garbage.collect(served.store, grace=-60)
    assert ask("GET", f"/v2/a/b/blobs/{wanted}").body == DATA
    assert [(one.code, one.severity) for one in scrub.look(served.store)] == [("blob.unverified", "note")]


def test_an_upload_belongs_to_its_repository(ask):
    name = ask.begin("a/b").rpartition("/")[2]
    answer = ask("PATCH", f"/v2/c/d/blobs/uploads/{name}", DATA)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_can_be_cancelled(ask):
    location = ask("PATCH", ask.begin(), DATA)["Location"]
    assert ask("DELETE", location).status == 204
    assert ask("GET", location).code == "BLOB_UPLOAD_UNKNOWN"


def test_a_mount(ask):
    found = ask.blob(DATA, "a/b")
    answer = ask("POST", f"/v2/c/d/blobs/uploads/?mount={found}&from=a/b", b"")
    assert (answer.status, answer["Location"]) == (201, f"/v2/c/d/blobs/{found}")
    assert ask("GET", answer["Location"]).body == DATA
    assert ask("DELETE", f"/v2/a/b/blobs/{found}").status == 202
    assert ask("GET", answer["Location"]).body == DATA


def test_a_mount_from_wherever_it_is(ask):
    found = ask.blob(DATA, "a/b")
    assert ask("POST", f"/v2/c/d/blobs/uploads/?mount={found}", b"").status == 201


def test_a_mount_of_what_is_not_there_begins_an_upload(ask):
    answer = ask("POST", f"/v2/c/d/blobs/uploads/?mount={digest(DATA)}&from=a/b", b"")
    assert answer.status == 202
    assert ask("PUT", f"{answer['Location']}?digest={digest(DATA)}", DATA).status == 201


def test_a_blob_is_stored_once(ask, served):
    found = ask.blob(DATA, "a/b")
    ask.blob(DATA, "c/d")
    paths = [served.store.repository(name).blob_path(found) for name in ("a/b", "c/d")]
    assert len({os.stat(path).st_ino for path in [*paths, served.store.pool_path(found)]}) == 1


def test_a_manifest_is_kept_as_it_came(ask):
    config = ask.blob(b"{}")
    data = (
        b'{ "schemaVersion":2,\r\n "unknown": [1.0, null], "config": '
        + json.dumps(descriptor(config, 2)).encode()
        + b"}\n"
    )
    answer = ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST)
    assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest(data))
    got = ask("GET", answer["Location"])
    assert (got.body, got["Content-Type"], got["Docker-Content-Digest"]) == (data, MANIFEST, digest(data))
    assert ask("GET", f"/v2/a/b/manifests/{digest(data)}").body == data


def test_a_manifest_by_digest_has_that_digest(ask):
    data = manifest(ask.blob(b"config"))
    assert ask("PUT", f"/v2/a/b/manifests/{digest(b'x')}", data, Content_Type=MANIFEST).code == "DIGEST_INVALID"
    wanted = digest(data, "sha512")
    answer = ask("PUT", f"/v2/a/b/manifests/{wanted}", data, Content_Type=MANIFEST)
    assert answer["Docker-Content-Digest"] == wanted
    assert ask("GET", f"/v2/a/b/manifests/{wanted}").body == data


def test_tags_with_a_digest(ask):
    data = manifest(ask.blob(b"config"))
    tags = [f"t{number}" for number in range(30)]
    query = "&".join(f"tag={tag}" for tag in tags)
    answer = ask("PUT", f"/v2/a/b/manifests/{digest(data)}?{query}", data, Content_Type=MANIFEST)
    assert answer.status == 201
    said = [tag.strip() for line in answer.headers.get_all("OCI-Tag") for tag in line.split(",")]
    assert said == tags
    assert ask("GET", "/v2/a/b/manifests/t29").body == data
    many = "&".join(f"tag={number}" for number in range(101))
    assert ask("PUT", f"/v2/a/b/manifests/{digest(data)}?{many}", data, Content_Type=MANIFEST).status == 414


def test_a_manifest_whose_blobs_are_missing(ask):
    answer = ask("PUT", "/v2/a/b/manifests/v1", manifest(digest(b"none")), Content_Type=MANIFEST)
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    assert ask("GET", "/v2/a/b/manifests/v1").status == 404


def test_layers_that_are_elsewhere_need_not_be_here(ask):
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layers = [{**descriptor(digest(b"far"), 5, kind), "urls": ["https://layers.example/far"]}]
    data = json.dumps({"schemaVersion": 2, "config": descriptor(ask.blob(b"config"), 6), "layers": layers}).encode()
    assert ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST).status == 201


def test_an_index_may_name_what_is_not_here(ask):
    data = json.dumps({"schemaVersion": 2, "manifests": [descriptor(digest(b"far"), 5, MANIFEST)]}).encode()
    assert ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=INDEX).status == 201


def test_a_subject_may_be_missing_and_is_acknowledged(ask):
    subject = descriptor(digest(b"not there yet"), 13, MANIFEST)
    data = manifest(ask.blob(b"config"), subject=subject)
    answer = ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST)
    assert (answer.status, answer["OCI-Subject"]) == (201, subject["digest"])


def test_the_largest_manifest(ask):
    config = ask.blob(b"config")
    small = len(manifest(config, annotations={"a": ""}))
    data = manifest(config, annotations={"a": "x" * ((4 << 20) - small)})
    assert len(data) == 4 << 20
    assert ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST).status == 201
    assert ask("PUT", "/v2/a/b/manifests/v2", data + b" ", Content_Type=MANIFEST).status == 413


WRONG = {
    "no JSON": b"{",
    "no object": b"[]",
    "another version": b'{"schemaVersion": 1}',
    "both shapes": b'{"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}',
    "another type": b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}',
    "no config": b'{"schemaVersion": 2, "layers": []}',
    "a digest that is none": b'{"schemaVersion": 2, "config": {"digest": "sha256:../../x", "size": 1}}',
    "a size that is none": b'{"schemaVersion": 2, "config": {"digest": "sha256:' + b"0" * 64 + b'", "size": -1}}',
    "layers that are none": b'{"schemaVersion": 2, "config": {"digest": "sha256:'
    + b"0" * 64
    + b'", "size": 1}, "layers": {}}',
    "a deep one": b"[" * 100_000,
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_manifest(ask, what):
    answer = ask("PUT", "/v2/a/b/manifests/v1", WRONG[what], Content_Type=MANIFEST)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


def test_a_manifest_of_an_unknown_type(ask):
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    assert ask("PUT", "/v2/a/b/manifests/v1", b'{"schemaVersion": 1}', Content_Type=old).code == "MANIFEST_INVALID"


def test_a_type_with_parameters(ask):
    data = manifest(ask.blob(b"config"))
    assert ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=f"{MANIFEST}; charset=utf-8").status == 201
    assert ask("GET", "/v2/a/b/manifests/v1")["Content-Type"] == MANIFEST


def test_a_tag_is_changed_only_if_it_is_as_was_thought(ask):
    first = ask.image(tag="v1", blobs=(b"one",))
    second = manifest(ask.blob(b"two"), sizes=[3])
    put = ("PUT", "/v2/a/b/manifests/v1", second)
    assert ask(*put, Content_Type=MANIFEST, If_Match='"sha256:other"').status == 412
    assert ask(*put, Content_Type=MANIFEST, If_None_Match="*").status == 412
    assert ask("GET", "/v2/a/b/manifests/v1")["ETag"] == f'"{first}"'
    assert ask(*put, Content_Type=MANIFEST, If_Match=f'"{first}"').status == 201
