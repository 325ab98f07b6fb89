# What scripts/cluster knows of networks: ports, addresses, and network namespaces whose members can
# be cut off from each other. Sourced by it; uses its directory, names and messages.

# ---- ports: below those that the kernel gives to outgoing connections, so that a stopped
# member's port is still free when it comes back. One that was given out belongs to its directory.

free_port() { # sets port
    local book hex owner try
    book=${TMPDIR:-/tmp}/geminga-cluster-ports-$(id -u)
    mkdir -p "$book"
    for try in {1..500}; do
        port=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
        printf -v hex ':%04X ' "$port"
        if grep -qsF "$hex" /proc/net/tcp /proc/net/tcp6; then continue; fi
        if read -r owner 2>/dev/null <"$book/$port"; then
            [ -d "$owner" ] && continue
            rm -f "$book/$port"
        fi
        if (set -C && echo "$dir" >"$book/$port") 2>/dev/null; then return; fi
    done
    fail "found no free port"
}

give_back_ports() {
    local number book
    book=${TMPDIR:-/tmp}/geminga-cluster-ports-$(id -u)
    for number in $(sed -n 's/^[a-z]*=//p' "$dir"/*/ports 2>/dev/null); do rm -f "$book/$number"; done
}

# Makes a member's directory with its ports, which it keeps.
make() { # NAME
    local port kind kinds
    [ ! -e "$dir/$1/ports" ] || return 0
    case $1 in
        etcd-*) kinds='client peer' ;;
        bookie-*) kinds='bookie metrics' ;;
        broker-*) kinds='grpc admin' ;;
    esac
    mkdir -p "$dir/$1"
    : >"$dir/$1/settings"
    for kind in $kinds; do
        free_port
        echo "$kind=$port"
    done >"$dir/$1/ports.new"
    mv "$dir/$1/ports.new" "$dir/$1/ports"
}

# Where NAME listens. With namespaces that is in a range that is meant for tests of networks.
host() { # NAME
    if [ -z "$(conf network)" ]; then
        echo 127.0.0.1
        return
    fi
    case $1 in
        etcd-*) echo "198.18.1.${1#*-}" ;;
        bookie-*) echo "198.18.2.${1#*-}" ;;
        broker-*) echo "198.18.3.${1#*-}" ;;
        clients) echo 198.18.0.1 ;;
    esac
}

# ---- namespaces: NETWORK, which has the bridge, and NETWORK-NAME for each member

# Says why there can't be any, or succeeds.
need_namespaces() {
    local tool package
    [ "$(id -u)" = 0 ] || fail "network namespaces need root"
    for tool in ip:iproute2 nft:nftables nsenter:util-linux; do
        package=${tool#*:} tool=${tool%:*}
        command -v "$tool" >/dev/null && continue
        command -v apt-get >/dev/null || fail "'$tool' is missing; install it (Debian: apt-get install $package)"
        say "installing $package, which provides $tool"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    done
}

is_namespace() { [ -e "/run/netns/$1" ]; }

within() { # NAMESPACE COMMAND…
    if [ -n "$1" ]; then nsenter --net="/run/netns/$1" "${@:2}"; else "${@:2}"; fi
}

in_network() { within "$(conf network)" "$@"; } # COMMAND…

# Makes what is missing of the bridge and of the rules.
make_network() {
    local network
    network=$(conf network)
    is_namespace "$network" || ip netns add "$network" || fail "network namespaces aren't permitted here"
    ip -n "$network" link set lo up
    if ! ip -n "$network" link show br0 >/dev/null 2>&1; then
        ip -n "$network" link add br0 type bridge || fail "a bridge can't be made"
        ip -n "$network" address add "$(host clients)/16" dev br0
        ip -n "$network" link set br0 up
    fi
    within "$network" nft -f - <<'RULES' || fail "nftables rules for bridges can't be made"
table bridge geminga {
    set cut { type ipv4_addr . ipv4_addr; }
    chain forward { type filter hook forward priority 0; }
    chain input { type filter hook input priority 0; }
    chain output { type filter hook output priority 0; }
}
flush table bridge geminga
table bridge geminga {
    chain forward { ip saddr . ip daddr @cut drop; }
    chain input { ip saddr . ip daddr @cut drop; }
    chain output { ip saddr . ip daddr @cut drop; }
}
RULES
}

make_namespace() { # NAME
    local network
    network=$(conf network)
    [ -n "$network" ] || return 0
    ! ip -n "$network-$1" link show eth0 >/dev/null 2>&1 || return 0
    # One that was left half made is made anew.
    ip netns del "$network-$1" 2>/dev/null || true
    is_namespace "$network" || fail "the network of this cluster is gone: scripts/cluster up makes it again"
    ip netns add "$network-$1"
    ip -n "$network" link add "$1" type veth peer name eth0 netns "$network-$1"
    ip -n "$network" link set "$1" master br0 up
    ip -n "$network-$1" link set lo up
    ip -n "$network-$1" address add "$(host "$1")/16" dev eth0
    ip -n "$network-$1" link set eth0 up
}

remove_namespaces() {
    local network path
    network=$(conf network)
    [ -n "$network" ] || return 0
    for path in "/run/netns/$network"-*; do
        # Whoever lent the network may remove it at the same time.
        [ ! -e "$path" ] || ip netns del "${path##*/}" 2>/dev/null || true
    done
    if ! is_namespace "$network"; then
        return 0
    elif [ "$(conf network_is_lent)" = true ]; then
        ip -n "$network" link del br0 2>/dev/null || true
        within "$network" nft delete table bridge geminga 2>/dev/null || true
    else
        ip netns del "$network"
    fi
}

pairs() { # FROM TO: the elements that stand for these ways
    local from to separator=
    for from in ${1//,/ }; do
        for to in ${2//,/ }; do
            printf '%s%s . %s' "$separator" "$(host "$from")" "$(host "$to")"
            separator=', '
        done
    done
}

cut_network() { # [--one-way] FROM TO
    local one_way=false name elements
    if [ "${1:-}" = --one-way ]; then one_way=true; shift; fi
    [ $# = 2 ] || usage "cut needs two lists of names"
    [ -n "$(conf network)" ] || fail "this cluster has no network of its own; scripts/cluster up --namespaces makes one"
    for name in ${1//,/ } ${2//,/ }; do [ "$name" = clients ] || need_member "$name"; done
    elements=$(pairs "$1" "$2")
    $one_way || elements+=", $(pairs "$2" "$1")"
    in_network nft add element bridge geminga cut "{ $elements }"
}

heal_network() {
    [ -n "$(conf network)" ] || fail "this cluster has no network of its own; nothing can be cut"
    in_network nft flush set bridge geminga cut
}
