#!/bin/bash
# One daemon of this node, as root; called by the lab's faults:
#   daemon.sh down NAME [stay]   kill it at once, keep it down; with `stay` its executors or containers are left alone
#   daemon.sh up NAME            let it be started again; wait until its port accepts, for 5 s, unless what it waits for is down
set -eu
what=$1 name=$2 marker=/run/lab/$2.down pidfile=/run/lab/$2.pid file=/opt/lab/daemons/$2
exec {never}<> <(:)
pause() { read -rt 0.1 -u "$never" || :; }
look() { timeout 1 bash -c 'echo > /run/lab/daemons' || :; }
# With a deadline: where packets are dropped a connect takes two minutes.
open() { timeout 1 bash -c 'exec 3<> "/dev/tcp/$1/$2"' open "$1" "$2" 2> /dev/null; }
case "$what" in
    down)
        { read -r pid < "$pidfile"; } 2> /dev/null || { echo "no $name runs here" >&2; exit 69; }
        echo "${3:-}" > "$marker"
        kill -KILL "$pid"
        look
        for _ in {1..50}; do [ -e "$pidfile" ] || exit 0; pause; done
        echo "$name is still there" >&2
        exit 75 ;;
    up)
        rm -f "$marker"
        look
        port=$(sed -n 's/^# listens //p' "$file") after=$(sed -n 's/^# after //p' "$file")
        while ((SECONDS < 5)); do
            # Host and port are two words.
            # shellcheck disable=SC2086
            [ -z "$after" ] || open $after || exit 0
            open "$(hostname)" "$port" && exit 0
            pause
        done
        # A slow machine: it has been started, and whoever needs it waits for what its master says.
        [ -e "$pidfile" ] && exit 0
        echo "$name is not started again: /var/log/daemons/$name.log" >&2
        exit 75 ;;
    *) exit 64 ;;
esac
