"""The Autobahn cases against a raw echo room: `python -m tests.conformance` runs all 301, `--quick` 247."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIMITS = ("--message-rate", "0", "--byte-rate", "0", "--message-size", str(64 * 1024 * 1024))
SKIPPED = ("12.*", "13.*")  # compression, which is not negotiated
SLOW = ("9.*",)  # messages of many MiB
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


def run(quick: bool) -> dict[str, str]:
    """The verdict of each case, by its number."""
    bin = Path(sys.executable).parent
    command = [bin / "session-server", "serve", "--host", "127.0.0.1", "--port", "0", "--pieces", HERE / "pieces_echo"]
    server = subprocess.Popen([*map(str, command), *LIMITS], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip().rpartition(":")[2]
        with tempfile.TemporaryDirectory() as folder:
            skipped = [word for case in (*SKIPPED, *(SLOW if quick else ())) for word in ("-x", case)]
            suite = [str(bin / "kosoku"), "-p", "2", *skipped, "-o", folder, f"127.0.0.1:{port}"]
            subprocess.run(suite, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            (cases,) = json.loads(Path(folder, "index.json").read_text(encoding="utf-8")).values()
        return {number: case["behavior"] for number, case in cases.items()}
    finally:
        server.terminate()
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()


def main() -> int:
    verdicts = run(quick="--quick" in sys.argv)
    failed = {number: verdict for number, verdict in verdicts.items() if verdict not in GOOD}
    loose = [number for number, verdict in verdicts.items() if verdict == "NON-STRICT"]
    sys.stdout.write(
        f"{len(verdicts)} cases, {len(failed)} failed {failed or ''}, not strict: {', '.join(loose) or 'none'}\n"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
