//! The packages beside Debian's: the RPM, the tarball with the static program, and as much of the
//! others as this machine can judge.

#[path = "../support/mod.rs"]
mod support;

mod files;
mod rpm;
mod syntax;
mod tarball;
