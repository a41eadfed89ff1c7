#!/usr/bin/env bash
# Builds the wheel and proves what docs/install.md says, each from an environment with nothing in it: `pip install` of the wheel, a run
# without Rust, Python on the PATH or a network; an ONNX Runtime that is too old; `pip install --target`; `cargo install`.
#   packaging/prove-install.sh             the wheel is left in target/wheels
#   packaging/prove-install.sh --extras    the extras too: OpenVINO runs (100 MB), CUDA is resolved
# Needs cargo, python3 with venv, and a registry for pip. CARGO_TARGET_DIR is used as cargo does.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=
case ${1:-} in
  '') ;;
  --extras) extras=1 ;;
  *) echo "usage: $0 [--extras]" >&2; exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-$PWD/target}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tlpipe-tests
python=$(python3 -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf '%-44s %s\n' "$1" "$2"; }
fail() { echo "FAILS: $*" >&2; exit 1; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }
mb() { du -sk "$@" | awk '{ sum += $1 } END { printf "%.0f MB", sum * 1024 / 1e6 }'; }

# pip: a HOME of its own, and of the environment only what says how to reach a registry.
reach=()
while IFS= read -r variable; do
  case $variable in PIP_* | *_proxy | *_PROXY | SSL_CERT_*) reach+=("$variable=${!variable}") ;; esac
done < <(compgen -e)
clean_pip() {
  env -i PATH=/usr/bin:/bin HOME="$scratch/home" PIP_CACHE_DIR="$scratch/pip" PIP_ROOT_USER_ACTION=ignore "${reach[@]}" "$@"
}
# tlpipe: neither cargo nor Python can be found, and where the kernel lets us there is no network.
isolate=()
if unshare --net --map-root-user true 2>/dev/null; then isolate=(unshare --net --map-root-user); fi
quickstart() { # NAME PROGRAM FLAG...: runs the quickstart, and prints its accuracy
  local name=$1 program=$2
  shift 2
  rm -rf "$scratch/work"
  mkdir -p "$scratch/work"
  "${isolate[@]}" env -i PATH=/nowhere HOME="$scratch/home" "${environment[@]}" \
    "$program" -C "$scratch/work" run --data synth --model quickstart --offline --json "$@" \
    >"$scratch/$name.json" 2>"$scratch/$name.err" || return 1
  test -s "$scratch/work/runs/synth/report.html" || fail "$name: no report"
  "$python" -c 'import json, sys; print(round(json.load(open(sys.argv[1]))["fit_head"]["test"]["accuracy"], 3))' "$scratch/$name.json"
}
environment=()
mkdir -p "$scratch/home"

# The wheel, by a maturin that is kept for the next time.
maturin=$cache/maturin-1.16.0
if [ ! -e "$maturin/done" ]; then
  python3 -m venv "$maturin"
  "$maturin/bin/pip" install --quiet maturin==1.16.0
  touch "$maturin/done"
fi
start=$(now)
"$maturin/bin/maturin" build --release --quiet --out "$scratch/dist" 2>"$scratch/maturin.err" || fail "maturin: $(cat "$scratch/maturin.err")"
wheel=$(echo "$scratch"/dist/tlpipe-*.whl)
test -f "$wheel" || fail "maturin left no wheel"
mkdir -p "$target/wheels"
cp "$wheel" "$target/wheels/"
say "wheel built and audited" "$(since "$start"), $(mb "$wheel"), $(basename "$wheel")"

# pip install, in a fresh environment that is never activated.
venv=$scratch/venv
clean_pip "$python" -m venv "$venv"
before=$(du -sk "$venv" | cut -f1)
start=$(now)
clean_pip "$venv/bin/pip" install --quiet "$wheel"
after=$(du -sk "$venv" | cut -f1)
site=$(echo "$venv"/lib/python3*/site-packages)
say "pip install" "$(since "$start"), $(((after - before) * 1024 / 1000000)) MB: tlpipe $(mb "$venv/bin/tlpipe"), onnxruntime $(mb "$site/onnxruntime"), what that needs the rest"
start=$(now)
accuracy=$(quickstart venv "$venv/bin/tlpipe") || fail "quickstart: $(cat "$scratch/venv.err")"
say "quickstart${isolate:+ without a network}" "$(since "$start"), test accuracy $accuracy"
test ! -e "$scratch/home/.cache/tlpipe/onnxruntime" || fail "a library was installed into the cache"

# An ONNX Runtime that is too old: what is found, where, and the command; then that command.
clean_pip "$venv/bin/pip" install --quiet onnxruntime==1.23.2 2>/dev/null
if quickstart old "$venv/bin/tlpipe"; then fail "onnxruntime 1.23.2 was used"; fi
for needle in "$site/onnxruntime/capi/" "version 1.23.2 is older than 1.24" "'$venv/bin/python3' -m pip install 'onnxruntime>="; do
  grep -qF "$needle" "$scratch/old.err" || fail "not said of an old library: $needle; $(cat "$scratch/old.err")"
done
command=$(sed -n "s/.*to update it: \(.*\)$/\1/p" "$scratch/old.err" | head -n 1)
clean_pip bash -c "$command --quiet"
accuracy=$(quickstart updated "$venv/bin/tlpipe") || fail "after $command: $(cat "$scratch/updated.err")"
say "onnxruntime 1.23.2" "refused with the command, which helped"

# Into a folder, without an environment.
clean_pip "$python" -m pip install --quiet --target "$scratch/folder" "$wheel"
accuracy=$(quickstart folder "$scratch/folder/bin/tlpipe") || fail "--target: $(cat "$scratch/folder.err")"
say "pip install --target" "quickstart's test accuracy $accuracy"

if [ -n "$extras" ]; then
  start=$(now)
  clean_pip "$venv/bin/pip" install --quiet "$wheel[openvino]"
  say "pip install tlpipe[openvino]" "$(since "$start"), onnxruntime is now $(mb "$site/onnxruntime")"
  accuracy=$(quickstart openvino "$venv/bin/tlpipe" --provider openvino) || fail "OpenVINO: $(cat "$scratch/openvino.err")"
  cpu=$(quickstart both "$venv/bin/tlpipe") || fail "CPU beside OpenVINO: $(cat "$scratch/both.err")"
  say "quickstart on OpenVINO, on the CPU" "test accuracy $accuracy, $cpu"
  resolved=$(clean_pip "$venv/bin/pip" install --dry-run --quiet --report - "$wheel[cuda]" | "$python" -c \
    'import json, sys; print(" ".join(sorted("-".join(one["metadata"][key] for key in ("name", "version")) for one in json.load(sys.stdin)["install"])))')
  say "pip install tlpipe[cuda], resolved only" "$resolved"
fi

# From source, for those who have Rust.
start=$(now)
cargo install --quiet --locked --path . --root "$scratch/cargo" --target-dir "$target"
say "cargo install --path ." "$(since "$start"), $(mb "$scratch/cargo/bin/tlpipe")"
environment=("VIRTUAL_ENV=$venv")
accuracy=$(quickstart cargo "$scratch/cargo/bin/tlpipe") || fail "cargo install: $(cat "$scratch/cargo.err")"
say "quickstart, library of an active venv" "test accuracy $accuracy"
