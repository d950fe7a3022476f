#!/bin/bash
# Supervise the daemons that are named in the arguments: each runs as the user `lab`, and is started again when it has ended.
#   /opt/lab/daemons/NAME      what runs; a line `# after HOST PORT` in it has it wait until that port accepts, and
#                              `# listens PORT` says where it answers
#   /var/log/daemons/NAME.log  what it says; the last run before this one is NAME.log.1
#   /run/lab/NAME.pid          its process and group
#   /run/lab/NAME.down         while it exists, it stays down (daemon.sh makes and removes it)
#   /run/lab/daemons           a line written here has us look at once
# As an init system does, what a daemon leaves behind when it dies (executors, containers) is ended with it, unless NAME.down
# says `stay`.
names=("$@")
control=/run/lab/daemons
mkdir -p /run/lab
[ -p "$control" ] || mkfifo -m 600 "$control"
exec {ear}<> "$control"
declare -A pid work after
work=([spark-worker]=/var/lib/spark/ [yarn-nodemanager]=/var/lib/yarn/)

# Golden is taken at the node's first start, and must hold nothing of ours.
until [ -e /opt/lab/golden.tar ]; do read -rt 0.1 -u "$ear"; done
install -d -m 1777 /shared /shared/staging /shared/warehouse 2> /dev/null

for name in "${names[@]}"; do
    pid[$name]=0
    after[$name]=$(sed -n 's/^# after //p' "/opt/lab/daemons/$name")
    rm -f "/run/lab/$name.pid"
done

# As `lab`: root of a container may not see other users' folders.
leftovers() {
    local folder=${work[$1]:-}
    [ -z "$folder" ] || setpriv --reuid lab --regid lab --clear-groups bash -c '
        for place in /proc/[0-9]*; do
            [[ $(readlink "$place/cwd") == "$1"* ]] && kill -KILL "${place#/proc/}"
        done' leftovers "$folder" 2> /dev/null
}

# With a deadline: where packets are dropped a connect takes two minutes, and the other daemons would go unwatched.
open() { timeout 1 bash -c 'exec 3<> "/dev/tcp/$1/$2"' open "$1" "$2" 2> /dev/null; }

start() {
    local name=$1 log=/var/log/daemons/$1.log
    # Host and port are two words.
    # shellcheck disable=SC2086
    [ -z "${after[$name]}" ] || open ${after[$name]} || return
    [ ! -e "$log" ] || mv "$log" "$log.1"
    # A login's environment, not the container's; SIGINT as init gives it, since a shell's background children ignore it.
    env -i --default-signal=INT,QUIT PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/lab USER=lab LANG=C.UTF-8 \
        setsid setpriv --reuid lab --regid lab --init-groups "/opt/lab/daemons/$name" > "$log" 2>&1 < /dev/null &
    pid[$name]=$!
    echo "${pid[$name]}" > "/run/lab/$name.pid"
}

while :; do
    for name in "${names[@]}"; do
        if [ "${pid[$name]}" != 0 ] && ! kill -0 "${pid[$name]}" 2> /dev/null; then
            stay=""
            { read -r stay < "/run/lab/$name.down"; } 2> /dev/null
            rm -f "/run/lab/$name.pid"
            pid[$name]=0
            [ "$stay" = stay ] || leftovers "$name"
        fi
        [ "${pid[$name]}" != 0 ] || [ -e "/run/lab/$name.down" ] || start "$name"
    done
    read -rt 1 -u "$ear" || :
done
