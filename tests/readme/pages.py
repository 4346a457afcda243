"""Runs the curl commands of docs/errors and docs/checks against a running hub.

usage: pages.py READY_FILE

What they answer depends on ids that a reader fills in; that the hub understands them does not:
neither the RPC nor the JSON of the request may be unknown to it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

from docs import CHECKS, ERRORS

SECONDS_MAX = 30
ADDRESS = "127.0.0.1:7070"
NOT_UNDERSTOOD = (
    "is not the request of this method",
    "The hub has no method",
    "[KEY_MISSING]",
    "[KEY_MALFORMED]",
    "[KEY_NOT_RECOGNIZED]",
)


def commands():
    """Name and text of each shell block that calls with curl."""
    for path in sorted([*ERRORS.glob("*.md"), *CHECKS.glob("*.md")]):
        for block in re.findall(r"^```sh\n(curl .*?)^```$", path.read_text(), re.M | re.S):
            yield f"docs/{path.parent.name}/{path.name}", block


def main():
    ready = json.loads(pathlib.Path(sys.argv[1]).read_text())
    keys = {
        "HUB_KEY": ready["adminKey"],
        "HUB_ADMIN_KEY": ready["adminKey"],
        "HUB_OPERATOR_KEY": ready["operatorKey"],
        "HUB_PSA_KEY": ready["productKeys"]["psa"],
        "HUB_PORTAL_KEY": ready["productKeys"]["portal"],
    }
    wrong = total = 0
    for name, block in commands():
        total += 1
        done = subprocess.run(
            ["bash", "-c", block.replace(ADDRESS, ready["grpc"])],
            env=os.environ | keys,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        answer = done.stdout + done.stderr
        if not answer.strip() or any(text in answer for text in NOT_UNDERSTOOD):
            wrong += 1
            print(f"{name}: {block}{answer}")
    print(f"{total} commands of docs/errors and docs/checks run, {wrong} not understood")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
