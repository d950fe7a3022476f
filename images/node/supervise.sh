#!/bin/bash
# What a node's init runs: sshd, started again when it has ended, and the lease, after which the node ends itself.
#   /run/lab/lease      UNIX time of the end; missing, 0 or no number: never
#   /run/lab/sshd.down  while it exists, an sshd that ended stays down (a host that runs, and whose sshd doesn't)
#   /run/lab/control    a line written here has us look at once
# bash, not sh: `read -t` waits without forking, so the node's process table holds still.
control=/run/lab/control
mkdir -p /run/lab /run/sshd
[ -p "$control" ] || mkfifo -m 600 "$control"
exec {ear}<> "$control"
sshd=0

start() {
    # A shell's background children ignore SIGINT, and would pass that on to every login: no kernel could be interrupted.
    env --default-signal=INT,QUIT /usr/sbin/sshd -D -e &
    sshd=$!
}

over() {
    local until
    { read -r until < /run/lab/lease; } 2> /dev/null || return 1
    [[ $until =~ ^[0-9]+$ ]] && (( until > 0 && until <= EPOCHSECONDS ))
}

trap 'kill -TERM "$sshd" 2> /dev/null; exit 0' TERM INT
# A configuration that sshd refuses ends the node at its start, so that whoever waits for it hears why.
/usr/sbin/sshd -t || exit 255
# The start's own lock (entrypoint.sh): from here on a reset may have the files.
exec 9>&-
over || start
while :; do
    if over; then
        echo "lab: the lease is over, this node ends" >&2
        [ "$sshd" = 0 ] || kill -TERM "$sshd" 2> /dev/null
        exit 0
    fi
    if ! kill -0 "$sshd" 2> /dev/null && [ ! -e /run/lab/sshd.down ]; then start; fi
    read -rt 1 -u "$ear" || :
done
