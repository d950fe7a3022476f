#!/bin/sh
# Install Debian bullseye's python3.9 beside bookworm's python3. Called by this image's Dockerfile only.
# Never fails the build: without it, only nodes that ask for python 3.9 can't be made.
set -u
previous=/etc/apt/sources.list.d/previous
if [ -f /etc/apt/sources.list.d/debian.sources ]; then
    sed 's/ bookworm-updates//; s/bookworm/bullseye/g' /etc/apt/sources.list.d/debian.sources > "$previous.sources"
else
    sed -n 's/ bookworm / bullseye /p' /etc/apt/sources.list | head -n 1 > "$previous.list"
fi
cat > /etc/apt/preferences.d/previous <<PINS
Package: *
Pin: release n=bullseye*
Pin-Priority: -1

Package: python3.9-minimal libpython3.9-minimal libpython3.9-stdlib libssl1.1 libffi7 libmpdec3
Pin: release n=bullseye*
Pin-Priority: 500
PINS
# Not `&&`: of several suites one may have left its mirror, and the others suffice.
apt-get update
apt-get install -y --no-install-recommends python3.9-minimal libpython3.9-stdlib \
    || echo "python3.9 is not to be had: nodes with python 3.9 can't be made from this image" >&2
rm -rf /var/lib/apt/lists/* "$previous".* /etc/apt/preferences.d/previous
