"""Load by wrk, a small generator in C that keeps its connections."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ['Result', 'load']

# Numbers without their units: microseconds, and counts.
REPORT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration, summary.bytes,
        latency:percentile(50), latency:percentile(99), bad))
end
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What wrk saw.

    Args:
        requests: that were answered.
        seconds: that it lasted.
        size: bytes of the answers.
        p50: median latency, in seconds.
        p99: 99th percentile, in seconds.
        errors: connections lost, and statuses of 400 and above.
    """

    requests: int
    seconds: float
    size: int
    p50: float
    p99: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def load(url: str, seconds: int, connections: int = 32, script: str = '') -> Result:
    """Ask for so long, on so many connections, by one thread.

    Args:
        url: what to ask for.
        seconds: how long; wrk takes whole ones only.
        connections: how many.
        script: Lua, for requests of another kind.

    Raises:
        subprocess.CalledProcessError: wrk could not.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, 'wrk.lua')
        path.write_text(script + REPORT)
        command = ['wrk', '-t1', f'-c{connections}', f'-d{seconds}s', '--timeout', '30s', '-s', str(path), url]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r'RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)', output)
    assert match is not None, output
    requests, duration, size, p50, p99, errors = (int(number) for number in match.groups())
    return Result(requests, duration / 1e6, size, p50 / 1e6, p99 / 1e6, errors)
