#!/bin/bash
# As root on a node: further sshds with set-ups of their own, users, and who may log in. $1: keys that are accepted, $2: the
# authority of users' certificates, $3: the client machine's host keys, $4: its names. `servers.sh end` takes all of it away.
set -euo pipefail
folder=/etc/ssh/table
if [ "$1" = end ]; then
    for pid in "$folder"/*.pid; do kill "$(cat "$pid")" || true; done
    [ ! -e "$folder/lab_keys" ] || cp -p "$folder/lab_keys" /home/lab/.ssh/authorized_keys
    userdel -rf alice || true
    userdel -rf certified || true
    userdel -rf open || true
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
for user in alice certified open; do
    useradd --create-home --shell /bin/bash --password '*' "$user"
    install -d -m 700 -o "$user" -g "$user" "/home/$user/.ssh"
done
printf '%s\n' "$1" >/home/alice/.ssh/authorized_keys
printf 'cert-authority %s\n' "$2" >/home/certified/.ssh/authorized_keys
# `certified` is let in by its certificate, or by the host that its user comes from; `open` has no password at all.
printf '%s\n' "$3" | sed "s/^/* /" >/home/certified/.ssh/known_hosts
for name in $4; do printf '%s gateway\n' "$name"; done >/home/certified/.shosts
chown certified: /home/certified/.shosts
usermod --password '' open
chown -R alice: /home/alice/.ssh
chown -R certified: /home/certified/.ssh
ssh-keygen -q -t rsa -b 2048 -N "" -f rsa
ssh-keygen -q -t ecdsa -N "" -f ecdsa
ssh-keygen -q -t ed25519 -N "" -f ca
cp /etc/ssh/ssh_host_ed25519_key ed25519
ssh-keygen -y -f ed25519 >ed25519.pub
ssh-keygen -q -t rsa -b 2048 -N "" -f ca_rsa
ssh-keygen -q -s ca -h -I host -z 7 -n "$(hostname)" ed25519.pub
ssh-keygen -q -s ca -h -I rsa -n "$(hostname)" rsa.pub
certify() { # NAME AUTHORITY OPTIONS…: one more certificate of the ed25519 key
    local name=$1 authority=$2
    shift 2
    cp ed25519.pub "$name.pub"
    ssh-keygen -q -s "$authority" -h -I "$name" "$@" "$name.pub"
}
certify by_rsa ca_rsa -n "$(hostname)"
certify by_sha1 ca_rsa -t ssh-rsa -n "$(hostname)"
certify expired ca -n "$(hostname)" -V 20200101:20200102
certify unnamed ca
certify wild ca -n '*.lab.test'
certify demanding ca -n "$(hostname)" -O critical:house=rules
certify users ca -n "$(hostname)"
ssh-keygen -q -s ca -I users -n "$(hostname)" users.pub # one of users, and not of hosts
serve() {
    local port=$1
    shift
    {
        printf '%s\n' "$@" # the first value counts
        printf 'Port %s\nPidFile %s/%s.pid\nUsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n' \
            "$port" "$folder" "$port"
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
serve 2209 "$own" 'HostbasedAuthentication yes' 'HostbasedUsesNameFromPacketOnly yes' 'IgnoreRhosts no'
port=2210
for name in by_rsa by_sha1 expired unnamed wild demanding users; do # 2210 to 2216
    serve "$port" "$own" "HostCertificate $folder/$name-cert.pub"
    port=$((port + 1))
done
serve 2217 "HostKey $folder/rsa" "HostCertificate $folder/rsa-cert.pub"
serve 2218 "HostKey $folder/rsa" "HostKey $folder/ecdsa" "$own"
printf 'A long day.\n%.0s' {1..500} >banner
serve 2219 "$own" "Banner $folder/banner" 'VersionAddendum of the house'
serve 2220 "$own" 'AuthenticationMethods publickey,publickey'
serve 2221 "$own" 'HostbasedAuthentication yes' 'HostbasedUsesNameFromPacketOnly yes' 'IgnoreRhosts no' \
    'AuthenticationMethods hostbased,publickey'
serve 2222 "$own" 'PubkeyAcceptedAlgorithms rsa-sha2-512'
serve 2223 "$own" 'PasswordAuthentication yes' 'PermitEmptyPasswords yes'
serve 2224 "$own" 'Ciphers chacha20-poly1305@openssh.com' 'RekeyLimit 16K'
serve 2225 "$own" 'Ciphers aes256-ctr' 'MACs umac-64-etm@openssh.com'
serve 2226 "$own" 'KbdInteractiveAuthentication yes' 'AuthenticationMethods publickey,keyboard-interactive'
for kind in ed25519 rsa ecdsa ca ca_rsa; do
    printf '%s %s\n' "$kind" "$(cut -d' ' -f1,2 "$kind.pub")"
done
