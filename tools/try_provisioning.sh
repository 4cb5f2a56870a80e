#!/bin/sh
# Run the Vagrantfile's own provisioning lines in a clean Debian 12, as the machine's user would, then a short run.
#
# usage: tools/try_provisioning.sh FOLDER [MIRROR]     (as root; some minutes, 6 GB)
#
# FOLDER receives a Debian root made by debootstrap and stays until you remove it; an existing one is used again. It
# stands in for the virtual machine: same packages, same user, same lines; the kernel is this machine's.
#
# Environment:
#   PIP_*           handed on, as is /etc/pip.conf: pip's own settings
#   TESTBED_SHARE   folders of this machine to be seen at the same place inside (packages that pip takes from the disk)
set -eu

[ $# -ge 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "try_provisioning: root is needed (debootstrap, chroot)" >&2; exit 3; }
command -v debootstrap >/dev/null || { echo "try_provisioning: apt-get install debootstrap" >&2; exit 3; }
project=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
root=$(cd "$1" && pwd)
say() { echo "try_provisioning: $*"; }

# The lines between <<~SHELL and SHELL, as Vagrant hands them over.
lines() { sed -n '/<<~SHELL/,/^ *SHELL$/p' "$project/Vagrantfile" | sed '1d;$d'; }
[ -n "$(lines)" ] || { echo "try_provisioning: no provisioning lines in $project/Vagrantfile" >&2; exit 1; }

# A private mount namespace: whatever is mounted below goes away with this process.
if [ "${TRY_INSIDE:-}" != 1 ]; then TRY_INSIDE=1 exec unshare --mount --propagation private "$0" "$@"; fi

if ! [ -e "$root/etc/debian_version" ]; then
    say "debootstrap into $root"
    debootstrap --variant=minbase --include=sudo,ca-certificates,passwd,procps bookworm "$root" ${2:+"$2"} >"$root.log" 2>&1 ||
        { tail -n 5 "$root.log" >&2; exit 1; }
fi
mount --bind "$root" "$root" # pivot_root wants a mount point
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
for folder in ${TESTBED_SHARE:-}; do mkdir -p "$root$folder" && mount --bind "$folder" "$root$folder"; done
echo "127.0.0.1 localhost $(hostname)" >"$root/etc/hosts"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
if [ -r /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/pip.conf"; fi
cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null 2>&1
chroot "$root" id vagrant >/dev/null 2>&1 || chroot "$root" useradd --create-home --shell /bin/bash vagrant
echo "vagrant ALL=(ALL) NOPASSWD:ALL" >"$root/etc/sudoers.d/vagrant"
env | grep '^PIP_' >"$root/etc/environment" || true
echo 'Defaults env_keep += "PIP_*"' >"$root/etc/sudoers.d/pip"

# What Vagrant's rsync copies.
target=$root/home/vagrant/testbed
mkdir -p "$target"
(cd "$project" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf -) | tar -xf - -C "$target"
chroot "$root" chown -R vagrant: /home/vagrant/testbed

lines >"$root/provision.sh"

# Not chroot: a sandbox that enters a mount namespace must find this root there.
cd "$root"
pivot_root . mnt
cd /
umount -l /mnt
as_user() { su - vagrant -c 'set -a; . /etc/environment; set +a; exec sh -s'; }
say "provisioning, the first time"
as_user </provision.sh
say "provisioning, the second time: nothing is left to do"
began=$(date +%s)
as_user </provision.sh
say "the second time took $(($(date +%s) - began)) s"
say "a short run"
echo "cd testbed && sudo make run ARGS='--set load.requests_per_device=10 --set load.warmup_requests=2'" | as_user
say "passed"
