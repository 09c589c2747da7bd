"""Backends of one service: each address is another instance, and each answers what the path asks it for.

    backends.py LOG NAME=ADDRESS:PORT...

/status/N           that status, with the body "N from NAME"
/sick/A,B           500 from the instances A and B, 200 from the others
/first/N/KEY        503 for the first N requests with this KEY (over all instances), then 200
/delay/MS           the answer comes that much later
/stall              a head, a part of the body, and then nothing
/reset              the connection is reset before any answer
anything else       200 with the request as JSON: instance, method, path, headers, body

Each request is a line of JSON in LOG.
"""

import asyncio
import json
import socket
import struct
import sys

COUNTS = {}


async def serve(name, log, reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            headers = [line.split(": ", 1) for line in lines[1:] if ": " in line]
            length = next((int(value) for key, value in headers if key.lower() == "content-length"), None)
            chunked = any(key.lower() == "transfer-encoding" for key, _ in headers)
            body = b""
            if length:
                body = await reader.readexactly(length)
            elif chunked:
                while True:
                    size = int(await reader.readline(), 16)
                    body += (await reader.readexactly(size + 2))[:-2]
                    if size == 0:
                        break
            seen = {
                "instance": name,
                "method": method,
                "path": path,
                "headers": {key.lower(): value for key, value in headers},
                "body": body.decode("latin-1"),
            }
            print(json.dumps(seen), file=log, flush=True)
            parts = path.split("?")[0].split("/")
            status, answer, kind = 200, json.dumps(seen), "application/json"
            if parts[1] == "status":
                status, answer, kind = int(parts[2]), f"{parts[2]} from {name}\n", "text/plain"
            elif parts[1] == "sick":
                status = 500 if name in parts[2].split(",") else 200
            elif parts[1] == "first":
                COUNTS[parts[3]] = COUNTS.get(parts[3], 0) + 1
                status = 503 if COUNTS[parts[3]] <= int(parts[2]) else 200
            elif parts[1] == "delay":
                await asyncio.sleep(int(parts[2]) / 1000)
            elif parts[1] == "stall":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbeginning")
                await writer.drain()
                await asyncio.sleep(60)
            elif parts[1] == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return
            data = answer.encode("latin-1")
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nx-instance: {name}\r\n"
                f"server: backend\r\ncontent-length: {len(data)}\r\n\r\n".encode("latin-1") + (b"" if method == "HEAD" else data)
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    log = open(sys.argv[1], "a", encoding="utf-8")
    for spec in sys.argv[2:]:
        name, address = spec.split("=")
        host, port = address.rsplit(":", 1)
        await asyncio.start_server(lambda r, w, name=name: serve(name, log, r, w), host, int(port), backlog=1024)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
