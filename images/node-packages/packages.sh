#!/bin/sh
# Install Debian's packages: NAME, NAME=VERSION, or NAME/RELEASE for one of another release. Called by this image's
# Dockerfile only. Of another release comes what is asked for and what that can't be without; nothing else is renewed.
set -eu
. /etc/os-release
more=/etc/apt/sources.list.d/more

install() {
    # What this image has changed in a package's configuration stays as it is.
    UCF_FORCE_CONFFOLD=1 apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold "$@"
}

apt-get update
# In words again: a package's name has no blank.
# shellcheck disable=SC2046
install $(printf '%s\n' "$@" | grep -v /)
for release in $(printf '%s\n' "$@" | sed -n 's:.*/::p' | sort -u); do
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        awk 'BEGIN { RS = "" } NR == 1' /etc/apt/sources.list.d/debian.sources \
            | sed "s/^Suites:.*/Suites: $release/" > "$more.sources"
    else
        sed -n "s/ $VERSION_CODENAME / $release /p" /etc/apt/sources.list | head -n 1 > "$more.list"
    fi
    apt-get update
    # By the target release, not by NAME/RELEASE: apt would keep to this release for what the package depends on.
    # shellcheck disable=SC2046
    install --target-release "$release" $(printf '%s\n' "$@" | sed -n "s:/$release\$::p")
    rm -f "$more".*
done
# A newer sshd's installation makes keys, which every node would share.
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
