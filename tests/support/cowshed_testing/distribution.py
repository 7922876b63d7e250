"""A client of the distribution specification that shows everything, and what it pushes."""

import http.client
import json

from cowshed import digests

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Answer:
    def __init__(self, answer):
        self.status, self.body = answer.status, answer.read()
        self.headers = answer.headers

    def __getitem__(self, name):
        return self.headers[name]

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json["errors"][0]["code"]


class Client:
    """Requests to one registry. `digest` and the like make what tests push."""

    ended = http.client.HTTPException

    def __init__(self, address):
        self.address = address
        self._connection = None

    def __call__(self, method, path, body=None, **headers):
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.address, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, path, body, sent)
            return Answer(self._connection.getresponse())
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def begin(self, name="a/b", query=""):
        answer = self("POST", f"/v2/{name}/blobs/uploads/{query}", b"")
        assert answer.status == 202, answer.body
        return answer["Location"]

    def blob(self, data, name="a/b", algorithm="sha256"):
        """Push a blob; its digest."""
        found = digest(data, algorithm)
        answer = self("PUT", f"{self.begin(name)}?digest={found}", data)
        assert answer.status == 201, answer.body
        return found

    def image(self, name="a/b", tag="latest", blobs=(b"config", b"layer"), **more):
        """Push an image; the digest of its manifest."""
        config, *layers = [self.blob(data, name) for data in blobs]
        data = manifest(config, layers, sizes=[len(one) for one in blobs], **more)
        answer = self("PUT", f"/v2/{name}/manifests/{tag or digest(data)}", data, Content_Type=MANIFEST)
        assert answer.status == 201, answer.body
        return digest(data)

    def whole(self, name, wanted):
        """The digest of an image all of which is there, as it says."""
        answer = self("GET", f"/v2/{name}/manifests/{wanted}")
        assert answer.status == 200, (wanted, answer.body)
        assert digest(answer.body) == answer["Docker-Content-Digest"]
        manifest = answer.json
        for one in (manifest["config"], *manifest["layers"]):
            blob = self("GET", f"/v2/{name}/blobs/{one['digest']}")
            found = digest(blob.body, one["digest"].partition(":")[0])
            assert (blob.status, len(blob.body), found) == (200, one["size"], one["digest"]), (wanted, blob.status)
        return digest(answer.body)


def digest(data, algorithm="sha256"):
    return f"{algorithm}:{digests.new(algorithm, data).hexdigest()}"


def descriptor(found, size, kind="application/octet-stream"):
    return {"mediaType": kind, "digest": found, "size": size}


def manifest(config, layers=(), sizes=(), **more):
    made = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config, sizes[0] if sizes else 6, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(one, size) for one, size in zip(layers, sizes[1:], strict=False)],
        **more,
    }
    return json.dumps(made).encode()
