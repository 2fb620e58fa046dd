//! What cannot run on this machine (GitHub's workflows, Nix, Alpine's abuild) says so at its head, and
//! its syntax is good.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::files;
use super::support::{Program, TempDir, repository, run};

const NOT_RUN: &str = "Not run where this was written";

fn in_folder(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[track_caller]
fn says_that_it_was_not_run(file: &Path) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{file:?}: {e}"));
    let head: Vec<&str> = text.lines().take(2).collect();
    assert!(head.join("\n").contains(NOT_RUN), "{file:?}: {head:?}");
}

/// They parse, and each job is one; each `run` is a shell's, and what it calls is here.
#[test]
fn the_workflows_call_what_there_is() {
    let workflows = in_folder(".github/workflows");
    assert!(workflows.len() >= 3, "{workflows:?}");
    for file in workflows {
        says_that_it_was_not_run(&file);
        let parse = "import json, sys, yaml; json.dump(yaml.load(open(sys.argv[1]), yaml.BaseLoader), sys.stdout)";
        let json = run(Command::new("/usr/bin/python3")
            .args(["-c", parse])
            .arg(&file));
        let workflow: Value = serde_json::from_str(&json).expect("python writes JSON");
        assert!(!workflow["on"].is_null(), "{file:?} has no trigger");
        let jobs = workflow["jobs"].as_object().expect("jobs");
        for (name, job) in jobs {
            match job["uses"].as_str() {
                Some(called) => {
                    assert!(
                        repository(called).is_file(),
                        "{file:?}: {name} uses {called}"
                    );
                }
                None => check_steps(&file, job),
            }
        }
    }
}

#[track_caller]
fn check_steps(file: &Path, job: &Value) {
    assert!(job["runs-on"].is_string(), "{file:?}: {job}");
    let steps = job["steps"].as_array().expect("steps");
    for step in steps {
        let Some(script) = step["run"].as_str() else {
            assert!(step["uses"].is_string(), "{file:?}: {step}");
            continue;
        };
        // An expression of GitHub's is text before the shell sees it.
        run(Command::new("bash").args(["-n", "-c", &script.replace("${{", "")]));
        let ours = script
            .split_whitespace()
            .filter(|word| word.starts_with("packaging/") || word.starts_with(".ci/"));
        for called in ours {
            assert!(repository(called).is_file(), "{file:?} calls {called}");
        }
    }
}

/// All architectures have each package.
#[test]
fn a_release_has_every_package_for_both_architectures() {
    let packages = fs::read_to_string(repository(".github/workflows/packages.yml"));
    let packages = packages.expect("it is there");
    for part in [
        "arch: x86_64",
        "arch: aarch64",
        "packaging/debian/build",
        "packaging/rpm/build",
        "packaging/tarball",
        "target/debian/*.deb",
        "target/generate-rpm/*.rpm",
        "target/tarball/*.tar.xz",
    ] {
        assert!(packages.contains(part), "no {part}");
    }
    let release = fs::read_to_string(repository(".github/workflows/release.yml"));
    assert!(
        release
            .expect("it is there")
            .contains("sha256sum -- * >SHA256SUMS")
    );
}

#[test]
fn the_flake_parses() {
    let mut expressions = in_folder("packaging/nix");
    expressions.push(repository("flake.nix"));
    assert!(expressions.len() >= 3, "{expressions:?}");
    for file in expressions {
        says_that_it_was_not_run(&file);
        // Without a store, which it would make below /nix.
        let mut nix = Command::new("nix-instantiate");
        run(nix.args(["--store", "dummy://", "--parse"]).arg(file));
    }
}

/// abuild is not in Debian: its functions are called as it would, from the top of the sources.
#[test]
fn the_apkbuild_installs_the_list_without_systemd() {
    for file in in_folder("packaging/alpine") {
        says_that_it_was_not_run(&file);
        run(Command::new("sh").arg("-n").arg(file));
    }
    let sources = TempDir::new();
    for name in [
        "packaging",
        "examples",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ] {
        symlink(repository(name), sources.path(name)).expect("make a link");
    }
    fs::create_dir_all(sources.path("target/release")).expect("make a directory");
    let program = sources.path("target/release/realpeer");
    symlink(Program::Realpeer.path(), program).expect("make a link");

    let mut package = Command::new("sh");
    package.args(["-euc", ". packaging/alpine/APKBUILD; package; echo $pkgver"]);
    package.env("pkgdir", sources.path("pkg"));
    package.env("srcdir", repository("packaging/alpine"));
    let version = run(package.current_dir(sources.path("")));
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    let mut wanted = files::installed();
    let systemd = ["systemd", "sysusers.d", "tmpfiles.d"].map(|name| format!("/usr/lib/{name}/"));
    wanted.retain(|file| !systemd.iter().any(|folder| file.starts_with(folder)));
    wanted.insert("/etc/init.d/realpeer".to_owned());
    assert_eq!(files::below(&sources.path("pkg")), wanted);
}
