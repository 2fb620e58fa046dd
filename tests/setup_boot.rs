//! From a fresh machine to the client's address in sshd's log, as a newcomer types it: a real systemd,
//! booted in a container of its own (systemd-nspawn), with nginx as the load balancer and an ssh client
//! in networks of their own.

mod support;

use nix::unistd::geteuid;
use support::{Host, Program, TempDir, nspawn};

/// What runs inside once systemd has booted. It notes each step, and ends the container.
const STORY: &str = r##"#!/bin/bash
exec >/story/result 2>&1
type() { echo "# $*"; "$@"; echo "[exit code $?]"; }

# The networks: client 203.0.113.7 - 203.0.113.1 load balancer 192.0.2.5 - 192.0.2.10 this machine.
ip link set lo up
ip netns add balancer
ip netns add client
ip link add eth0 type veth peer name eth0 netns balancer
ip -n balancer link add eth1 type veth peer name eth0 netns client
ip address add 192.0.2.10/24 dev eth0
ip -n balancer address add 192.0.2.5/24 dev eth0
ip -n balancer address add 203.0.113.1/24 dev eth1
ip -n client address add 203.0.113.7/24 dev eth0
ip link set eth0 up
for place in 'balancer link set eth0' 'balancer link set eth1' 'client link set eth0'; do ip -n $place up; done
# A server with sshd.
mkdir -p /run/sshd /root/.ssh
ssh-keygen -q -A
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/story
cp /root/.ssh/story.pub /root/.ssh/authorized_keys
/usr/sbin/sshd -E /story/sshd.log

rules() { ip rule; ip -6 rule; nft list ruleset; find /etc/realpeer /etc/systemd -name '*realpeer*'; }
rules >/story/before
type realpeer setup -yes -backend 127.0.0.1:22 -from 192.0.2.5 -listen :2222

line=$(realpeer setup -backend 127.0.0.1:22 -from 192.0.2.5 -listen :2222 2>/dev/null | grep -o 'proxy_pass.*')
cat >/story/nginx.conf <<NGINX
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {}
stream { server { listen 22000; $line } }
NGINX
ip netns exec balancer nginx -c /story/nginx.conf -e stderr -g 'pid /run/story.pid;'
ssh="ssh -q -i /root/.ssh/story -o BatchMode=yes -o StrictHostKeyChecking=no -p 22000 root@203.0.113.1"
echo "session $(ip netns exec client $ssh 'echo $SSH_CONNECTION')"
type grep Accepted /story/sshd.log

type realpeer setup -yes -backend 127.0.0.1:22 -from 192.0.2.5 -listen :2222 >/story/again
echo "again $(tail -1 /story/again)"
echo "still $(ip netns exec client $ssh 'echo $SSH_CONNECTION')"
# Another load balancer: the running proxy takes it without an end of its sessions.
before=$(systemctl show -P MainPID realpeer@ssh)
realpeer setup -yes -backend 127.0.0.1:22 -from 192.0.2.5,192.0.2.6 -listen :2222 >/story/changed
echo "changed $? same process $([ "$before" = "$(systemctl show -P MainPID realpeer@ssh)" ] && echo yes)"
echo "in force $(realpeer config show -name ssh | grep allowed-subnets)"
# A port that cannot be had: the service does not start, and nothing is left of it.
realpeer setup -yes -name bad -backend 127.0.0.1:22 -from 192.0.2.5 -listen 192.0.2.99:2299 2>/story/bad
echo "bad $? $(grep -c "nothing was changed.*does not start" /story/bad) $(ls /etc/realpeer) $(systemctl is-failed realpeer@bad)"

type realpeer setup -undo -yes
rules | diff /story/before - && echo "as before"
echo "unit $(systemctl is-active realpeer@ssh)"
sync
systemctl poweroff --force
"##;

#[test]
fn a_newcomer_gets_the_clients_address_into_sshds_log() {
    if !geteuid().is_root() {
        // Containers that boot are root's. The rest is tried as an ordinary user by tests/setup.rs.
        let mut nspawn = Host::new("machine").spawn(&["systemd-nspawn", "--directory=/", "true"]);
        assert_ne!(
            nspawn.exit_code(),
            0,
            "an ordinary user boots containers here"
        );
        return;
    }
    let story = nspawn::tell(
        &TempDir::new(),
        STORY,
        &[(Program::Realpeer.path(), "/usr/bin/realpeer")],
    );
    println!("{story}");
    for line in [
        "/etc/realpeer/ssh.toml is written.",
        "/etc/systemd/system/realpeer@ssh.service is written.",
        "realpeer@ssh.service is enabled and runs.",
        "      proxy_pass 192.0.2.10:2222; proxy_protocol on;",
        "changed 0 same process yes",
        "in force allowed-subnets = [\"192.0.2.5/32\", \"192.0.2.6/32\"]",
        "again [exit code 0]",
        "bad 1 1 ssh.toml inactive",
        "realpeer@ssh.service is stopped and disabled.",
        "as before",
        "unit inactive",
    ] {
        assert!(
            story.lines().any(|told| told == line),
            "no {line:?} in\n{story}"
        );
    }
    for part in [
        "session 203.0.113.7 ",
        "still 203.0.113.7 ",
        "from 203.0.113.7 port ",
    ] {
        assert!(story.contains(part), "no {part:?} in\n{story}");
    }
    assert!(!story.contains("\nfailed"), "{story}");
}
