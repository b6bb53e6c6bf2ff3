"""HTTP/3 at both ends of a UDP destination.

`http3:app` is what hypercorn serves: it answers with the body of the request, or with as many bytes as the path says.
As a program it asks for one answer of each kind on one connection:

    python http3.py PORT CA_FILE
"""

import asyncio
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    length = scope["path"].lstrip("/")
    answer = b"x" * int(length) if length.isdigit() else body
    headers = [(b"x-version", scope["http_version"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class User(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.answers = {}

    def quic_event_received(self, event):
        for one in self.http.handle_event(event):
            headers, body, done = self.answers.get(one.stream_id, (None, None, None))
            if isinstance(one, HeadersReceived):
                headers.update(one.headers)
            elif isinstance(one, DataReceived):
                body += one.data
            if done and one.stream_ended and not done.done():
                done.set_result(None)

    async def ask(self, method, path, body=b""):
        stream = self._quic.get_next_available_stream_id()
        answer, done = bytearray(), asyncio.get_running_loop().create_future()
        headers = {}
        self.answers[stream] = (headers, answer, done)
        pseudo = {":method": method, ":scheme": "https", ":authority": "localhost", ":path": path}
        fields = [(name.encode(), value.encode()) for name, value in pseudo.items()]
        self.http.send_headers(stream, fields, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        await asyncio.wait_for(done, 30)
        return headers, bytes(answer)


async def main(port, ca_file):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name="localhost")
    configuration.load_verify_locations(cafile=ca_file)
    async with connect("127.0.0.1", int(port), configuration=configuration, create_protocol=User) as user:
        headers, body = await user.ask("POST", "/echo", b"y" * 100_000)
        assert headers[b":status"] == b"200" and headers[b"x-version"] == b"3", headers
        assert body == b"y" * 100_000, len(body)
        _, body = await user.ask("GET", "/1000000")
        assert body == b"x" * 1_000_000, len(body)
    print("HTTP/3")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
