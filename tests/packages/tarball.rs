//! The tarball with the static program, which runs where there is nothing else.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files;
use super::support::{Program, Stage, TempDir, repository, run};

/// Builds the program for musl: not as optimised as a release, and just as static. Nothing, and a
/// loud word, where Rust's target cannot be had.
fn static_program() -> Option<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-musl");
    if !has_target(&target) {
        eprintln!(
            "NOT TESTED: the static program; Rust's target {target} is not installed here, and \
             `rustup target add {target}` failed"
        );
        return None;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build", "--locked", "--bin", "realpeer", "--target", &target,
    ]);
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "none");
    run(cargo.current_dir(repository("")));
    let builds = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let builds = builds.expect("it is target/tmp");
    Some(builds.join(target).join("debug/realpeer"))
}

fn has_target(target: &str) -> bool {
    let mut rustc = Command::new("rustc");
    let words = ["--print", "target-libdir", "--target", target];
    let place = run(rustc.args(words).current_dir(repository("")));
    if Path::new(place.trim()).exists() {
        return true;
    }
    let mut rustup = Command::new("rustup");
    let added = rustup.args(["target", "add", target]);
    added
        .current_dir(repository(""))
        .status()
        .is_ok_and(|status| status.success())
}

/// Unpacked, there is a program that needs no other file; packaging/install in it installs what
/// every package installs.
#[test]
fn the_static_program_serves_in_an_empty_root() {
    let Some(program) = static_program() else {
        return;
    };
    let directory = TempDir::new();
    let mut script = Command::new(repository("packaging/tarball"));
    // Packing well takes longer than everything else here.
    script.env("XZ_OPT", "-0");
    let built = directory.path("built");
    let tarball = run(script.arg(&program).arg(&built));
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("realpeer-{version}-{ARCH}-unknown-linux-musl");
    assert_eq!(tarball.trim(), text(&built.join(format!("{name}.tar.xz"))));
    let mut tar = Command::new("tar");
    run(tar
        .args(["-xf", tarball.trim(), "-C"])
        .arg(directory.path("")));
    let unpacked = directory.path(&name);
    let program = unpacked.join("realpeer");
    let headers = run(Command::new("readelf").arg("-ldW").arg(&program));
    assert!(
        !headers.contains("INTERP") && !headers.contains("(NEEDED)"),
        "{headers}"
    );

    let root = directory.path("root");
    files::install(&unpacked.join("packaging/install"), &root);
    assert_eq!(files::below(&root), files::installed());

    let empty = directory.path("empty");
    fs::create_dir_all(&empty).expect("make the root");
    fs::copy(&program, empty.join("realpeer")).expect("copy the program");
    let mut chroot = Command::new("chroot");
    let help = run(chroot.arg(&empty).args(["/realpeer", "-h"]));
    assert!(help.contains("Usage:\n  realpeer"), "{help}");
    fs::create_dir(empty.join("proc")).expect("make the mount point");
    // The program's own path, outside of the root, comes first.
    let inside = "mount --rbind /proc $0/proc; shift; exec chroot $0 /realpeer \"$@\"";
    let empty = text(&empty);
    let wrapper = ["sh", "-ec", inside, &empty];
    let stage = Stage::under(Program::Realpeer, &wrapper, &[]);
    stage.assert_serves();
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths are UTF-8").to_owned()
}
