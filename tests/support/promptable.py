"""A stand-in for an nnInteractive server: its protocol over HTTP, and a ball instead of a network.

The wire format of arrays is the client's own (`nnInteractive.inference.remote.serialization`). `faults` say what goes
wrong: 'busy', 'html', 'other shape', 'expire' (the session of the first click is closed before the second),
'nothing' (nothing is drawn), 'garbage' (bytes that are no array).
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

RADIUS = 3  # voxels
CAPABILITIES = dict(
    supported_interactions=dict(points=True),
    channel_mapping=dict(points=[0, 1]),
    num_interaction_channels=2,
    supports_initial_label=False,
    supports_zero_shot_label_refinement=False,
    preferred_scribble_thickness=[2, 2, 2],
    interaction_decay=0.9,
    inference_session_version=2,
    license='CC BY-NC-SA 4.0',
    supports_undo=False,
)


def ball(shape, centre) -> tuple[list, np.ndarray]:
    "The box (three pairs) around a ball and its voxels in it, as uint8."
    bounds = [(max(0, c - RADIUS), min(n, c + RADIUS + 1)) for c, n in zip(centre, shape, strict=True)]
    places = np.stack(np.meshgrid(*(np.arange(*pair) for pair in bounds), indexing='ij'), -1)
    return bounds, (np.linalg.norm(places - np.array(centre), axis=-1) <= RADIUS).astype(np.uint8)


class StandIn(ThreadingHTTPServer):
    "What the server was told, for the tests to look at."

    daemon_threads = True

    def __init__(self, key: str | None, faults: tuple):
        super().__init__(('127.0.0.1', 0), Answers)
        self.key, self.faults = key, faults
        self.leases, self.released, self.images, self.points, self.headers_seen = [], [], [], [], []

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class Answers(BaseHTTPRequestHandler):
    "The endpoints that one click needs."

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        server = self.server
        server.headers_seen.append(dict(self.headers))
        if 'html' in server.faults:
            return self.answer(200, b'<html>Welcome</html>', 'text/html')
        if server.key and self.headers.get('Authorization') != f'Bearer {server.key}':
            return self.refuse(401, 'Invalid bearer token')
        if self.path == '/claim':
            return self.claim()
        lease = self.headers.get('X-Lease-Token')
        if 'expire' in server.faults and len(server.points) == 1 and lease == server.leases[0]:
            return self.refuse(410, 'lease expired or unknown')
        if lease not in server.leases and self.path != '/capabilities':
            return self.refuse(410, 'lease expired or unknown')
        return getattr(self, self.path.strip('/'))(body)

    def claim(self):
        if 'busy' in self.server.faults:
            return self.refuse(503, 'server is at capacity')
        self.server.leases.append(f'lease-{len(self.server.leases)}')
        return self.data(dict(lease_token=self.server.leases[-1], idle_timeout_seconds=600))

    def capabilities(self, body):
        self.data(CAPABILITIES)

    def set_image(self, body):
        from nnInteractive.inference.remote.serialization import unpack_array

        image = unpack_array(body)
        self.server.images.append(image)
        shape = (1, 2, 3, 4) if 'other shape' in self.server.faults else image.shape
        self.data(dict(original_image_shape=list(shape)))

    def set_target_buffer(self, body):
        self.data({})

    def reset_interactions(self, body):
        self.data({})

    def release(self, body):
        self.server.released.append(self.headers.get('X-Lease-Token'))
        self.data({})

    def add_point_interaction(self, body):
        from nnInteractive.inference.remote.serialization import pack_array

        asked = json.loads(body)
        self.server.points.append(asked['coordinates'])
        if 'nothing' in self.server.faults:
            return self.prediction(None, b'')
        bounds, drawn = ball(self.server.images[-1].shape[1:], asked['coordinates'])
        packed = b'no array' if 'garbage' in self.server.faults else pack_array(drawn)
        return self.prediction(bounds, packed)

    def prediction(self, bounds, body):
        meta = dict(ran_prediction=True, bbox=bounds)
        self.answer(200, body, 'application/octet-stream', {'X-Meta': json.dumps(meta)})

    def data(self, what):
        self.answer(200, json.dumps(what).encode())

    def refuse(self, status, detail):
        self.answer(status, json.dumps(dict(detail=detail)).encode())

    def answer(self, status, body, kind='application/json', headers=()):
        self.send_response(status)
        for name, value in dict(headers, **{'Content-Type': kind, 'Content-Length': str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def stand_in(*faults: str, key: str | None = None):
    "A server on loopback, as long as the block runs."
    with StandIn(key, faults) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
