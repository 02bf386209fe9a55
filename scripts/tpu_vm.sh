#!/usr/bin/env bash
# A TPU VM, one host or a pod, from nothing to results. Needs gcloud with a project and a zone.
#
#   scripts/tpu_vm.sh create pod --type v5litepod-256 --zone us-west4-a --spot
#   scripts/tpu_vm.sh setup pod                              # this checkout and its packages, on all workers
#   scripts/tpu_vm.sh run pod --bucket my-bucket/runs -- scripts/run.py configs/demo.py --workdir runs/demo
#   scripts/tpu_vm.sh fetch pod runs/demo                    # to runs/demo here
#   scripts/tpu_vm.sh delete pod
#
# `--dry-run` prints the commands and carries out none. `run` again goes on: it follows a program that still runs, starts
# it again where it ended, and where a spot machine was taken away it deletes what is left, creates and sets up another.
# Then give `run` the options of `create` too (or the environment variables in brackets), and a bucket: the disk of the
# machine went with it. The hosts of a pod see one run folder only through a bucket, or another file system they share.
#
# Options:
#   --type T       accelerator type [TPU_TYPE, v5litepod-8]
#   --zone Z       [TPU_ZONE, gcloud's own]
#   --project P    [TPU_PROJECT, gcloud's own]
#   --version V    software of the machine [TPU_VERSION, v2-alpha-tpuv5-lite]
#   --spot         cheaper, and may be taken away at any moment [TPU_SPOT=1]
#   --bucket B/DIR mounted as runs/ on every worker, by gcsfuse [TPU_BUCKET]
#   --yes          delete without a question
#   --dry-run      print only
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

fail() {
  printf 'tpu_vm.sh: %s\n' "$1" >&2
  exit 2
}

# Carries a command out, or prints it so that it can be pasted into a shell.
do_or_say() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

tpu_vm() {
  local action=$1
  shift
  do_or_say gcloud compute tpus tpu-vm "$action" "$@" ${where[@]+"${where[@]}"}
}

on() { # WORKER COMMAND
  tpu_vm ssh "$name" --worker="$1" --command="$2"
}

create() {
  local spot=()
  [[ -z $spot_machine ]] || spot=(--spot)
  tpu_vm create "$name" --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
}

# What git tracks, as it is now; Python 3.11 by uv, since the machine's own may be older.
setup() {
  local archive=/tmp/deft-tsds.tar.gz root
  if [[ -z $dry_run ]]; then
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    scratch=$(mktemp -d)
    archive=$scratch/deft-tsds.tar.gz
    git -C "$root" ls-files -z | while IFS= read -r -d '' file; do
      [[ ! -f $root/$file ]] || printf '%s\0' "$file"
    done | tar --create --gzip --file="$archive" --directory="$root" --null --files-from=-
  fi
  tpu_vm scp "$archive" "$name:deft-tsds.tar.gz" --worker=all
  on all 'set -e; mkdir -p deft-tsds; tar xzf deft-tsds.tar.gz -C deft-tsds; cd deft-tsds
python3 -m pip install --quiet --user uv
[ -x .venv/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.11 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python --editable ".[tpu]"'
  # All workers at once: the chips of a pod answer together or not at all.
  on all 'cd deft-tsds && .venv/bin/python -c "import jax; jax.distributed.initialize(); print(jax.process_index(), jax.local_device_count(), jax.device_count())"'
  on all 'touch deft-tsds/.set-up'
}

mount_bucket() {
  [[ -n $bucket ]] || return 0
  local only=()
  [[ $bucket != */* ]] || only=(--only-dir "${bucket#*/}")
  on all "set -e; mkdir -p deft-tsds/runs; cd deft-tsds
command -v gcsfuse > /dev/null || {
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
}
mountpoint -q runs || $(quoted gcsfuse --implicit-dirs ${only[@]+"${only[@]}"} "${bucket%%/*}" runs)"
}

state() {
  if [[ -n $dry_run ]]; then
    tpu_vm describe "$name" --format='value(state)' >&2
    printf 'READY'
  else
    tpu_vm describe "$name" --format='value(state)' 2> /dev/null || printf 'NONE'
  fi
}

# The program outlives the connection: its output is in run.log, and a second `run` follows it.
run() {
  (($#)) || fail "run NAME -- scripts/run.py CONFIG --workdir runs/NAME: what is to be run is missing."
  local found program
  found=$(state)
  case $found in
    READY) ;;
    NONE)
      printf '%s is not there: creating it.\n' "$name" >&2
      create
      setup
      ;;
    PREEMPTED | TERMINATED | STOPPED)
      printf '%s is %s: creating another.\n' "$name" "$found" >&2
      tpu_vm delete "$name" --quiet
      create
      setup
      ;;
    *) fail "$name is $found: wait until it is READY." ;;
  esac
  [[ -n $dry_run ]] || on all 'test -e deft-tsds/.set-up' > /dev/null 2>&1 || setup
  mount_bucket
  program=$(quoted .venv/bin/python "$@")
  on all "cd deft-tsds || exit 1
if [ -f run.pid ] && kill -0 \"\$(cat run.pid)\" 2> /dev/null; then
  echo 'still running; this follows it' >&2
else
  rm -f run.rc
  : > run.log  # tail may be there before the program
  nohup bash -c $(quoted "$program; echo \$? > run.rc") >> run.log 2>&1 < /dev/null &
  echo \$! > run.pid
fi
tail --pid=\"\$(cat run.pid)\" -n +1 -f run.log
exit \"\$(cat run.rc 2> /dev/null || echo 143)\""
}

fetch() {
  (($# >= 1 && $# <= 2)) || fail "fetch NAME RUN [FOLDER]: the run folder on the machine is missing."
  local folder=${2:-$1}
  do_or_say mkdir -p "$(dirname "$folder")"
  if [[ -n $bucket ]]; then
    do_or_say mkdir -p "$folder"
    do_or_say gcloud storage rsync --recursive "gs://$bucket/${1#runs/}" "$folder"
  else
    tpu_vm scp --recurse "$name:deft-tsds/$1" "$folder" --worker=0
  fi
}

delete() {
  local sure=()
  [[ -z $yes ]] || sure=(--quiet)
  tpu_vm delete "$name" ${sure[@]+"${sure[@]}"}
}

scratch=''
trap '[[ -z $scratch ]] || rm -rf "$scratch"' EXIT

action='' name='' dry_run='' yes=''
type=${TPU_TYPE:-v5litepod-8} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} version=${TPU_VERSION:-v2-alpha-tpuv5-lite}
spot_machine=${TPU_SPOT:-} bucket=${TPU_BUCKET:-}
rest=()
while (($#)); do
  case $1 in
    --type | --zone | --project | --version | --bucket)
      (($# >= 2)) || fail "$1 needs a value."
      declare "${1#--}=$2"
      shift
      ;;
    --spot) spot_machine=1 ;;
    --yes) yes=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      rest+=("$@")
      break
      ;;
    -*) fail "unknown option $1; arguments of the program come after --." ;;
    *) if [[ -z $action ]]; then action=$1; elif [[ -z $name ]]; then name=$1; else rest+=("$1"); fi ;;
  esac
  shift
done
where=()
[[ -z $zone ]] || where+=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
bucket=${bucket#gs://}
bucket=${bucket%/}

case $action in
  create | setup | run | fetch | delete) ;;
  '')
    usage >&2
    exit 2
    ;;
  *) fail "unknown command $action: create, setup, run, fetch or delete." ;;
esac
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || fail "a name is small letters, digits and -, not '$name'."
[[ -n $dry_run ]] || command -v gcloud > /dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
"$action" ${rest[@]+"${rest[@]}"}
