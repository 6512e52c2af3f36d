"""A hub of our own on the loopback device: the part of the protocol that a download needs, and its faults."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Fault:
    """What goes wrong for requests `METHOD /path` that match, as often as `times` says."""

    match: str
    times: int = 10**9
    status: int = 0  # answered instead of the content
    headers: dict = dataclasses.field(default_factory=dict)
    cut: int = -1  # bytes of the body, then the connection is closed
    delay: float = 0.0  # seconds before anything is said
    pause: float = 0.0  # seconds between pieces of the body
    body: bytes = b""  # with a status


class FakeHub:
    """Serves `models/ID/…` and `datasets/ID/…` of a folder; `asked` has every request, `ranges` those of a part."""

    def __init__(self, folder):
        self.folder, self.asked, self.ranges, self.faults = Path(folder), [], [], []
        self.stopping = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append(f"{self.command} {self.path.partition('?')[0]}")
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
                    hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # so that all have ended when the server is closed
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.running = False

    def __enter__(self):
        self.thread.start()
        self.running = True
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Nobody listens from now on."""
        if self.running:
            self.running = False
            self.stopping.set()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def fail(self, match, **how):
        """A fault from now on."""
        self.faults.append(Fault(match, **how))

    def heal(self):
        """No faults any more, and nothing asked yet."""
        self.faults.clear()
        self.asked.clear()
        self.ranges.clear()

    def commit(self, repository):
        """A hash of all that the repository has."""
        sha = hashlib.sha1()
        for name in self.names(repository):
            sha.update(name.encode() + (repository / name).read_bytes())
        return sha.hexdigest()

    def names(self, repository):
        return sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())

    def fault(self, line):
        for fault in self.faults:
            if fault.times and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return Fault("")

    def answer(self, request):
        path = request.path.partition("?")[0]
        fault = self.fault(f"{request.command} {path}")
        self.stopping.wait(fault.delay)
        if fault.status:
            self.send(request, fault.body, fault, fault.status, **fault.headers)
            return
        api = re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/main)?", path)
        file = re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path)
        repository = self.folder / (api[1] if api else "datasets" if file and file[1] else "models")
        repository /= (api or file)[2] if api or file else "none"
        if not repository.is_dir():
            about = {"X-Error-Code": "RepoNotFound"}
            self.send(request, b'{"error": "Repository not found"}', fault, 404, **about)
        elif api:
            sizes = {name: (repository / name).stat().st_size for name in self.names(repository)}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            about = {"id": api[2], "sha": self.commit(repository), "siblings": siblings}
            self.send(request, json.dumps(about).encode(), fault)
        elif file[3] not in ("main", self.commit(repository)) or not (repository / file[4]).is_file():
            self.send(request, b"", fault, 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self.send_file(request, repository, (repository / file[4]).read_bytes(), fault)

    def send_file(self, request, repository, data, fault):
        about = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit(repository)}
        if part := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            start = int(part[1])
            self.ranges.append((request.path, start))
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(request, data[start:], fault, 206, **about)
        else:
            self.send(request, data, fault, **about)

    def send(self, request, data, fault, status=200, **headers):
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "Content-Type": "application/json"} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        sent = data if fault.cut < 0 else data[: fault.cut]
        step = max(1, len(sent) // 8) if fault.pause else max(1, len(sent))
        for start in range(0, len(sent), step):
            request.wfile.write(sent[start : start + step])
            self.stopping.wait(fault.pause)


def environment(hub_url, home, **more):
    """Of a process whose hub is ours; huggingface_hub reads it at import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return {
        **kept,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "127.0.0.1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def train(hub, home, *arguments, **more):
    """The command of `train.py` in a process whose hub is ours."""
    return _run(hub, home, ["train.py", *arguments], more)


def python(hub, home, code, *arguments, **more):
    """The same of a piece of code."""
    return _run(hub, home, ["-c", code, *arguments], more)


def _run(hub, home, arguments, more):
    line, own = [sys.executable, *arguments], environment(hub.url, home, **more)
    return subprocess.run(line, cwd=ROOT, env=own, capture_output=True, text=True, timeout=120, check=False)


def write_tagged(folder, split, part="00000-of-00001", sentences=12):
    """A split of a corpus as `datasets` pushes one to the hub: classes are numbers, their names in the metadata."""
    names = ["O", "B-PER", "I-PER"]
    feature = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": names}}
    told = {"tokens": {"_type": "Sequence", "feature": {"dtype": "string", "_type": "Value"}}, "ner_tags": feature}
    table = pyarrow.table(
        {
            "tokens": [["Ada", "Lovelace", "is", split]] * sentences,
            "ner_tags": pyarrow.array([[1, 2, 0, 0]] * sentences, pyarrow.list_(pyarrow.int64())),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, folder / f"{split}-{part}.parquet")
