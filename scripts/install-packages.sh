#!/bin/sh
# Installs what is missing of the packages named as arguments (default: rabbitmq-server python3-venv), from Debian's or
# Ubuntu's packages and as root only. Elsewhere it says in one line what to install. When all is there, it says nothing.
#
# It leaves no system-wide broker behind: Debian starts a service as it installs it and at every boot, but this project
# runs its own private node and needs only the program.
set -eu

[ $# -gt 0 ] || set -- rabbitmq-server python3-venv

# The same places as find_server() in crew/installation.py.
has_rabbitmq() {
    if [ -n "${CREW_RABBITMQ_SERVER:-}" ]; then
        [ -x "$CREW_RABBITMQ_SERVER" ]
        return
    fi
    for server in /usr/lib/rabbitmq/bin/rabbitmq-server /usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server \
        /opt/homebrew/sbin/rabbitmq-server /usr/local/sbin/rabbitmq-server; do
        [ -x "$server" ] && return
    done
    # On PATH only the real script, which has rabbitmq-env beside it: Debian's wrapper insists on the user rabbitmq.
    (
        IFS=:
        for directory in $PATH; do
            [ -x "$directory/rabbitmq-server" ] && [ -e "$directory/rabbitmq-env" ] && exit 0
        done
        exit 1
    )
}

has() {
    case $1 in
        rabbitmq-server) has_rabbitmq ;;
        python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ;;
        *) dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed ;;
    esac
}

missing=
for package in "$@"; do
    has "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    case $missing in
        *rabbitmq-server*) others=' | brew install rabbitmq | dnf install rabbitmq-server | a broker elsewhere: docker run --rm -p 127.0.0.1:5672:5672 rabbitmq:4' ;;
        *) others=' | brew install python | dnf install python3' ;;
    esac
    echo "Missing:$missing. Install it, then try again: sudo apt-get install$missing$others" >&2
    exit 1
fi

log=$(mktemp)
policy=
clean_up() {
    rm -f "$log"
    [ -z "$policy" ] || rm -f "$policy"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Asked by every Debian package before it starts its service; 101 means no. One that is there already is somebody else's
# decision, and we leave it alone.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

has_unit() {
    [ -e "/lib/systemd/system/$1" ] || [ -e "/usr/lib/systemd/system/$1" ]
}
new_units=
for unit in rabbitmq-server.service epmd.service epmd.socket; do
    has_unit "$unit" || new_units="$new_units $unit"
done

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}
install() {
    # shellcheck disable=SC2086 # a list of names
    apt install --yes --no-install-recommends $missing
}
echo "Installing$missing with apt-get ..." >&2
# Without an update first, as that takes longer than the rest where the package lists are recent.
if ! install && ! { apt update && install; }; then
    cat "$log" >&2
    echo "apt-get could not install$missing: see above" >&2
    exit 1
fi

# Nor at the next boot. Only what came with this installation: a service that was there before is in use.
if command -v systemctl >/dev/null; then
    for unit in $new_units; do
        has_unit "$unit" || continue
        systemctl --quiet disable "$unit" >/dev/null 2>&1 || true
        [ ! -d /run/systemd/system ] || systemctl stop "$unit" >/dev/null 2>&1 || true
    done
fi

for package in $missing; do
    has "$package" || { echo "$package was installed, but is still not found${PYTHON:+ (for $PYTHON)}" >&2; exit 1; }
done
