//! The jails that read the systemd journal, as they are shipped: fail2ban finds in a real journal
//! what they are about, and realpeer carries the bans out.

mod support;

use support::fail2ban::Fail2ban;
use support::header::v1;
use support::stage::{CLIENT, VISITED};
use support::streams::assert_reset;
use support::{Ctl, Journal, Program, Stage, wait_until};

/// Enough for the jails' usual five.
const OFTEN: usize = 6;

#[test]
fn failed_log_ins_in_the_journal_are_banned_and_nothing_else_is() {
    let ctl = Ctl::new();
    let stage = Stage::new(&["-control", &ctl.path()]);
    let mut journal = Journal::new(&stage.server);
    // There is a journal long before fail2ban starts.
    journal.add(
        "_SYSTEMD_UNIT=ssh.service",
        "Server listening on :: port 22.",
    );
    journal.wait_until_written(&stage.server);
    let jails = format!(
        "[DEFAULT]
realpeer_action = realpeer[options=\"-control {}\", realpeer={}]
[realpeer-sshd]
enabled = true
backend = {backend}
[realpeer-gitea]
enabled = true
backend = {backend}
",
        ctl.path(),
        Program::Realpeer.path(),
        backend = journal.backend(),
    );
    let fail2ban = Fail2ban::start(&stage.server, &jails);
    let open = stage.session(CLIENT);

    let docker = "SYSLOG_IDENTIFIER=3f2a9c1d77e0\n_COMM=dockerd\n_SYSTEMD_UNIT=docker.service";
    let gitea = format!("CONTAINER_NAME=gitea\n{docker}");
    for (source, client) in [
        // Another container, and a user who plays sshd.
        (&*format!("CONTAINER_NAME=blog\n{docker}"), "198.51.100.1"),
        (
            "SYSLOG_IDENTIFIER=sshd\n_COMM=logger\n_SYSTEMD_UNIT=user@1000.service",
            "198.51.100.2",
        ),
        // Debian's OpenSSH, another distribution's since 9.8, and the container.
        (
            "SYSLOG_IDENTIFIER=sshd\n_COMM=sshd\n_SYSTEMD_UNIT=ssh.service",
            "203.0.113.7",
        ),
        (
            "SYSLOG_IDENTIFIER=sshd-session\n_COMM=sshd-session\n_SYSTEMD_UNIT=sshd.service",
            "2001:db8:c::8",
        ),
        (&gitea, "203.0.113.9"),
    ] {
        for port in 0..OFTEN {
            let port = 40000 + port;
            journal.add(
                source,
                &format!("Invalid user admin from {client} port {port}"),
            );
            journal.add(
                source,
                &format!("Accepted publickey for git from 198.51.100.3 port {port} ssh2: ED25519 SHA256:0"),
            );
        }
    }

    for client in ["203.0.113.7", "2001:db8:c::8", "203.0.113.9"] {
        fail2ban.wait_for_ban(client);
        wait_until("it is carried out", || ctl.ok("bans").contains(client));
    }
    assert_reset(&open.near);
    assert_reset(&stage.dial_and_send(v1("203.0.113.9:40000", VISITED)));
    let bans = ctl.ok("bans");
    assert!(
        bans.contains("fail2ban: realpeer-sshd") && bans.contains("fail2ban: realpeer-gitea"),
        "{bans}"
    );
    // The innocents' entries came first.
    assert_eq!(bans.lines().count(), 4, "{bans}");
    stage.assert_serves();
}
