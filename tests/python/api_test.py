"""The public API as a program in another language sees it: stubs from proto/, plain grpcio.

Starts a control plane and a node of its own, makes a gateway and a destination, watches the
destination become ready, lists clients, and asks health and reflection. Run by ./test, or:

    SG_BIN_DIR=target/debug .venv/bin/python tests/python/api_test.py
"""

import contextlib
import importlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("SG_BIN_DIR", ROOT / "target" / "debug"))
PATIENCE = 20  # seconds


def generate_stubs(folder: pathlib.Path) -> None:
    """Compiles the public .proto files and makes them importable."""
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    files = sorted(str(path) for path in (ROOT / "proto/securegateway/v1").glob("*.proto"))
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}"]
    arguments += [f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    if protoc.main(arguments) != 0:
        raise RuntimeError("the .proto files do not compile")
    sys.path.insert(0, str(folder))


def free_block(length: int) -> int:
    """First of `length` ports in a row that nobody uses, below those for outgoing connections."""
    for first in range(31_600, 32_700, length):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + length):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


def eventually(what: str, probe):
    """Calls `probe` until it answers something true."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE} s: {what}")
        time.sleep(0.02)


class ApiTest(unittest.TestCase):
    """One installation for all tests; each makes gateways of its own."""

    @classmethod
    def setUpClass(cls):
        cls.cleanup = contextlib.ExitStack()
        cls.addClassCleanup(cls.cleanup.close)
        cls.folder = pathlib.Path(cls.cleanup.enter_context(tempfile.TemporaryDirectory()))
        stubs = cls.folder / "stubs"
        stubs.mkdir()
        generate_stubs(stubs)
        for name in ("gateways", "destinations", "clients", "nodes", "acls", "system", "tokens", "audit"):
            for suffix in ("pb2", "pb2_grpc"):
                module = importlib.import_module(f"securegateway.v1.{name}_{suffix}")
                setattr(cls, f"{name}_{suffix}", module)
        cls.ports = free_block(16)
        cls.address = f"127.0.0.1:{cls.ports}"
        cls.start_control_plane()
        cls.channel = cls.cleanup.enter_context(cls.open_channel())
        cls.metadata = [("authorization", f"Bearer {cls.read('cp/admin.token')}")]
        cls.start_node()

    @classmethod
    def read(cls, name):
        return (cls.folder / name).read_text(encoding="ascii").strip()

    @classmethod
    def start(cls, name, program, *arguments):
        """Starts a program and waits until it says that it is ready."""
        ready = cls.folder / f"{name}.ready"
        log = cls.cleanup.enter_context(open(cls.folder / f"{name}.log", "wb"))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SG_")}
        command = [BINARIES / program, *arguments, "--ready-file", ready]
        command += ["--admin-listen", "127.0.0.1:0", "--data-dir", cls.folder / name]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        cls.cleanup.callback(cls.stop, process)

        def is_ready():
            if process.poll() is not None:
                text = (cls.folder / f"{name}.log").read_text(errors="replace")
                raise AssertionError(f"{program} has ended: {text}")
            return ready.exists()

        eventually(f"{program} is ready", is_ready)

    @staticmethod
    def stop(process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()

    @classmethod
    def start_control_plane(cls):
        store = f"embedded:{cls.folder / 'store.redb'}"
        listen = ("--listen", cls.address, "--http-listen", "127.0.0.1:0")
        cls.start("cp", "sg-control-plane", "--store", store, *listen)

    @classmethod
    def open_channel(cls):
        credentials = grpc.ssl_channel_credentials(cls.read("cp/ca.pem").encode())
        channel = grpc.secure_channel(cls.address, credentials)
        grpc.channel_ready_future(channel).result(PATIENCE)
        return channel

    @classmethod
    def start_node(cls):
        tokens = cls.tokens_pb2_grpc.TokensStub(cls.channel)
        request = cls.tokens_pb2.CreateJoinTokenRequest()
        join = tokens.CreateJoinToken(request, metadata=cls.metadata, timeout=PATIENCE)
        token_file = cls.folder / "join.token"
        token_file.touch(mode=0o600)
        token_file.write_text(join.token, encoding="ascii")
        first = cls.ports + 2
        arguments = ["--control-plane", cls.address, "--join-token-file", token_file]
        arguments += ["--tunnel-listen", f"127.0.0.1:{cls.ports + 1}"]
        arguments += ["--destination-address", "127.0.0.1", "--advertise", "127.0.0.1"]
        arguments += ["--destination-ports", f"{first}-{first + 13}", "--name", "python-node"]
        cls.start("node", "sg-data-plane", *arguments)

    def call(self, method, request):
        return method(request, metadata=self.metadata, timeout=PATIENCE)

    def gateway(self, name):
        stub = self.gateways_pb2_grpc.GatewaysStub(self.channel)
        gateway = self.gateways_pb2.Gateway(name=name)
        return self.call(stub.CreateGateway, self.gateways_pb2.CreateGatewayRequest(gateway=gateway))

    def destination(self, parent, name):
        stub = self.destinations_pb2_grpc.DestinationsStub(self.channel)
        destination = self.destinations_pb2.Destination(
            name=name,
            kind="on-premises",
            protocol="tcp",
            resource_host="127.0.0.1",
            resource_port=5432,
        )
        request = self.destinations_pb2.CreateDestinationRequest(
            parent=parent, destination=destination
        )
        return self.call(stub.CreateDestination, request)

    def test_a_destination_becomes_ready_while_watched(self):
        gateway = self.gateway("watched")
        self.assertRegex(gateway.security_token, "^sgt_[0-9A-Za-z]{64}$")
        destination = self.destination(f"gateways/{gateway.id}", "db")
        self.assertEqual(destination.gateway, "watched")
        self.assertTrue(destination.etag)

        stub = self.destinations_pb2_grpc.DestinationsStub(self.channel)
        request = self.destinations_pb2.WatchDestinationRequest(name="watched/db")
        watch = stub.WatchDestination(request, metadata=self.metadata, timeout=PATIENCE)
        ready = next(state for state in watch if state.status.ready)
        watch.cancel()
        self.assertEqual([node.node for node in ready.status.nodes], ["python-node"])
        self.assertEqual(ready.status.nodes[0].state, "listening")
        self.assertEqual(ready.status.nodes[0].generation_applied, ready.generation)
        # The status is the truth: somebody listens, who resets since the gateway has no client.
        with self.assertRaises(ConnectionResetError):
            address = ("127.0.0.1", ready.cloud_port)
            with socket.create_connection(address, timeout=PATIENCE) as user:
                user.recv(1)
                raise AssertionError("the connection ended in order")

    def test_clients_are_listed(self):
        gateway = self.gateway("clients")
        token_file = self.folder / "client.token"
        token_file.touch(mode=0o600)
        token_file.write_text(gateway.security_token, encoding="ascii")
        stub = self.clients_pb2_grpc.ClientsStub(self.channel)
        request = self.clients_pb2.ListClientsRequest(parent="gateways/clients")
        self.assertEqual(len(self.call(stub.ListClients, request).clients), 0)
        arguments = [gateway.id, "--token-file", token_file, "--noUI"]
        arguments += ["-g", f"127.0.0.1:{self.ports + 1}", "--ca", self.folder / "cp/ca.pem"]
        self.start("client", "sg-client", *arguments)
        clients = eventually(
            "the client is listed", lambda: self.call(stub.ListClients, request).clients
        )
        self.assertEqual(len(clients), 1)
        self.assertEqual(clients[0].gateway_id, gateway.id)
        self.assertEqual([tunnel.node for tunnel in clients[0].tunnels], ["python-node"])

    def test_lists_come_in_pages(self):
        names = [f"page-{number}" for number in range(5)]
        for name in names:
            self.gateway(name)
        stub = self.gateways_pb2_grpc.GatewaysStub(self.channel)
        seen, token, pages = [], "", 0
        while True:
            request = self.gateways_pb2.ListGatewaysRequest(page_size=2, page_token=token)
            answer = self.call(stub.ListGateways, request)
            self.assertLessEqual(len(answer.gateways), 2)
            seen += [gateway.name for gateway in answer.gateways]
            pages += 1
            token = answer.next_page_token
            if not token:
                break
        self.assertGreaterEqual(pages, 3)
        self.assertEqual(len(seen), len(set(seen)))
        self.assertLessEqual(set(names), set(seen))
        # A token is shown when it is made and never again.
        request = self.gateways_pb2.GetGatewayRequest(name="page-0")
        self.assertEqual(self.call(stub.GetGateway, request).security_token, "")

    def test_errors_have_codes_and_reasons(self):
        stub = self.gateways_pb2_grpc.GatewaysStub(self.channel)
        missing = self.gateways_pb2.GetGatewayRequest(name="gateways/missing")
        with self.assertRaises(grpc.RpcError) as caught:
            self.call(stub.GetGateway, missing)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        details = dict(caught.exception.trailing_metadata())["grpc-status-details-bin"]
        self.assertIn(b"secure-gateway", details)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.GetGateway(missing, timeout=PATIENCE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
        self.gateway("twice")
        with self.assertRaises(grpc.RpcError) as caught:
            self.gateway("twice")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.ALREADY_EXISTS)
        with self.assertRaises(grpc.RpcError) as caught:
            self.gateway("Not A Name")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        details = dict(caught.exception.trailing_metadata())["grpc-status-details-bin"]
        self.assertIn(b"name", details)

    def test_health_says_serving(self):
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)

    def test_reflection_names_the_services(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        for name in ("Gateways", "Destinations", "Acls", "Clients", "Nodes", "Tokens"):
            self.assertIn(f"securegateway.v1.{name}", services)
        file = database.FindFileContainingSymbol("securegateway.v1.Gateways")
        self.assertEqual(file.name, "securegateway/v1/gateways.proto")


if __name__ == "__main__":
    unittest.main(verbosity=2)
