"""An application of a pod. Usage: app.py WHERE..., each an address with a port or the path of a unix socket.

An upgrade is granted and echoes; a chunked body comes back while it still comes in, with trailers that tell its hash and the
trailers of the request; /delay/MS waits first; anything else is answered with what was seen of it.
"""
import hashlib, os, socketserver, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.disable_nagle_algorithm = self.request.family != socket.AF_UNIX
        super().setup()

    def do_GET(self):
        if self.headers.get("upgrade") == "websocket":
            self.send_response(101)
            self.send_header("upgrade", "websocket")
            self.send_header("connection", "Upgrade")
            self.end_headers()
            self.close_connection = True
            while data := self.rfile.read1(65536):
                self.wfile.write(data)
            return
        if self.path.startswith("/delay/"):
            os.write(1, f"waits {self.path}\n".encode())
            time.sleep(int(self.path.split("/")[2]) / 1000)
        client = self.client_address[0] if self.client_address else "unix"
        xfcc = self.headers.get("x-forwarded-client-cert", "-")
        self.whole(f"{self.path} {self.request_version} from {client} for {self.headers['host']} by {xfcc}\n".encode())

    def whole(self, data):
        os.write(1, f"served {self.path}\n".encode())
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            data = self.rfile.read(int(self.headers["content-length"]))
            return self.whole(f"expect={self.headers.get('expect')} got={len(data)}\n".encode())
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-sum, x-asked")
        self.end_headers()
        sum = hashlib.sha256()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data = self.rfile.read(size)
            self.rfile.readline()
            sum.update(data)
            self.wfile.write(b"%x\r\n%b\r\n" % (size, data))
        asked = []
        while line := self.rfile.readline().strip():
            asked.append(line.decode())
        self.wfile.write(f"0\r\nx-sum: {sum.hexdigest()}\r\nx-asked: {','.join(asked)}\r\n\r\n".encode())

    def log_message(self, *args):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 128

class Local(Server):
    address_family = socket.AF_UNIX

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)

for where in sys.argv[1:]:
    if where.startswith("/"):
        server = Local(where, App)
    else:
        host, port = where.rsplit(":", 1)
        server = Server((host, int(port)), App)
    threading.Thread(target=server.serve_forever).start()
print("ready", flush=True)
