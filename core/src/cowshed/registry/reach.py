"""How one command reaches a registry, where that differs from what is configured."""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.registry.credentials import Credentials


@record(frozen=True)
class Reach:
    """What a command says for the registry that it names; mirrors of it, whose word is not what the user typed, are
    neither given its credentials nor trusted more for it."""

    credentials: Credentials | None = None  # instead of those that are filed
    authfile: str = ""  # the only file in which credentials are looked for
    tls_verify: bool | None = None  # True: nothing but verified TLS; False: plain HTTP and any certificate will do
    cert_dir: str = ""  # a directory of certificates instead of the usual ones

    def with_credentials(self, known: Credentials) -> Reach:
        return Reach(known, self.authfile, self.tls_verify, self.cert_dir)


AS_CONFIGURED = Reach()
