"""A good client beside hundreds that drip, never read or sit: how long do its webhooks take? As the Procfile runs it.

    python -m tests.benchmarks.slow_clients             200 slow clients
    python -m tests.benchmarks.slow_clients --clients 800

One web process with the threads of `emailsvc.serving`, throw-away PostgreSQL and Redis, everything on loopback.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

from tests.benchmarks.stand import deployed
from tests.slow import KINDS, SlowClients, good_client, percentile
from tests.smtpd import Smtpd
from tests.stack import smtp_url


def run(clients: int, seconds: float, kinds: tuple[str, ...]) -> None:
    with (
        Smtpd(keep_commands=False) as server,
        deployed(smtp_url(server), workers=1, WEB_CONCURRENCY="1") as stack,
    ):
        web = stack.processes[0]
        stack.hang_up()
        _tell("no slow clients", good_client(stack.port, min(10.0, seconds)))
        with SlowClients(stack.port, clients, kinds) as slow:
            time.sleep(3)
            _tell(f"{clients} slow clients", good_client(stack.port, seconds))
        print(
            f"turned out meanwhile: {slow.turned_out.total()}; tracebacks in the log: {web.output().count('Traceback')}"
        )


def _tell(name: str, times: list[float]) -> None:
    median, p99 = percentile(times, 0.5), percentile(times, 0.99)
    print(f"{name}: {len(times)} webhooks, median {median:.3f} s, p99 {p99:.3f} s, worst {times[-1]:.3f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    asked = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    run(asked.clients, asked.seconds, tuple(asked.kinds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
