"""Calls a host again and again until SIGTERM, one connection for every five requests: what is not answered 200 is a line.

    load.py ADDRESS:PORT HOST MARK
"""

import http.client
import signal
import sys
import time

(address, port), host, mark = sys.argv[1].rsplit(":", 1), sys.argv[2], sys.argv[3]
going = True


def end(*_):
    global going
    going = False


def ask(connection, what):
    connection.request("GET", f"/hello?{mark}-{what}", headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, body


def connect():
    return http.client.HTTPConnection(address, int(port), timeout=10)


signal.signal(signal.SIGTERM, end)
begun = False
while going and not begun:
    try:
        begun = ask(connect(), "begin")[0] == 200
    except (OSError, http.client.HTTPException):
        time.sleep(0.02)
print("begun", flush=True)
done = 0
while going:
    connection = connect()
    try:
        for _ in range(5):
            status, body = ask(connection, done)
            done += 1
            if status != 200:
                print(f"failed: {status} {body[:200]}", flush=True)
            time.sleep(0.02)
    except (OSError, http.client.HTTPException) as error:
        done += 1
        print(f"failed: {error!r}", flush=True)
    connection.close()
print(f"requests: {done}", flush=True)
