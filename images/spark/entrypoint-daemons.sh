#!/bin/bash
# The start of a node with daemons: their supervisor goes to init by an orphaning fork, then this becomes the plain node's start.
#   LAB_DAEMONS   names of daemons (files of /opt/lab/daemons), separated by spaces
read -ra names <<< "${LAB_DAEMONS:-}"
unset LAB_DAEMONS
[ "${#names[@]}" = 0 ] || (/opt/lab/daemons.sh "${names[@]}" &)
exec /opt/lab/entrypoint.sh
