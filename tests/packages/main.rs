//! The packages beside Debian's: the RPM, the tarball with the static program, and as much of the
//! others as this machine can judge.

#[path = "../support/mod.rs"]
mod support;

mod files;
mod rpm;
mod syntax;
mod tarball;

use std::process::Command;

/// Runs a command to its end, which must be a success, and returns what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{errors}");
    said
}
