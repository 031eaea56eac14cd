"""A stand-in for an archive that misbehaves: a small HTTP server on loopback, with the answers that a test gives it."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def tags(**values):
    "An answer of QIDO-RS about one thing."
    import pydicom

    numbers = {name: f'{int(pydicom.datadict.tag_for_keyword(name)):08X}' for name in values}
    return {numbers[name]: {'Value': [value]} for name, value in values.items()}


class StandIn:
    """Answers to GET and POST by the end of the path; what was asked is kept.

    An answer is (status, kind, content), or a function of the request's body that returns one; kind 'cut' ends the
    connection in the middle of the content."""

    def __init__(self):
        self.answers, self.asked, self.headers, self.port = {}, [], [], None

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}/dicom-web'

    def find(self, path: str, body: bytes):
        self.asked.append(path)
        for end in sorted(self.answers, key=len, reverse=True):
            if path.split('?')[0].endswith(end):
                answer = self.answers[end]
                return answer(body) if callable(answer) else answer
        return 404, 'text/plain', b''


def as_json(*items):
    return 200, 'application/dicom+json', json.dumps(list(items)).encode()


def as_parts(files):
    "The answer of WADO-RS with these files."
    content = b''.join(b'--mark\r\nContent-Type: application/dicom\r\n\r\n' + file + b'\r\n' for file in files)
    return 200, 'multipart/related; type="application/dicom"; boundary=mark', content + b'--mark--\r\n'


@contextlib.contextmanager
def stand_in():
    "Yields a StandIn that is answering."
    archive = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            archive.headers.append(dict(self.headers))
            status, kind, content = archive.find(self.path, body)
            self.send_response(status)
            self.send_header('Content-Type', kind.removeprefix('cut '))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if kind.startswith('cut ') else content)
            self.close_connection = True

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    archive.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
