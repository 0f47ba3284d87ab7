#!/usr/bin/env bash
# Two "hosts" on one machine: a network namespace and a PID namespace each, joined by a bridge.
# Runs inside an outer private namespace (unshare -m -p -n -f --kill-child), so that everything dies with it.
#   two_hosts.sh FOLDER COMMAND…      COMMAND runs on host 1; FOLDER receives logs; files there:
#   FOLDER/cut      when it appears, host 2's link goes down (a silent partition)
set -euo pipefail
folder=$1
shift
mkdir -p "$folder/blind"
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
ip addr add 10.9.0.254/24 dev br0
for i in 1 2; do
  ip netns add n$i
  ip link add v$i type veth peer name e$i
  ip link set v$i master br0 up
  ip link set e$i netns n$i
  ip -n n$i link set lo up
  ip -n n$i addr add 10.9.0.$i/24 dev e$i
  ip -n n$i link set e$i up
  ip -n n$i route add default via 10.9.0.254
done
# namespaces share one host name, and as on many machines it resolves to 127.0.0.1: gloo alone would announce that
printf '127.0.0.1 localhost %s\n' "$(hostname)" >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
host() { local i=$1; shift; ip netns exec n$i "$@"; }
apart="unshare -m -p -f --kill-child --mount-proc"
common=(--block --num-cpus=1 --object-store-memory=100000000 --disable-usage-stats)
host 1 $apart ray start --head --node-ip-address=10.9.0.1 --port=6379 --dashboard-host=10.9.0.1 \
  --temp-dir="$RAY_FOLDER" "${common[@]}" >"$folder/head.log" 2>&1 &
until [[ $(host 1 ray status --address 10.9.0.1:6379 2>/dev/null) == *node_* ]]; do # not only the GCS: the node too
  kill -0 $! || { cat "$folder/head.log" >&2; exit 9; }
  sleep 0.5
done
# Ray's folder and FOLDER/blind are on another disk on host 2; in a shared one its Ray would unpack a job's files anew, and
# the job on host 1 would lose the folder that it works in
own='mount -t tmpfs tmpfs "$1"; mount -t tmpfs tmpfs "$2"; shift 2; exec "$@"'
host 2 $apart bash -c "$own" - "$folder/blind" "$RAY_FOLDER" ray start --address=10.9.0.1:6379 \
  --node-ip-address=10.9.0.2 --temp-dir="$RAY_FOLDER" "${common[@]}" >"$folder/worker.log" 2>&1 &
(until [ -e "$folder/cut" ]; do sleep 0.1; done; ip link set v2 down) &
host 1 "$@"
