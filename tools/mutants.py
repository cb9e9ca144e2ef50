#!/usr/bin/env python3
"""Changes the core in small ways, one at a time, and lists the changes that no test notices.

    tools/mutants.py [--shard 3/14] [REGEX]

cargo-mutants makes the changes; `0/1` is every one, and takes days. A regex selects changes by their names. Each meets
the unit tests first, built without the service, because that takes the least time. The survivors meet the integration
tests of their file, and the survivors of these the tests that need the service or the command line.

Needs `cargo install --locked cargo-mutants cargo-nextest`. Results are lines of target/mutants/results.jsonl, and the
logs stand beside it. A run that was stopped resumes if the commit is the same.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

# Files; their integration tests; those that need the service or the command line. The first line that fits counts.
GROUPS = [
    (r"src/pipeline/buffer\.rs", "flush actors hot_path shutdown", "http"),
    (r"src/(pipeline/(state|losses)|model/stats|handle)\.rs", "flush start actors restart shutdown embedding monitor import", "http agreement retention"),
    (r"src/(rollup/.*|monitor\.rs)", "monitor import restart report", "http agreement"),
    (r"src/pipeline/.*", "restart retry flush purge shutdown start actors chaos subscriber traces", "http retention"),
    (r"src/(clock\.rs|retention/.*)", "purge chaos retention traces", "agreement"),
    (r"src/store/sqlite/(migrate|application|pool)\.rs", "migrations pool upgrade bad_input shared_file locks", "http"),
    (r"src/store/.*", "persistence shared_file position purge import bad_input report restart chaos journal upgrade pool migrations", "http retention"),
    (r"src/report/.*", "report position agreement", "http"),
]
UNIT = ["--package", "failure-logger", "--features", "failpoints", "--lib"]
INTEGRATION = ["--package", "failure-logger", "--features", "failpoints"]
SERVICE = ["--package", "failure-logger", "--features", "http,failpoints"]
# A test that hangs has noticed the change.
CONFIG = '[profile.default]\nslow-timeout = { period = "60s", terminate-after = 1 }\n'

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target/mutants"
TREE = OUT / "tree"


def copy_tree():
    """Copies the committed files. The target folder of the copy stays, so that dependencies are built once."""
    TREE.mkdir(parents=True, exist_ok=True)
    for entry in TREE.iterdir():
        if entry.name != "target":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "--touch"], cwd=TREE, input=archive, check=True)
    (OUT / "nextest.toml").write_text(CONFIG)


def group_of(file):
    return next((group for group in GROUPS if re.fullmatch(group[0], file)), None)


def mutants(shard, regex):
    files = sorted(str(path.relative_to(TREE)) for path in TREE.glob("src/**/*.rs"))
    files = [f"--file={file}" for file in files if group_of(file) and not file.endswith("/tests.rs")]
    command = ["cargo", "mutants", "--list", "--json", "--shard", shard, "--sharding", "round-robin", *files]
    listed = json.loads(subprocess.run(command, cwd=TREE, check=True, capture_output=True).stdout)
    return [mutant for mutant in listed if re.search(regex, mutant["name"])]


def mutated(text, mutant):
    """Returns the text of the file with the change."""
    lines = text.splitlines(keepends=True)

    def offset(place):
        return sum(map(len, lines[: place["line"] - 1])) + place["column"] - 1

    span = mutant["span"]
    return text[: offset(span["start"])] + mutant["replacement"] + text[offset(span["end"]) :]


def nextest(arguments, log):
    """Runs tests. Returns `passed`, `failed`, `unbuildable` or `hung`."""
    command = ["cargo", "nextest", "run", "--config-file", str(OUT / "nextest.toml"), "--max-fail=1:immediate"]
    command += ["--no-tests=pass", "--color=never", *arguments]
    environment = dict(os.environ, CARGO_PROFILE_DEV_DEBUG="0", CARGO_INCREMENTAL="1", RUST_BACKTRACE="0")
    environment.pop("CARGO_TARGET_DIR", None)
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command, cwd=TREE, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        code = None
        try:
            code = child.wait(timeout=1800)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return {0: "passed", 100: "failed", 101: "unbuildable"}.get(code, "hung")


def tests(names):
    names = [name for name in names.split() if (TREE / f"tests/{name}.rs").exists()]
    return [argument for name in names for argument in ("--test", name)]


def stages(group, file=""):
    """Returns the arguments of each stage for a file of a group."""
    _, integration, service = group
    # The tests of the module are the likeliest to notice, and few.
    module = re.sub(r"src/(\w+).*", r"\1::", file)
    of_module = f"test(/^{module}/)"
    found = [("unit tests", [*UNIT, "-E", of_module])]
    if file:
        found.append(("unit tests", [*UNIT, "-E", f"not {of_module}"]))
    if tests(integration):
        found.append(("integration tests", INTEGRATION + tests(integration)))
    if tests(service):
        # The module may have code that exists with the service only.
        found.append(("service tests", [*SERVICE, "--lib", *tests(service), "-E", f"not kind(lib) or {of_module}"]))
    return found


def noticed_by(log):
    """Returns the first test that failed. The others were ended with it."""
    pattern = r"^ *(?:FAIL|TIMEOUT|SIGABRT|SIGSEGV|LEAK-FAIL) \[.*?\] (?:\([^)]*\) )?(.*)$"
    found = re.search(pattern, log.read_text(errors="replace"), re.MULTILINE)
    return found[1].strip() if found else ""


def try_mutant(mutant, log):
    file = TREE / mutant["file"]
    original = file.read_text()
    log.write_text(mutant["name"] + "\n")
    try:
        file.write_text(mutated(original, mutant))
        for stage, arguments in stages(group_of(mutant["file"]), mutant["file"]):
            outcome = nextest(arguments, log)
            if outcome == "unbuildable":
                return outcome, ""
            if outcome != "passed":
                return "killed", noticed_by(log) or outcome
        return "survived", ""
    finally:
        file.write_text(original)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="3/14", help="k/n, dealt out round-robin")
    parser.add_argument("--list", action="store_true", help="only list the changes")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a change first")
    parser.add_argument("regex", nargs="?", default="")
    options = parser.parse_args()
    # As for an interrupt: the tests that run are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    copy_tree()
    sample = mutants(options.shard, options.regex)
    print(f"{len(sample)} changes", flush=True)
    if options.list:
        print(*(mutant["name"] for mutant in sample), sep="\n")
        return 0

    if not options.no_baseline:
        needed = [group for group in GROUPS if any(group_of(mutant["file"]) == group for mutant in sample)]
        integration, service = (" ".join(group[nth] for group in needed) for nth in (1, 2))
        for stage, arguments in stages(("", integration, service)):
            if nextest(arguments, OUT / "baseline.log") != "passed":
                print(f"the {stage} fail without a change: see {OUT / 'baseline.log'}")
                return 1

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    results = OUT / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {line["name"]: line for line in lines if line["commit"] == commit}
    if not done:
        results.unlink(missing_ok=True)
        shutil.rmtree(OUT / "logs", ignore_errors=True)
    (OUT / "logs").mkdir(exist_ok=True)
    for nth, mutant in enumerate(sample, 1):
        name = mutant["name"]
        if name not in done:
            began = time.monotonic()
            log = OUT / "logs" / (re.sub(r"[^\w.:]+", "_", name)[:150] + ".log")
            outcome, by = try_mutant(mutant, log)
            line = {"name": name, "outcome": outcome, "by": by, "seconds": round(time.monotonic() - began), "commit": commit}
            with open(results, "a") as file:
                print(json.dumps(line), file=file)
            done[name] = line
        line = done[name]
        print(f"{nth}/{len(sample)} {line['outcome']} in {line['seconds']} s: {name} {line['by']}", flush=True)

    outcomes = [done[mutant["name"]]["outcome"] for mutant in sample]
    print(*(f"{outcomes.count(outcome)} {outcome}" for outcome in ("killed", "survived", "unbuildable")), sep=", ")
    print(*(mutant["name"] for mutant in sample if done[mutant["name"]]["outcome"] == "survived"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
