//! The shim alone, for trying and for its tests: `shim -namespace NS -id ID start`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match shim::ShimArgs::parse(std::env::args_os().skip(1)) {
        Ok(args) => shim::run(&args),
        Err(error) => {
            eprintln!("shim: {error}");
            ExitCode::FAILURE
        }
    }
}
