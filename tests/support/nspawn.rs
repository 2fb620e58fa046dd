//! The machine's own system, booted in a container (systemd-nspawn) with a real systemd; everything
//! that is written goes nowhere.

use std::fs;

use super::{Host, Running, TempDir};

/// Boots it with these files bound, and runs a shell script in it once systemd is up. The script finds
/// the directory as /story, and is to leave what it has to say in /story/result. The network is the
/// container's own.
pub fn tell(files: &TempDir, script: &str, binds: &[(String, &str)]) -> String {
    let host = Host::new("machine");
    files.file("story", script);
    let service = "[Service]\nType=oneshot\nExecStart=/bin/bash /story/story\n";
    let service = files.file("service", service);
    let directory = files.path("").display().to_string();
    let own = [
        (directory, "/story"),
        (service, "/etc/systemd/system/story.service"),
    ];
    let binds: Vec<String> = own
        .iter()
        .chain(binds)
        .map(|(from, to)| format!("--bind={from}:{to}"))
        .collect();
    let root = files.path("root");
    fs::create_dir(&root).expect("make a directory");
    // nspawn does not take / itself.
    let nspawn = "mount --bind / \"$0\" && exec systemd-nspawn --quiet --directory=\"$0\" \"$@\"";
    let root = root.display().to_string();
    // Each directory has a name of its own.
    let name = files
        .path("")
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let machine = format!("--machine={}", name.expect("a directory has a name"));
    let mut words = vec!["sh", "-c", nspawn, &root, &machine];
    words.extend(
        "--volatile=overlay --private-network --register=no --keep-unit --link-journal=no \
         --capability=all --console=pipe --boot"
            .split(' '),
    );
    // The container's own filter is older than Landlock.
    words.push(
        "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    );
    words.extend(binds.iter().map(String::as_str));
    words.extend(["systemd.unit=basic.target", "systemd.wants=story.service"]);
    let mut container: Running = host.spawn(&words);
    container.wait_for_exit();
    fs::read_to_string(files.path("result")).unwrap_or_else(|error| {
        panic!("{error}: {:?} {:?}", container.stdout(), container.stderr())
    })
}
