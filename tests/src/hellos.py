"""Bothers a TLS server with hellos, whole and broken, and tells as JSON what each was answered with.

    hellos.py ADDRESS PORT NAME

Each line: {"case": …, "answer": "alert N" | "server hello" | "hello retry" | "other" | "nothing", "end": "close" | "reset" |
"open", "seconds": …}. "nothing" with "open" is a hang.
"""

import json
import os
import random
import socket
import struct
import sys
import time

from tlslite.constants import CipherSuite, ExtensionType, GroupName, SignatureScheme
from tlslite.extensions import (
    ClientKeyShareExtension,
    KeyShareEntry,
    SNIExtension,
    SignatureAlgorithmsExtension,
    SupportedGroupsExtension,
    SupportedVersionsExtension,
    TLSExtension,
)
from tlslite.messages import ClientHello
from tlslite.utils.x25519 import X25519_G, x25519

# Long enough for a busy machine; the server's own limit for a hello that has begun is 5 s.
PATIENCE = 9
SUITES = [
    CipherSuite.TLS_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
]
SIGNATURES = [
    SignatureScheme.ecdsa_secp256r1_sha256,
    SignatureScheme.rsa_pss_rsae_sha256,
    SignatureScheme.rsa_pkcs1_sha256,
]


def share():
    public = x25519(bytearray(os.urandom(32)), bytearray(X25519_G))
    return KeyShareEntry().create(GroupName.x25519, public)


def extension(number, body):
    return TLSExtension(extType=number).create(number, bytearray(body))


def names(*listed):
    return SNIExtension().create(hostNames=[bytearray(name) for name in listed])


def hello(name, tls13=True, suites=None, without=(), more=(), session=b"", sni=None):
    extensions = {
        "sni": sni or names(name.encode()),
        "groups": SupportedGroupsExtension().create([GroupName.x25519, GroupName.secp256r1]),
        "signatures": SignatureAlgorithmsExtension().create(SIGNATURES),
    }
    if tls13:
        extensions["versions"] = SupportedVersionsExtension().create([(3, 4), (3, 3)])
        extensions["shares"] = ClientKeyShareExtension().create([share()])
    listed = [value for key, value in extensions.items() if key not in without] + list(more)
    message = ClientHello().create(
        (3, 3), bytearray(os.urandom(32)), bytearray(session), SUITES if suites is None else suites, extensions=listed
    )
    return bytes(message.write())


def record(body, kind=22, version=(3, 1)):
    return struct.pack(">BBBH", kind, *version, len(body)) + body


def put(message, at, value):
    return message[:at] + bytes([value & 0xFF]) + message[at + 1 :]


def resized(message, size):
    return message[:1] + struct.pack(">I", size)[1:] + message[4:]


def cases(name):
    good = hello(name)
    old = hello(name, tls13=False)
    yield "whole", [record(good)]
    yield "whole, TLS 1.2", [record(old)]
    yield "a byte at a time", [record(good)[at : at + 1] for at in range(len(record(good)))]
    yield "a byte a record", [b"".join(record(good[at : at + 1]) for at in range(len(good)))]
    yield "two records", [record(good[:7]) + record(good[7:])]
    yield "seven bytes a record, slowly", [record(good[at : at + 7]) for at in range(0, len(good), 7)]
    yield "a record version of 3.0", [record(good, version=(3, 0))]
    yield "a record version of 3.9", [record(good, version=(3, 9))]
    yield "a record version of 9.9", [record(good, version=(9, 9))]
    yield "empty records first", [record(b"") * 3 + record(good)]
    yield "forty empty records", [record(b"") * 40]
    yield "a record that is too long", [struct.pack(">BBBH", 22, 3, 1, 0xFFFF) + good + b"x" * 70000]
    yield "only TLS 1.1", [record(old[:4] + b"\x03\x02" + old[6:])]
    yield "only TLS 1.0", [record(old[:4] + b"\x03\x01" + old[6:])]
    yield "only SSL 3.0", [record(old[:4] + b"\x03\x00" + old[6:])]
    yield "an SSL 2.0 hello", [b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x07\x00\xc0" * 7 + b"r" * 16]
    no_versions = SupportedVersionsExtension().create([(3, 2), (3, 1)])
    yield "supported_versions without ours", [record(hello(name, without=["versions"], more=[no_versions]))]
    yield "an empty supported_versions", [record(hello(name, without=["versions"], more=[extension(43, b"\0")]))]
    weak = [0x0004, 0x0005, 0x000A, 0x002F, 0x0035, 0x0003, 0x0001, 0x0039, 0xC013, 0xC014]
    yield "only weak suites", [record(hello(name, tls13=False, suites=weak))]
    yield "no suites", [record(hello(name, suites=[]))]
    yield "suites that nobody knows", [record(hello(name, suites=[0xFAFA, 0xFEFE]))]
    at = 38 + 1
    yield "an odd length of suites", [record(put(good, at + 1, good[at + 1] + 1))]
    yield "a session id of 40 bytes", [record(hello(name, session=b"s" * 40))]
    yield "no signature algorithms, TLS 1.3", [record(hello(name, without=["signatures"]))]
    yield "no groups", [record(hello(name, without=["groups"]))]
    yield "no key share", [record(hello(name, without=["shares"]))]
    unknown = ClientKeyShareExtension().create([KeyShareEntry().create(0x9999, bytearray(b"k" * 32))])
    yield "a share of an unknown group", [record(hello(name, without=["shares"], more=[unknown]))]
    short = ClientKeyShareExtension().create([KeyShareEntry().create(GroupName.x25519, bytearray(b"k" * 5))])
    yield "a share that is too short", [record(hello(name, without=["shares"], more=[short]))]
    yield "an extension twice", [record(hello(name, more=[SignatureAlgorithmsExtension().create(SIGNATURES)]))]
    yield "the name twice", [record(hello(name, more=[names(name.encode())]))]
    yield "two names of one kind", [record(hello(name, sni=names(name.encode(), b"other.example.com")))]
    yield "an empty list of names", [record(hello(name, sni=extension(0, b"\0\0")))]
    yield "an empty name", [record(hello(name, sni=extension(0, b"\0\x03\0\0\0")))]
    yield "a name longer than its list", [record(hello(name, sni=extension(0, b"\0\x05\0\0\x40ab")))]
    yield "a name of control bytes", [record(hello(name, sni=names(b"a\0b\n\xff")))]
    yield "a name of 300 bytes", [record(hello(name, sni=names(b"a" * 300)))]
    yield "an address for a name", [record(hello(name, sni=names(b"192.0.2.1")))]
    yield "a name that no server has", [record(hello("nobody.invalid"))]
    yield "no name", [record(hello(name, without=["sni"]))]
    yield "an ALPN of nothing we speak", [record(hello(name, more=[extension(16, b"\0\x05\x04smtp")]))]
    yield "an empty ALPN", [record(hello(name, more=[extension(16, b"\0\0")]))]
    yield "an ALPN with an empty protocol", [record(hello(name, more=[extension(16, b"\0\x01\0")]))]
    yield "renegotiation that never began", [record(hello(name, tls13=False, more=[extension(0xFF01, b"\x04abcd")]))]
    yield "heartbeats", [record(hello(name, more=[extension(15, b"\x01")]))]
    yield "early data", [record(hello(name, more=[extension(42, b"")]))]
    yield "a psk that is not last", [record(hello(name, more=[extension(41, b"\0\0\0\0"), extension(45, b"\x01\x01")]))]
    yield "extensions cut off", [record(resized(good[:-9], len(good) - 4 - 9))]
    yield "bytes after the extensions", [record(resized(good + b"rest", len(good)))]
    yield "a message that claims 16 MB", [record(resized(good, 0xFFFFFF)) + b"\x16\x03\x01\x40\x00" + b"x" * 16384]
    yield "a message shorter than it is", [record(resized(good, 50))]
    yield "an empty message", [record(b"\x01\0\0\0")]
    yield "a server's hello", [record(put(good, 0, 2))]
    yield "a finished", [record(b"\x14\0\0\x0c" + b"f" * 12)]
    yield "an alert first", [record(b"\x02\x28", kind=21)]
    yield "application data first", [record(b"GET / HTTP/1.1\r\n\r\n", kind=23)]
    yield "a change of cipher first", [record(b"\x01", kind=20)]
    yield "a heartbeat first", [record(b"\x01\x40\x00", kind=24)]
    yield "a hello within the hello's record", [record(good + good)]
    yield "plain HTTP", [b"GET / HTTP/1.1\r\nHost: " + name.encode() + b"\r\n\r\n"]
    yield "zeros", [b"\0" * 600]
    yield "half a hello, then the end", [record(good)[:60], None]
    yield "a record's head, then the end", [record(good)[:5], None]
    chosen = random.Random(20261121)
    for number in range(160):
        broken = good
        for _ in range(chosen.randrange(1, 4)):
            broken = put(broken, chosen.randrange(len(broken)), chosen.randrange(256))
        yield f"flipped {number}", [record(broken), None]
    for number in range(40):
        noise = bytes(chosen.randrange(256) for _ in range(chosen.randrange(1, 400)))
        yield f"noise {number}", [record(noise), None]
        yield f"noise in a hello {number}", [record(b"\x01" + struct.pack(">I", len(noise))[1:] + noise), None]


def ask(address, parts):
    begun = time.monotonic()
    answer, end = b"", "open"
    with socket.create_connection(address, timeout=PATIENCE) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts:
                if part is None:
                    stream.shutdown(socket.SHUT_WR)
                    break
                stream.sendall(part)
                if len(parts) > 2:
                    time.sleep(0.001)
        except OSError:
            pass  # It may refuse before it has read all: what it says is read below.
        try:
            while len(answer) < 7:
                data = stream.recv(4096)
                if not data:
                    end = "close"
                    break
                answer += data
            if told(answer).startswith("alert"):
                end = "close" if stream.recv(4096) == b"" else "open"
        except ConnectionResetError:
            end = "reset"
        except TimeoutError:
            pass
    return told(answer), end, time.monotonic() - begun


RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def told(answer):
    if not answer:
        return "nothing"
    if len(answer) >= 7 and answer[0] == 21:
        return f"alert {answer[6]}"
    if len(answer) >= 6 and answer[0] == 22 and answer[5] == 2:
        return "hello retry" if RETRY in answer else "server hello"
    return "other"


def main():
    address = (sys.argv[1], int(sys.argv[2]))
    for case, parts in cases(sys.argv[3]):
        answer, end, seconds = ask(address, parts)
        print(json.dumps({"case": case, "answer": answer, "end": end, "seconds": round(seconds, 3)}), flush=True)


main()
