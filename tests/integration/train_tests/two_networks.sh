#!/usr/bin/env bash
# Two network namespaces joined by a cable, whose shared host name resolves to 127.0.0.1, as on many machines.
# Runs inside an outer private namespace (unshare -m -p -n -f --kill-child), so that everything dies with it.
#   two_networks.sh FOLDER COMMAND…      COMMAND runs in both, with its rank (0, 1) as last argument
set -euo pipefail
folder=$1
shift
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
printf '127.0.0.1 localhost %s\n10.9.0.1 first\n10.9.0.2 second\n' "$(hostname)" >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts # and no name server to wait for
printf 'nameserver 127.0.0.1\n' >"$folder/resolv.conf"
mount --bind "$folder/resolv.conf" "$(readlink -f /etc/resolv.conf)" || true
ip netns add n0
ip netns add n1
ip link add e0 netns n0 type veth peer name e1 netns n1
for i in 0 1; do
  ip -n n$i link set lo up
  ip -n n$i addr add 10.9.0.$((i + 1))/24 dev e$i
  ip -n n$i link set e$i up
  ip -n n$i route add default via 10.9.0.$((2 - i))
done
ip netns exec n1 "$@" 1 &
ip netns exec n0 "$@" 0
wait $!
