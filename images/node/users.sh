#!/bin/bash
# Make the login users of LAB_USERS, and give them the keys below /opt/lab/users. Run at each start, and when keys change.
set -eu
number=1001
while IFS=: read -r name shell groups; do
    [ -n "$name" ] || continue
    case "$shell" in
        bash) path=/bin/bash ;;
        csh) path=/bin/tcsh ;;
        fish) path=/usr/bin/fish ;;
        *) path=/bin/sh ;;
    esac
    id -u "$name" > /dev/null 2>&1 || useradd --create-home --uid "$number" --shell "$path" --password '*' "$name"
    number=$((number + 1))
    for group in ${groups//,/ }; do
        getent group "$group" > /dev/null || groupadd "$group"
        usermod --append --groups "$group" "$name"
    done
done <<< "${LAB_USERS:-}"
for keys in /opt/lab/users/*/authorized_keys; do
    [ -e "$keys" ] || continue
    name=$(basename "$(dirname "$keys")")
    id -u "$name" > /dev/null 2>&1 || continue
    install -d -m 700 -o "$name" -g "$name" "/home/$name/.ssh"
    install -m 600 -o "$name" -g "$name" "$keys" "/home/$name/.ssh/authorized_keys"
done
