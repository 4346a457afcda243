"""Asks a running hub for every RPC, and compares with README's status table.

usage: status.py READY_FILE

An RPC that the table calls built must not answer NOT_IMPLEMENTED, every other one must. Requests
are empty: a refusal for another reason shows that the RPC is there.
"""

import json
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

from docs import ROOT, status_table

SECONDS_MAX = 20


def method_names():
    """Full name of every RPC, and whether it is a stream."""
    for path in sorted(ROOT.glob("proto/hub/*/v1/*_service.proto")):
        text = path.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.M).group(1)
        service = re.search(r"^service (\w+)", text, re.M).group(1)
        for name, line in re.findall(r"^  rpc (\w+)(.*)$", text, re.M):
            yield f"{package}.{service}/{name}", "stream " in line


def answer_to_json(ready, method, key):
    """What the hub says to an empty unary call."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    url = f"{ready['http']}/{method}"
    request = urllib.request.Request(url, data=b"{}", headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def answer_to_stream(ready, method, key):
    """What the hub says within a second to a stream with one empty frame."""
    command = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", "{}"]
    command += ["-H", f"authorization: Bearer {key}", f"{ready['http']}/{method}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        return process.communicate(timeout=1)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        # A stream that goes on is one that is built.
        return process.communicate()[0]


def is_built(ready, method, stream):
    ask = answer_to_stream if stream else answer_to_json
    answer = ask(ready, method, ready["adminKey"])
    if "PRODUCT_REQUIRED" in answer:
        answer = ask(ready, method, ready["productKeys"]["psa"])
    if "OPERATOR_ONLY" in answer:
        answer = ask(ready, method, ready["operatorKey"])
    for reason in ("KEY_", "SCOPE_MISSING", "OPERATOR_ONLY", "PRODUCT_REQUIRED"):
        if reason in answer and "KEY_NOT_FOUND" not in answer:
            raise SystemExit(f"{method} was not reached: {answer}")
    return "[NOT_IMPLEMENTED]" not in answer


def main():
    ready = json.loads(pathlib.Path(sys.argv[1]).read_text())
    table = {
        f"{service}/{name}": built
        for service, *columns in status_table()
        for built, names in zip((True, False), columns)
        for name in names
    }
    wrong = total = 0
    for method, stream in method_names():
        total += 1
        said = table[method.rpartition(".")[2]]
        found = is_built(ready, method, stream)
        if found != said:
            wrong += 1
            print(f"{method}: README says {'built' if said else 'not built yet'}, the hub differs")
    print(f"{total} RPCs asked, {wrong} differ from README")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
