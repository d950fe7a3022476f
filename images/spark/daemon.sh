#!/bin/bash
# One daemon of this node, as root:
#   daemon.sh down NAME [stay]   kill it at once, keep it down; with `stay` its executors or containers are left alone
#   daemon.sh up NAME            let it be started again; returns when its process is there, fine if it was never down
# Called by the lab's faults.
set -eu
what=$1 name=$2 marker=/run/lab/$2.down pidfile=/run/lab/$2.pid
[ -e "/opt/lab/daemons/$name" ] || { echo "this node has no $name" >&2; exit 69; }
look() { timeout 1 bash -c 'echo > /run/lab/daemons' || true; }
case "$what" in
    down)
        echo "${3:-}" > "$marker"
        { read -r pid < "$pidfile"; } 2> /dev/null && kill -KILL "$pid"
        look
        for _ in {1..50}; do [ -e "$pidfile" ] || exit 0; read -rt 0.1 <> <(:) || :; done
        echo "$name is still there" >&2; exit 75 ;;
    up)
        rm -f "$marker"
        look ;;
    *) exit 64 ;;
esac
