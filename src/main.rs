//! The program `realpeer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    realpeer::program::main()
}
