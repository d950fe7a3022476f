#!/bin/bash
# As the gateway's user: keys of all kinds in ~/keys. Prints nothing.
set -euo pipefail
mkdir -m 700 ~/keys
cd ~/keys
make() { ssh-keygen -q -t "$1" -N "${3:-}" -C "$2" -f "$2" "${@:4}"; }
make ed25519 good
make rsa good_rsa "" -b 2048
make ecdsa good_ecdsa
make rsa good_pem "" -b 2048 -m PEM
make ed25519 bad
for number in 0 1 2 3; do make ed25519 "bad$number"; done
make ed25519 locked secret
# The same key without its passphrase, for the agent.
cp locked unlocked
ssh-keygen -q -p -P secret -N "" -f unlocked
make ed25519 user_ca
make ed25519 certified
ssh-keygen -q -s user_ca -I certified -n certified certified.pub
# The same key without the certificate beside it.
cp certified certified_plain
cp certified.pub certified_plain.pub
make ed25519 other
make rsa other_rsa "" -b 2048
make rsa good_pkcs8 "" -b 2048 -m PKCS8
make ecdsa good_ec_pem "" -m PEM
make ecdsa good_nistp521 "" -b 521
