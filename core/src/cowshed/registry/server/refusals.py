"""What a client is told when it does not get what it asked for (distribution-spec, Error Codes)."""

from __future__ import annotations

import json

CODES = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
}
REMOVED = 503  # the status for what was collected, or moved aside as damaged, while it was stored: it can be sent again


class Refusal(Exception):
    """Ends a request with an error of the specification. status: where it is not the code's usual one."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        headers: tuple[tuple[str, str], ...] = (),
        detail: object = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.headers, self.detail = code, message, headers, detail
        self.status = status or CODES[code]

    def body(self) -> bytes:
        error = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail  # type: ignore[assignment]
        return json.dumps({"errors": [error]}).encode() + b"\n"


class Malformed(Exception):
    """No request of HTTP, or one larger than a server has to read: the connection is closed after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
