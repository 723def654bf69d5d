"""A client of QEMU's monitor that does what the tests need."""

import json
import socket
import time


class Monitor:
    def __init__(self, path, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.socket.settimeout(seconds)
        self.file = self.socket.makefile("rw")
        self._read()
        self.ask("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise EOFError("QEMU has gone")
        return json.loads(line)

    def ask(self, command, **arguments):
        said = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.file.write(json.dumps({"execute": command, "arguments": said}) + "\n")
        self.file.flush()
        while True:
            answer = self._read()
            if "return" in answer or "error" in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def job(self, command, **arguments):
        """Run a job of QEMU's, and wait until it has ended."""
        self.ask(command, job_id="job", **arguments)
        while True:
            [job] = [job for job in self.ask("query-jobs") if job["id"] == "job"]
            if job["status"] == "concluded":
                assert "error" not in job, job
                self.ask("job-dismiss", id="job")
                return
            time.sleep(0.02)

    def make_disk(self, path):
        """Let QEMU make a disk image that can hold snapshots, and open it."""
        options = {"driver": "file", "filename": str(path), "size": 0}
        self.job("blockdev-create", options=options)
        self.ask("blockdev-add", driver="file", node_name="file", filename=str(path))
        self.job("blockdev-create", options={"driver": "qcow2", "file": "file", "size": 1 << 20})
        self.ask("blockdev-add", driver="qcow2", node_name="disk", file="file")

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
