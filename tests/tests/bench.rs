//! Executed instructions against the counts that are checked in: see `umbra_tools::bench::counts`.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbra_tools::bench::counts::main()
}
