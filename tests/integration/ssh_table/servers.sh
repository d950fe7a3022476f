#!/bin/bash
# As root on a node: further sshds with set-ups of their own, users, and who may log in. $1: keys that are accepted, $2: the
# authority of users' certificates. `servers.sh end` takes all of it away.
set -euo pipefail
folder=/etc/ssh/table
if [ "$1" = end ]; then
    for pid in "$folder"/*.pid; do kill "$(cat "$pid")" || true; done
    [ ! -e "$folder/lab_keys" ] || cp -p "$folder/lab_keys" /home/lab/.ssh/authorized_keys
    userdel -rf alice || true
    userdel -rf certified || true
    # useradd and userdel leave these changed.
    cp -p "$folder"/backups/* /etc/
    rm -rf "$folder"
    exit 0
fi
mkdir -p "$folder"
cd "$folder"
mkdir backups
cp -p /etc/{passwd,group,shadow,gshadow,subuid,subgid}{,-} backups/
cp -p /home/lab/.ssh/authorized_keys lab_keys
printf '%s\n' "$1" >>/home/lab/.ssh/authorized_keys
for user in alice certified; do
    useradd --create-home --shell /bin/bash --password '*' "$user"
    install -d -m 700 -o "$user" -g "$user" "/home/$user/.ssh"
done
printf '%s\n' "$1" >/home/alice/.ssh/authorized_keys
printf 'cert-authority %s\n' "$2" >/home/certified/.ssh/authorized_keys
chown -R alice: /home/alice/.ssh
chown -R certified: /home/certified/.ssh
ssh-keygen -q -t rsa -b 2048 -N "" -f rsa
ssh-keygen -q -t ecdsa -N "" -f ecdsa
ssh-keygen -q -t ed25519 -N "" -f ca
cp /etc/ssh/ssh_host_ed25519_key ed25519
ssh-keygen -y -f ed25519 >ed25519.pub
ssh-keygen -q -s ca -h -I host -n "$(hostname)" ed25519.pub
serve() {
    local port=$1
    shift
    {
        printf 'Port %s\nPidFile %s/%s.pid\nUsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n' \
            "$port" "$folder" "$port"
        printf '%s\n' "$@"
    } >"$port.conf"
    /usr/sbin/sshd -f "$folder/$port.conf"
}
own="HostKey $folder/ed25519"
serve 2201 "$own" 'Ciphers aes192-ctr'
serve 2202 "HostKey $folder/rsa"
serve 2203 "HostKey $folder/ecdsa"
serve 2204 "$own" "HostCertificate $folder/ed25519-cert.pub"
serve 2205 "$own" 'MaxAuthTries 2'
serve 2206 "HostKey $folder/rsa" 'HostKeyAlgorithms ssh-rsa'
serve 2207 "$own" 'KexAlgorithms diffie-hellman-group14-sha1'
serve 2208 "$own" 'MACs hmac-md5' 'Ciphers aes256-ctr'
for kind in ed25519 rsa ecdsa ca; do
    printf '%s %s\n' "$kind" "$(cut -d' ' -f1,2 "$kind.pub")"
done
