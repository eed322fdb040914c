#!/bin/sh
# Runs what must hold of GPU memory on a machine with an NVIDIA driver, and keeps the log.
# Nothing else is needed there: neither Rust nor the CUDA toolkit.
#
#   cargo build --release -p tpad-gpu       on any x86_64 machine with glibc
#   tests/gpu/run.sh [PROGRAM] [OUT] [ARGUMENTS...]
#
# PROGRAM is target/release/tpad-gpu unless another is named, OUT the directory for the
# logs. TPAD_COMMIT names the commit that PROGRAM is of, where there is no repository.
set -u
here=$(cd "$(dirname "$0")" && pwd)
program=${1:-$here/../../target/release/tpad-gpu}
out=${2:-.}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] && shift
mkdir -p "$out" || exit 2
commit=${TPAD_COMMIT:-$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)}
text=$out/gpu.txt
lines=$out/gpu.jsonl
: >"$lines"

used() {
    nvidia-smi --query-gpu=index,memory.used --format=csv,noheader 2>/dev/null
}

{
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "commit: $commit"
    echo "command: tpad-gpu $*"
    echo "program: $(sha256sum "$program" | cut -d' ' -f1)"
    nvidia-smi --query-gpu=index,name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max --format=csv 2>&1
    echo "memory used before: $(used | tr '\n' ';')"
    "$program" --log "$lines" "$@"
    echo "result: $?"
    echo "memory used after: $(used | tr '\n' ';')"
} 2>&1 | tee "$text"

# 0 only if the program said so.
grep -q '^result: 0$' "$text"
