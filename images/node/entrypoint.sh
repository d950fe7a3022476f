#!/bin/sh
# The node's start: apply the variant that the lab gave at creation, then become what watches sshd. Run by docker's init.
#   LAB_SSHD_OPTIONS   sshd_config lines      LAB_SHELL  bash | csh | fish
#   LAB_NOISY          1: a login that talks  LAB_PYTHON 3.11 | 3.9 | none
#   LAB_LOGIN_ENV      NAME=value lines for every login (pam_env)
#   LAB_USERS          name:shell:group,group lines: login users beside `lab`
# Every step may run again: a stopped node comes back through here.
set -eu
# A reset that comes now waits until sshd has looked at what it is about to replace (supervise.sh lets go), and we wait for it.
exec 9> /run/lab/files.lock
flock -w 30 9
# A fault may be that a shell, python3 or a start-up file is another one, and it outlives the node's crash.
if ! ls /run/lab-faults/*/note.json > /dev/null 2>&1; then
    # First value wins in sshd_config, so a variant has to be read before our own file.
    variant=/etc/ssh/sshd_config.d/00-variant.conf
    printf '%s\n' "${LAB_SSHD_OPTIONS:-}" > "$variant"
    case "${LAB_SHELL:-bash}" in
        bash) shell=/bin/bash ;;
        csh) shell=/bin/tcsh ;;
        fish) shell=/usr/bin/fish ;;
        *) echo "unknown LAB_SHELL: $LAB_SHELL" >&2; exit 64 ;;
    esac
    usermod --shell "$shell" lab
    case "${LAB_PYTHON:-3.11}" in
        3.11) ln -sf python3.11 /usr/bin/python3 ;;
        3.9)
            [ -x /usr/bin/python3.9 ] || { echo "this image has no python3.9" >&2; exit 69; }
            ln -sf python3.9 /usr/bin/python3 ;;
        none) rm -f /usr/bin/python3 ;;
        *) echo "unknown LAB_PYTHON: $LAB_PYTHON" >&2; exit 64 ;;
    esac
    if [ "${LAB_NOISY:-0}" = 1 ]; then
        printf '*** Authorised use only. ***\n' > /etc/ssh/banner
        printf 'Banner /etc/ssh/banner\n' >> "$variant"
        printf 'Welcome to the noisy cluster!\n' > /etc/motd
        # Debian's .bashrc returns early where nobody is interactive; a noisy one talks first.
        grep -q noisy /home/lab/.bashrc || sed -i '1i echo "noisy .bashrc: quota 93% used"' /home/lab/.bashrc
        echo 'echo "noisy .cshrc: quota 93% used"' > /home/lab/.cshrc
        install -d -o lab -g lab /home/lab/.config /home/lab/.config/fish
        echo 'echo "noisy config.fish: quota 93% used"' > /home/lab/.config/fish/config.fish
    fi
    if [ -n "${LAB_LOGIN_ENV:-}" ]; then
        printf '%s\n' "$LAB_LOGIN_ENV" > /etc/environment
    fi
fi
/opt/lab/users.sh
# What `lab reset` goes back to: taken once, before anybody has logged in. What the engine mounts (hosts, resolv.conf) is
# not in it.
if [ ! -e /opt/lab/golden.tar ]; then
    touch /etc/environment /etc/motd
    tar --numeric-owner -C / -cf /opt/lab/golden.partial home root tmp var/tmp etc/ssh etc/passwd etc/shadow etc/group \
        etc/gshadow etc/environment etc/motd etc/pam.d etc/profile etc/bash.bashrc etc/csh.cshrc etc/fish etc/security
    mv /opt/lab/golden.partial /opt/lab/golden.tar
fi
# sshd hands its own environment to no login, but what is not there can't leak.
unset LAB_SSHD_OPTIONS LAB_SHELL LAB_NOISY LAB_PYTHON LAB_LOGIN_ENV LAB_USERS SSL_CERT_FILE UV_NO_CACHE UV_PYTHON_DOWNLOADS UV_COMPILE_BYTECODE
exec /opt/lab/supervise.sh
