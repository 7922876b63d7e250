"""Hashes of passwords: crypt(3) of libxcrypt, which every Debian has; Python's module of it is gone in 3.13."""

from __future__ import annotations

import ctypes
import hmac
import os

_DATA = 32768  # sizeof(struct crypt_data), crypt.h


def matches(secret: str, hashed: str) -> bool:
    """Whether `hashed` was made of secret ($2y$ bcrypt, $y$ yescrypt, $6$ SHA-512 …). OSError without libcrypt."""
    if "\0" in secret or "\0" in hashed:
        return False
    found = _crypt(secret, hashed)
    return bool(found) and not found.startswith("*") and hmac.compare_digest(found.encode(), hashed.encode())


def make(secret: str, *, cost: int = 10) -> str:
    """A bcrypt hash, as htpasswd files have it. cost: doubles the work with each step. OSError; ValueError."""
    if "\0" in secret or not secret:
        raise ValueError("a password is not empty and has no NUL byte")
    if len(secret.encode()) > 72:
        raise ValueError("bcrypt looks at 72 bytes of a password, and this one is longer")
    alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    salt = "".join(alphabet[byte & 63] for byte in os.urandom(21)) + "O"  # 128 bits: of the last character two
    found = _crypt(secret, f"$2y${cost:02}${salt}")
    if not found or found.startswith("*"):
        raise OSError(0, "libcrypt does not know bcrypt")
    return found


def _crypt(secret: str, setting: str) -> str:
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt_rn.restype = ctypes.c_char_p
    data = ctypes.create_string_buffer(_DATA)
    found = library.crypt_rn(secret.encode(), setting.encode(), data, ctypes.c_int(_DATA))
    return found.decode("ascii") if found else ""
