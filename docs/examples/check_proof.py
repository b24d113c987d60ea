#!/usr/bin/env python3
"""Check an inclusion proof of Stokehold's decision log: check_proof.py PROOF.json PUBLIC-KEY

Written from docs/AUDIT.md alone, with nothing but Python's standard library, so that
a proof can be checked without the software that made it. Exits with 0 and prints the
entry if the key's owner signed a log that holds it, or else says why not.
"""

import base64
import hashlib
import json
import sys


class Refused(Exception):
    """The proof does not hold."""


# Ed25519, RFC 8032 section 5.1: verification alone, where nothing is secret.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)


def x_of(y, sign):
    """The x of the curve's point with that y, or None."""
    if y >= P:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * SQRT_M1 % P
    if (x * x - xx) % P or (x == 0 and sign):
        return None
    return P - x if x % 2 != sign else x


def point(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x = x_of(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def times(n, p):
    out = (0, 1, 1, 0)
    while n:
        if n & 1:
            out = add(out, p)
        p, n = add(p, p), n >> 1
    return out


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE = (x_of(BASE_Y, 0), BASE_Y, 1, x_of(BASE_Y, 0) * BASE_Y % P)


def signed_by(public, message, signature):
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r, s = point(public), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    left, right = times(s, BASE), add(r, times(k, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


def checkpoint(note, key):
    """The size and root of a signed checkpoint."""
    name, hash_hex, key_b64 = key.strip().split("+", 2)
    public = base64.b64decode(key_b64, validate=True)
    if public[:1] != b"\x01" or hashlib.sha256(name.encode() + b"\n" + public).digest()[:4].hex() != hash_hex:
        raise Refused("the key is not an Ed25519 key of a checkpoint")
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        dash, signer, sig_b64 = line.split(" ")
        sig = base64.b64decode(sig_b64, validate=True)
        if dash == "\u2014" and signer == name and sig[:4].hex() == hash_hex:
            if not signed_by(public[1:], text.encode(), sig[4:]):
                raise Refused("the signature is wrong")
            break
    else:
        raise Refused("the checkpoint is not signed by this key")
    origin, size, root = text.split("\n")[:3]
    if origin != name:
        raise Refused("the checkpoint is of another log")
    return int(size), base64.b64decode(root, validate=True)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root_of(leaf, index, size, path):
    """The root that an audit path leads to (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise Refused("the index is not in the log")
    h, fn, sn = sha256(b"\x00", leaf), index, size - 1
    for p in path:
        if sn == 0:
            raise Refused("the path is too long")
        if fn & 1 or fn == sn:
            h = sha256(b"\x01", p, h)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            h = sha256(b"\x01", h, p)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise Refused("the path is too short")
    return h


TEXTS = ["id", "point", "action", "event_id", "type", "source", "subject", "pipeline", "run", "policy", "rule", "code", "reason", "digest"]
LATER = {17: "actor", 18: "approval", 19: "effect"}


def uvarint(b):
    value = shift = 0
    for i, c in enumerate(b):
        value |= (c & 0x7F) << shift
        if c < 0x80:
            return value, b[i + 1 :]
        shift += 7
    raise Refused("the leaf is cut off")


def entry(leaf):
    """The text fields of a leaf."""
    if leaf[:5] != b"STKL\x01":
        raise Refused("the leaf has an unknown format")
    out, b = {}, leaf[5:]
    while b:
        tag, b = uvarint(b)
        n, b = uvarint(b)
        if n > len(b):
            raise Refused("the leaf is cut off")
        if tag <= len(TEXTS):
            out[TEXTS[tag - 1]] = b[:n].decode("utf-8", "replace")
        elif tag in LATER:
            out[LATER[tag]] = b[:n].decode("utf-8", "replace")
        b = b[n:]
    return out


def main(path, key):
    with open(path, encoding="utf-8") as f:
        doc = json.load(f)
    size, root = checkpoint(doc["checkpoint"], key)
    leaf = base64.b64decode(doc["leaf"], validate=True)
    hashes = [base64.b64decode(h, validate=True) for h in doc["hashes"]]
    if root_of(leaf, doc["index"], size, hashes) != root:
        raise Refused("the entry is not in the log that was signed")
    proven = entry(leaf)
    if proven != {k: doc["entry"][k] for k in [*TEXTS, *LATER.values()] if doc["entry"].get(k)}:
        raise Refused("the entry shown is not the one proven")
    print(f"entry {doc['index']} of {size}: {json.dumps(proven)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (Refused, KeyError, ValueError) as e:
        sys.exit(f"NOT PROVEN: {e}")
