//! How much a test tries: little in `make test`, much in `make reliability`, which sets
//! `MMFAST_RELIABILITY` and gathers what the tests report into `docs/reliability.md`.

use std::fmt::Display;

/// Whether this is the long run.
pub(crate) fn is_long() -> bool {
    std::env::var_os("MMFAST_RELIABILITY").is_some_and(|value| !value.is_empty())
}

/// `long` in the long run, else `short`.
pub(crate) fn scaled(short: u64, long: u64) -> u64 {
    if is_long() { long } else { short }
}

/// Tells `make reliability` what was tried and what came of it.
#[expect(clippy::print_stdout, reason = "this is what the table is made of")]
pub(crate) fn report(count: u64, unit: &str, seed: Option<u32>, result: impl Display) {
    let seed = seed.map_or("null".to_string(), |seed| seed.to_string());
    let result = result.to_string().replace('"', "'");
    println!(
        r#"reliability: {{"count": {count}, "unit": "{unit}", "seed": {seed}, "result": "{result}"}}"#
    );
}
