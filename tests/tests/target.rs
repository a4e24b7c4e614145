//! The on-target tests: see `umbra_tools::harness`.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbra_tools::harness::main()
}
