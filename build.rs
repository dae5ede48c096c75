//! Has the linker put what a publish runs on few pages, side by side.

use std::env;
use std::path::Path;
use std::process::Command;

/// Which function calls which, and how often; `bench/layout.py` counts it.
const CALLS: &str = "link/calls.txt";

fn main() {
    println!("cargo::rerun-if-changed={CALLS}");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    if set("PROFILE") == "release" && links_with_lld() {
        println!("cargo::rustc-link-arg-bins=-Wl,--call-graph-ordering-file={}/{CALLS}", set("CARGO_MANIFEST_DIR"));
        // Some are inlined, or gone, by now.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}

/// Whether it is the linker that comes with rustc, and is its choice on this target alone. No other has the option.
fn links_with_lld() -> bool {
    let target = set("TARGET");
    let is_told_otherwise = set("CARGO_ENCODED_RUSTFLAGS").contains("link") || !set("RUSTC_LINKER").is_empty();
    let sysroot = Command::new(set("RUSTC")).args(["--print", "sysroot"]).output();
    let sysroot =
        sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let lld = Path::new(&sysroot).join("lib/rustlib").join(&target).join("bin/gcc-ld/ld.lld");
    target == "x86_64-unknown-linux-gnu" && !is_told_otherwise && lld.exists()
}

/// A variable that cargo sets; empty without it.
#[expect(clippy::disallowed_methods, reason = "these are no settings of the gateway")]
fn set(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
