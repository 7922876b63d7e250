"""An authority of our own, and certificates that it has signed for a server on loopback and for a client."""

from __future__ import annotations

import ssl
import subprocess


class Certificates:
    """Made in `folder`: ca.crt, server.crt with server.key, client.cert with client.key."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._key("ca")
        self._run("req", "-x509", "-key", "ca.key", "-subj", "/CN=testing", "-days", "2", "-out", "ca.crt",
                  "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
        self._sign("server", "server.crt", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self._sign("client", "client.cert", "extendedKeyUsage=clientAuth")

    def server(self, *, client: bool = False) -> ssl.SSLContext:
        """What a server is made with; client: it wants a certificate of ours from everybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{self.folder}/server.crt", f"{self.folder}/server.key")
        if client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(f"{self.folder}/ca.crt")
        return context

    def _key(self, name: str) -> None:
        self._run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")

    def _sign(self, name: str, out: str, extension: str) -> None:
        self._key(name)
        with open(f"{self.folder}/{name}.ext", "w") as file:
            file.write(extension + "\n")
        self._run("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                  "-days", "2", "-extfile", f"{name}.ext", "-out", out)  # fmt: skip

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
