//! Hands the compiler's version to the crate, which reports it as part of `__build__`.

use std::io::Write;
use std::process::Command;
use std::{env, io};

fn main() -> io::Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output()?.stdout;
    let version = String::from_utf8_lossy(&version);
    let mut out = io::stdout();
    writeln!(out, "cargo::rerun-if-changed=build.rs")?;
    writeln!(out, "cargo::rustc-env=MMFAST_RUSTC={}", version.trim())
}
