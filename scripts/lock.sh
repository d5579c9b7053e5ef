#!/usr/bin/env bash
# Write requirements/run.txt and requirements/dev.txt anew from pyproject.toml (needs uv).
# With --upgrade every package moves to its newest version; without, only what has to.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    local output=$1
    shift
    uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --python-version 3.11 \
        --extra embedded --extra study pyproject.toml requirements/build.in "$@" --output-file "$output" >/dev/null
}

compile requirements/run.txt "$@"
compile requirements/dev.txt --group dev --constraints requirements/run.txt "$@"
