"""Programs that speak HTTP in ways of their own, for the end-to-end tests: WebSocket and streaming gRPC, both ends.

    through_http.py websocket-server PORT | websocket URL
    through_http.py grpc-server PORT      | grpc HOST:PORT CA_FILE
    through_http.py checksum-server PORT

Servers run until they are killed. Users end with 0 if everything came back as it should.
"""

import asyncio
import hashlib
import http.server
import sys
from concurrent import futures

MESSAGES = 2000
STREAM = "/secure.gateway.test.Echo/Stream"


def text(number):
    return f"message {number} " + "x" * (number % 300)


async def websocket_server(port):
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", port):
        await asyncio.get_running_loop().create_future()


async def websocket(url):
    from websockets.asyncio.client import connect

    async with connect(url) as connection:
        # Half of them one by one, half of them without waiting.
        for number in range(MESSAGES // 2):
            await connection.send(text(number))
            assert await connection.recv() == text(number)

        async def send():
            for number in range(MESSAGES // 2, MESSAGES):
                await connection.send(text(number).encode())

        sender = asyncio.create_task(send())
        for number in range(MESSAGES // 2, MESSAGES):
            assert await connection.recv() == text(number).encode()
        await sender
    print(f"{MESSAGES} messages")


def grpc_server(port):
    import grpc

    def echo(requests, context):
        for request in requests:
            yield request
        context.set_trailing_metadata((("ended", "well"),))

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == STREAM:
                return grpc.stream_stream_rpc_method_handler(echo)
            return None

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Handler(),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == int(port)
    server.start()
    server.wait_for_termination()


def grpc_user(address, ca_file):
    import grpc

    with open(ca_file, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    sent = [text(number).encode() for number in range(500)]
    with grpc.secure_channel(address, credentials) as channel:
        call = channel.stream_stream(STREAM)(iter(sent), timeout=20)
        assert list(call) == sent
        assert ("ended", "well") in [tuple(pair) for pair in call.trailing_metadata()]
        # What the resource does not know is its own answer, not ours.
        try:
            channel.unary_unary("/secure.gateway.test.Echo/Nothing")(b"", timeout=20)
            raise AssertionError("an unknown method answers")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    print(f"{len(sent)} messages")


class Checksum(http.server.BaseHTTPRequestHandler):
    """Answers PUT with the checksum of the body."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        digest = hashlib.sha256()
        left = int(self.headers["content-length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            digest.update(piece)
            left -= len(piece)
        self.answer(digest.hexdigest().encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    what, *arguments = sys.argv[1:]
    if what == "websocket-server":
        asyncio.run(websocket_server(int(arguments[0])))
    elif what == "websocket":
        asyncio.run(websocket(arguments[0]))
    elif what == "grpc-server":
        grpc_server(arguments[0])
    elif what == "grpc":
        grpc_user(*arguments)
    elif what == "checksum-server":
        address = ("127.0.0.1", int(arguments[0]))
        http.server.ThreadingHTTPServer(address, Checksum).serve_forever()
    else:
        sys.exit(f"{what}: unknown")


main()
