"""Servers that real software only has on bad days, for the lab's outside. Usage: odd.py ADDRESS CERT KEY

Every port is served by a thread; the number says what it does:
  9001 plain  speaks first: a banner, then every line in upper case
  9002 plain  reads to the end of the stream, then says how many bytes came (half-close)
  9003 TLS    9001 inside TLS, the banner naming the SNI
  9004 TLS    accepts, then never answers
  9005 TLS    answers with what is no HTTP
  9006 TLS    promises 100,000 bytes, sends a few, resets
  9007 TLS    WebSocket upgrade, then echoes raw bytes
  9008 TLS    answers with the request head it got, as a body
  9009 plain  accepts, and never says a word (a handshake that stalls)
  9010 plain  9008 without TLS
  9011 TLS    100-continue, then the length of the body
  9012 TLS    refuses an upgrade with 200
  9013 TLS    answers the first request of a connection and resets the second
  9014 TLS    9002 inside TLS
  9015 TLS    answers after 1.5 s
  9016 TLS    says a little and ends without close_notify
"""
import socket, ssl, struct, sys, threading, time

address, cert, key = sys.argv[1:4]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(cert, key)
names = {}


def remember_sni(sock, name, _):
    names[sock] = name


context.sni_callback = remember_sni


def head(sock):
    """Bytes up to the blank line, and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return data, b""
        data += more
    at = data.index(b"\r\n\r\n") + 4
    return data[:at], data[at:]


def length(text):
    for line in text.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def upper(sock):
    sni = names.pop(sock, None)
    sock.sendall(b"220 ready" + (b" " + sni.encode() if sni else b"") + b"\r\n")
    while data := sock.recv(65536):
        sock.sendall(data.upper())


def count(sock):
    total = 0
    while data := sock.recv(65536):
        total += len(data)
    sock.sendall(b"got %d" % total)


def stall(sock):
    while sock.recv(65536):
        pass


def garbage(sock):
    head(sock)
    sock.sendall(b"\x00\x01\x02 this is no HTTP\r\n\r\n")


def truncate(sock):
    head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nonly this")
    # A reset overtakes what is still in the client's kernel.
    time.sleep(0.2)
    reset(sock)


def websocket(sock):
    text, rest = head(sock)
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n")
    if rest:
        sock.sendall(rest)
    while data := sock.recv(65536):
        sock.sendall(data)


def mirror(sock):
    while True:
        text, rest = head(sock)
        if not text:
            return
        missing = length(text) - len(rest)
        while missing > 0:
            more = sock.recv(65536)
            if not more:
                return
            missing -= len(more)
        sock.sendall(b"HTTP/1.1 200 OK\r\nserver: odd\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
        if b"connection: close" in text.lower():
            return


def expect(sock):
    text, rest = head(sock)
    asked = b"100-continue" in text.lower()
    if asked:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    size = length(text)
    while len(rest) < size:
        rest += sock.recv(65536)
    body = b"asked=%d got=%d\n" % (asked, len(rest))
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))


def no_upgrade(sock):
    head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno\n")


def once(sock):
    head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nfirst\n")
    head(sock)
    reset(sock)


def slow(sock):
    head(sock)
    time.sleep(1.5)
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlate\n")


def unannounced(sock):
    sock.sendall(b"cut\n")
    sock.recv(1)


def serve(listener, tls, handle):
    def one(sock):
        try:
            sock.settimeout(60)
            if tls:
                sock = context.wrap_socket(sock, server_side=True)
            handle(sock)
            if tls and handle in (count, upper):
                sock = sock.unwrap()
        except (OSError, ValueError):
            pass
        finally:
            sock.close()

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=one, args=(sock,), daemon=True).start()


SERVERS = [
    (9001, False, upper), (9002, False, count), (9003, True, upper), (9004, True, stall), (9005, True, garbage),
    (9006, True, truncate), (9007, True, websocket), (9008, True, mirror), (9009, False, stall), (9010, False, mirror),
    (9011, True, expect), (9012, True, no_upgrade), (9013, True, once), (9014, True, count), (9015, True, slow),
    (9016, True, unannounced),
]
threads = []
for port, tls, handle in SERVERS:
    listener = socket.create_server((address, port), backlog=128)
    threads.append(threading.Thread(target=serve, args=(listener, tls, handle)))
for thread in threads:
    thread.start()
print("ready", flush=True)
