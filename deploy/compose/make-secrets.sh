#!/bin/sh
# Writes the secrets of compose.yaml that are not there yet, at random. The folder is yours alone; the files in it can be
# read by the containers' users, to whom Docker mounts them one by one.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets

random() {
    head -c 32 /dev/urandom | base64 | tr -dc 'A-Za-z0-9'
}

write() {
    printf '%s' "$2" >"secrets/$1"
    chmod 0444 "secrets/$1"
}

if [ ! -e secrets/keys__redis ]; then
    password=$(random)
    write redis_conf "$(printf 'requirepass %s\nbind * -::*\nappendonly yes\nmaxmemory 400mb\n' "$password")"
    write keys__redis "redis://:$password@redis:6379/0"
fi
if [ ! -e secrets/keys__postgres ]; then
    password=$(random)
    write postgres_password "$password"
    write keys__postgres "postgresql://kimi:$password@postgres/kimi"
fi
[ -e secrets/keys__salt_secret ] || write keys__salt_secret "$(random)"
[ -e secrets/grafana_password ] || write grafana_password "$(random)"
echo "secrets/: $(ls secrets | tr '\n' ' ')"
