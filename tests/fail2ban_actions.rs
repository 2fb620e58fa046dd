//! The action that is shipped for the application server, as fail2ban runs it.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::fail2ban::{Fail2ban, idle_jail};
use support::{Ctl, Program, Stage, TempDir, wait_until};

/// realpeer as the action starts it, with a line in a file each time.
fn counted(files: &TempDir) -> String {
    let script = format!(
        "#!/bin/sh\necho $* >>{}\nexec {} \"$@\"\n",
        files.path("calls").display(),
        Program::Realpeer.path()
    );
    let path = files.file("realpeer", &script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    path
}

/// The shipped action, by this program.
fn action(ctl: &Ctl, program: &str) -> String {
    format!(
        "realpeer[options=\"-control {}\", realpeer={program}]",
        ctl.path()
    )
}

fn calls(files: &TempDir, action: &str) -> usize {
    let calls = fs::read_to_string(files.path("calls")).unwrap_or_default();
    calls.matches(action).count()
}

/// fail2ban speaks to nobody while realpeer restarts, and neither a ban nor an unban is lost.
#[test]
fn a_ban_and_an_unban_during_a_restart_are_made_good() {
    let (ctl, files) = (Ctl::new(), TempDir::new());
    let state = ctl.state().display().to_string();
    let flags = ["-control", &ctl.path(), "-state-dir", &state];
    let mut stage = Stage::new(&flags);
    let action = action(&ctl, &counted(&files));
    let fail2ban = Fail2ban::start(&stage.server, &idle_jail("ssh", &action));
    for (action, call, banned) in [("banip", " ban ", true), ("unbanip", " unban ", false)] {
        stage.proxy.signal(nix::sys::signal::Signal::SIGTERM);
        stage.proxy.wait_for_exit();
        let words = format!("set ssh {action} 203.0.113.9");
        let mut telling = fail2ban.start_telling(&stage.server, &words);
        wait_until("it was tried in vain", || calls(&files, call) > 1);
        let all = [&support::stage::ADDRESSES, &flags[..]].concat();
        stage.proxy = Program::Realpeer.start(&stage.server, &all);
        assert_eq!(telling.exit_code(), 0);
        assert_eq!(ctl.ok("bans").contains("203.0.113.9"), banned);
    }
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}

/// A proxy that is gone for good is given up, and told.
#[test]
fn a_proxy_that_stays_away_is_told() {
    let (ctl, files) = (Ctl::new(), TempDir::new());
    let host = support::Host::new("server");
    let action = action(&ctl, &counted(&files));
    let fail2ban = Fail2ban::start(&host, &idle_jail("ssh", &action));
    fail2ban.tell(&host, "set ssh banip 203.0.113.9");
    // fail2ban itself tries twice what fails.
    assert!((10..=20).contains(&calls(&files, " ban ")));
    assert!(fail2ban.has_failed());
}

/// When fail2ban starts again, what is left of a ban is told, not its whole time.
#[test]
fn a_restored_ban_has_what_is_left_of_its_time() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let action = action(&ctl, &Program::Realpeer.path());
    let jails = idle_jail("long", &action)
        + "bantime = 7200\n"
        + &idle_jail("ever", &action)
        + "bantime = -1\n";
    let fail2ban = Fail2ban::start(&stage.server, &jails);
    fail2ban.tell(&stage.server, "set long banip 203.0.113.1");
    fail2ban.tell(&stage.server, "set ever banip 203.0.113.2");
    let fail2ban = fail2ban.restart_after(&stage.server, 3000);
    stage.proxy.wait_for("what is left", |line| {
        // Half a minute for a slow machine.
        (4170..=4200).any(|n| line.contains(&format!("\"203.0.113.1/32\",\"seconds\":{n},")))
    });
    wait_until("the other is for ever", || ctl.ok("bans").contains("never"));
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}

/// A ban that fail2ban makes longer, and one for ever.
#[test]
fn the_proxy_learns_the_bans_own_time() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let action = action(&ctl, &Program::Realpeer.path());
    let jails = idle_jail("ever", &action)
        + "bantime = -1\n"
        + &idle_jail("more", &action)
        + "bantime = 2\nbantime.increment = true\nbantime.formula = ban.Time + 5\n";
    let fail2ban = Fail2ban::start(&stage.server, &jails);
    fail2ban.tell(&stage.server, "set ever banip 203.0.113.1");
    assert!(ctl.ok("bans").contains("never"), "{}", ctl.ok("bans"));
    fail2ban.tell(&stage.server, "set ever unbanip 203.0.113.1");
    fail2ban.tell(&stage.server, "set more banip 203.0.113.2");
    fail2ban.running.wait_for_line("Unban 203.0.113.2");
    fail2ban.tell(&stage.server, "set more banip 203.0.113.2");
    fail2ban.running.wait_for_line("Increase Ban 203.0.113.2");
    // The proxy says for how long.
    stage.proxy.wait_for("longer ban", |line| {
        ["6", "7"]
            .iter()
            .any(|n| line.contains(&format!("\"203.0.113.2/32\",\"seconds\":{n},")))
    });
    assert!(!fail2ban.has_failed(), "{:?}", fail2ban.running.stdout());
}
