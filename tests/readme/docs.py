"""Checks that the documents agree with what they are about.

Every reason of the built domains has a page in docs/errors that states its code, domain and
metadata as proto/hub does; no page is left over; each page of docs/checks has its parts; links and
named files lead somewhere.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ERRORS = ROOT / "docs" / "errors"
CHECKS = ROOT / "docs" / "checks"
DOMAINS = ["core", "platform", "api_keys", "event_bus"]
SECTIONS = ["## What it means", "## Metadata", "## What to do", "## Is a retry safe?", "Related: "]
CHECK_SECTIONS = ["## What is checked", "## When it fails", "## Evidence", "## What to do", "Related: "]
LINES_MAX = 40
VALUE = re.compile(r"((?:^  //.*\n)+)^  ERROR_REASON_(\w+) = \d+;", re.M)
COMMENT = re.compile(r"^([A-Z_]+)(?:, \d{3})?(?:; ([^.]*))?\.")
# Details of google.rpc that a comment names beside the metadata.
DETAILS = {"RetryInfo", "BadRequest lists the fields"}

problems = []


def problem(text):
    problems.append(text)


def reasons(domain):
    """Yields name, code and metadata keys of each reason of a domain."""
    text = (ROOT / "proto/hub" / domain / "v1/error_reason.proto").read_text()
    for comment, name in VALUE.findall(text):
        if name == "UNSPECIFIED":
            continue
        words = " ".join(line.strip().removeprefix("// ") for line in comment.splitlines())
        match = COMMENT.match(words)
        if not match:
            problem(f"{domain}: the comment of {name} does not begin with a code: {words}")
            continue
        named = re.split(r"[,;] ?", match.group(2) or "")
        yield name, match.group(1), [key for key in named if key and key not in DETAILS]


def check_page(name, domain, code, keys):
    path = ERRORS / f"{name}.md"
    if not path.exists():
        problem(f"{path.relative_to(ROOT)} is missing")
        return
    text = path.read_text()
    wanted = [f"# {name}\n", f"`{code}`", f"`hub.{domain}`", f"[{name}]\n", "`callId`"]
    wanted += SECTIONS + [f"`{key}`" for key in keys]
    for part in wanted:
        if part not in text:
            problem(f"docs/errors/{name}.md lacks {part.strip()}")
    if text.count("\n") > LINES_MAX:
        problem(f"docs/errors/{name}.md has more than {LINES_MAX} lines")


def check_pages():
    known = set()
    for domain in DOMAINS:
        for name, code, keys in reasons(domain):
            known.add(name)
            check_page(name, domain, code, keys)
    for path in ERRORS.glob("*.md"):
        if path.stem not in known:
            problem(f"docs/errors/{path.name} is of no reason")
    return len(known)


def check_pages_of_checks():
    """That there is one for each check, and no other, is a test of the server."""
    paths = sorted(CHECKS.glob("*.md"))
    for path in paths:
        text = path.read_text()
        for part in [f"# {path.stem}\n", *CHECK_SECTIONS]:
            if part not in text:
                problem(f"docs/checks/{path.name} lacks {part.strip()}")
        if text.count("\n") > LINES_MAX:
            problem(f"docs/checks/{path.name} has more than {LINES_MAX} lines")
    return len(paths)


def check_links():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    for path in documents:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                problem(f"{path.relative_to(ROOT)} links to {target}, which is not there")
    return len(documents)


def check_paths():
    """Files that the documents name in backticks, from the root, are there."""
    named = 0
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md"]:
        for target in re.findall(r"`([\w.-]+/[\w./-]*)`", path.read_text()):
            named += 1
            if not (ROOT / target).exists():
                problem(f"{path.name} names {target}, which is not there")
    return named


if __name__ == "__main__":
    pages, documents, paths = check_pages(), check_links(), check_paths()
    checks = check_pages_of_checks()
    for text in problems:
        print(text)
    print(f"{pages} reasons, {checks} checks, {paths} paths, links of {documents} documents checked")
    print(f"{len(problems)} problems")
    sys.exit(1 if problems else 0)
