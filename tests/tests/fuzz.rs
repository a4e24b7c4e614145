//! Random programs over the whole system: see `umbra_tools::fuzz`.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbra_tools::fuzz::sample::main()
}
