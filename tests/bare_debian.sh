#!/usr/bin/env bash
# The README's two commands on a bare Debian: git, make and python3 alone; no pip, no venv package, no ensurepip.
#
#   sudo tests/bare_debian.sh                                   # Debian 13, Python 3.13: make repro && make test
#   sudo SUITE=forky tests/bare_debian.sh                       # Python 3.14
#   sudo RUN_AS=person tests/bare_debian.sh                     # as a person without root's rights
#   sudo tests/bare_debian.sh 'make .venv/installed && make doctor'
#
# Needs root, debootstrap and a network. Makes the system once, in $BARE_DEBIAN (default: ~/.cache/bare-debian/SUITE), and clones
# this checkout's HEAD into it anew each time. The default command takes about 20 minutes on two cores.
set -euo pipefail

command=${1:-make repro && make test}
suite=${SUITE:-trixie}
user=${RUN_AS:-root}
system=${BARE_DEBIAN:-$HOME/.cache/bare-debian/$suite}
checkout=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)

[ "$(id -u)" = 0 ] || { echo "error: root is needed, for chroot: sudo $0"; exit 1; }
command -v debootstrap >/dev/null || { echo "error: debootstrap is needed: apt install debootstrap"; exit 1; }

# 1) the system; debootstrap knows every suite by the script of sid
if ! ls "$system"/usr/bin/python3.?? >/dev/null 2>&1; then
    mkdir -p "$system"
    debootstrap --variant=minbase --include=git,make,ca-certificates,python3 "$suite" "$system" \
        http://deb.debian.org/debian /usr/share/debootstrap/scripts/sid
fi

# 2) it really is bare
for module in pip ensurepip; do
    if chroot "$system" python3 -c "import $module" 2>/dev/null; then
        echo "error: $system has $module and is not bare; remove it and run this again"
        exit 1
    fi
done

# 3) this machine's network: names, certificates, proxy
cp /etc/hosts /etc/resolv.conf "$system/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/"

# 4) a clone of HEAD that belongs to the one who runs it
home=/srv/$user
[ "$user" = root ] || chroot "$system" id "$user" >/dev/null 2>&1 || chroot "$system" useradd --no-create-home "$user"
rm -rf "${system:?}$home"
mkdir -p "$system$home"
git clone -q "$checkout" "$system$home/ExplainMyXray"
chroot "$system" chown -R "$user" "$home"

# 5) the command, with nothing of this machine's environment, and with mounts that end with it
export system user home command
unshare --mount bash -euo pipefail -c '
    mount -t proc proc "$system/proc"
    mount --bind /dev "$system/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$system/dev/shm"
    exec chroot --userspec="$user" "$system" env -i HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
        ${HTTPS_PROXY:+HTTPS_PROXY="$HTTPS_PROXY"} \
        bash -c "python3 --version; cd ~/ExplainMyXray && time { $command; }"
'
