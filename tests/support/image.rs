//! Images of this machine's own programs, in place of those that a registry has.

use super::{Engine, Host, Program, TempDir};

/// What the image is built from, and what it works with.
const PROGRAMS: [&str; 11] = [
    "/bin/sh",
    "/bin/mkdir",
    "/bin/cp",
    "/bin/rm",
    "/bin/echo",
    "/bin/sleep",
    "/sbin/setcap",
    "/usr/bin/ssh-keygen",
    "/usr/sbin/sshd",
    "/usr/sbin/nginx",
    STREAM,
];

/// nginx has it built in, but for Debian's.
pub const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A root directory for all of them. `cargo` has built the program already, and the packages are
/// installed; the libraries of a debug build, which is not static, get into the image, too.
const ROOT: &str = r#"
program=$1; shift
mkdir -p usr/bin usr/sbin usr/lib tmp run/sshd etc/ssh etc/ssl/certs var/log/nginx var/lib/nginx image
ln -s usr/bin bin
libraries() { for file in $(ldd "$1" | grep -o '/[^ ]*'); do mkdir -p "$2${file%/*}"; cp -L "$file" "$2$file"; done; }
for file; do mkdir -p ".${file%/*}"; cp -L "$file" ".$file"; libraries "$file" .; done
# Without what only debuggers read: each step of a build copies all.
strip -o realpeer "$program"
libraries "$program" image
echo UsePAM no >etc/ssh/sshd_config
echo certificates >etc/ssl/certs/ca-certificates.crt
printf 'root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
for script in apk apt-get; do printf '#!/bin/sh\necho %s "$@"\n' $script >bin/$script; done
printf '#!/bin/sh\nmkdir -p target/release && cp /realpeer target/release/\n' >bin/cargo
chmod +x bin/apk bin/apt-get bin/cargo
"#;

/// Imports one under these names, with what its containers run.
#[track_caller]
pub fn import(engine: &Engine<'_>, server: &Host, names: &[&str], command: &[&str]) {
    let directory = TempDir::new();
    let [root, tar] = ["root", "image.tar"].map(|name| directory.path(name).display().to_string());
    let script = format!("mkdir {root}; cd {root}; {ROOT} tar -cf {tar} .");
    let program = Program::Realpeer.path();
    server.run(&[&["sh", "-ec", &script, "sh", &program], &PROGRAMS[..]].concat());
    let command = serde_json::to_string(command).expect("it is JSON");
    let command = format!("CMD {command}");
    let path = "ENV PATH=/usr/bin:/usr/sbin:/sbin";
    engine.ok(&["import", "-c", path, "-c", &command, &tar, names[0]]);
    for name in &names[1..] {
        engine.ok(&["tag", names[0], name]);
    }
}
