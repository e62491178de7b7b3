//! `producer <prefix>` writes one generation after the other until it is killed. It says on standard
//! output what it has promised, each line after the promise was made good.

use std::io::Write;
use std::process::ExitCode;

use mmfast_core::indexed::Prefix;
use mmfast_core::{Error, Result};
use mmfast_producer::{Word, produce};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where it goes is the caller's business; there is nobody else to tell.
            writeln!(std::io::stderr(), "{error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path = std::env::args_os().nth(1);
    let at = Prefix::new(path.ok_or_else(|| Error::argument("usage: producer <prefix>"))?)?;
    let mut output = std::io::stdout().lock();
    let mut tell = |word: Word| {
        let told = writeln!(output, "{word}").and_then(|()| output.flush());
        told.map_err(|error| Error::io("write to", at.path(), error))
    };
    tell(Word::Ready)?;
    loop {
        produce(&at, &mut tell)?;
    }
}
