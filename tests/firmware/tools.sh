# Functions for both scripts, which source this file.
#
# A compiler that builds `core` for any target: Debian's, in addition to the
# machine's toolchain. An emulator: the machine's, or Debian's, unpacked into the
# build folder (its package conflicts with a newer qemu-utils).

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${CARGO_TARGET_DIR:-$here/target}
export CARGO_TARGET_DIR=$build CARGO_TERM_COLOR=never

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Installs Debian packages that are missing, given as `program:package` or
# `/path:package`.
install_missing() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || [[ -e ${pair%%:*} ]] || missing+=("${pair##*:}")
    done
    if ((${#missing[@]})); then
        export DEBIAN_FRONTEND=noninteractive
        timeout 300 apt-get update -q
        timeout 600 apt-get install -q -y --no-install-recommends "${missing[@]}"
    fi
}

# cargo, with the compiler that has the source of its library.
debian_cargo() {
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 timeout 1200 cargo "$@"
}

use_compiler() {
    install_missing /usr/bin/rustc:rustc-web /usr/lib/rustlib/src/rust/library/core/src/lib.rs:rust-web-src
    # It has no linker for bare metal; every rustup toolchain has one.
    local sysroot host
    sysroot=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    lld=$sysroot/lib/rustlib/$host/bin/rust-lld
    [[ -x $lld ]] || fail "no rust-lld in $sysroot"
    export CARGO_TARGET_THUMBV7M_NONE_EABI_LINKER=$lld
}

use_emulator() {
    if command -v qemu-system-arm >/dev/null; then
        emulator=(qemu-system-arm)
        return
    fi
    local root=$build/qemu
    if [[ ! -x $root/usr/bin/qemu-system-arm ]]; then
        install_missing /usr/share/doc/libfdt1:libfdt1 /usr/share/doc/libcapstone4:libcapstone4 \
            /usr/share/doc/libslirp0:libslirp0 /usr/share/doc/libvdeplug2:libvdeplug2
        mkdir -p "$root/debs"
        local version
        version=$(apt-cache show qemu-system-arm | awk '/^Version: 1:7\./ && !found { found = $2 } END { print found }')
        # The other two packages may have an earlier build, or none.
        (cd "$root/debs" && timeout 300 apt-get download "qemu-system-arm=$version" \
            "qemu-system-common=$version" "qemu-system-data=${version%+b*}")
        local deb
        for deb in "$root"/debs/*.deb; do dpkg -x "$deb" "$root"; done
        rm -r "$root/debs"
    fi
    emulator=("$root/usr/bin/qemu-system-arm" -L "$root/usr/share/qemu")
    "${emulator[@]}" --version >/dev/null || fail "the unpacked emulator does not run"
}
