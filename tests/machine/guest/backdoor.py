"""The command channel's guest end: one JSON request per line in, one JSON answer per line out.

Request: {"command": [argument, ...], "stdin": base64, "detach": bool}.
Answer: {"status": exit code, "stdout": base64, "stderr": base64}; none if detached.
"""

import base64
import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PORT = Path("/dev/virtio-ports/backdoor")
CONTAINER = Path("/run/systemd/container")


def run(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as stderr:
        done = subprocess.run(
            request["command"],
            input=base64.b64decode(request["stdin"]),
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
            start_new_session=True,
        )
        stderr.seek(0)
        return {
            "status": done.returncode,
            "stdout": base64.b64encode(done.stdout).decode(),
            "stderr": base64.b64encode(stderr.read()).decode(),
        }


def main() -> None:
    if CONTAINER.exists():
        signal.pause()
    while not PORT.exists():
        time.sleep(0.05)  # udev makes it
    with PORT.open("r+b", buffering=0) as port:
        port.write(b'{"ready": true}\n')
        pending = b""
        while True:
            while b"\n" not in pending:
                data = port.read(65536)
                if not data:
                    time.sleep(0.05)  # the host's end is not connected
                pending += data or b""
            line, _, pending = pending.partition(b"\n")
            request = json.loads(line)
            if request["detach"]:
                subprocess.Popen(request["command"], stdin=subprocess.DEVNULL)
                continue
            answer = json.dumps(run(request)).encode() + b"\n"
            while answer:
                answer = answer[port.write(answer) :]


main()
