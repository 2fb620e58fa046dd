# What an administrator types from a fresh Debian to the client's address in sshd's log, and through an
# upgrade to the removal. bash shows each line before it runs it; /story has the two packages.
set -v

systemctl start ssh
dpkg -i /story/realpeer.deb
systemctl show -P ConditionResult -P ActiveState realpeer

# The load balancer is on this host here; elsewhere its address goes into allowed-subnets.
cat >>/etc/realpeer/realpeer.toml <<EOF
[[listener]]
name = "ssh"
listen = "0.0.0.0:2222"
ipv4 = "127.0.0.1:22"
ipv6 = "[::1]:22"
allowed-subnets = ["127.0.0.1"]
EOF
realpeer config check /etc/realpeer/realpeer.toml
systemctl start realpeer
systemctl is-active realpeer

# What the load balancer sends when 203.0.113.7 connects to it.
exec 3<>/dev/tcp/127.0.0.1/2222
printf 'PROXY TCP4 203.0.113.7 192.0.2.10 40000 22\r\n' >&3
read -r banner <&3; echo "$banner"

# Another instance, whose socket is systemd's.
sed 's/2222/2223/; s/name = .*/name = "second"/' /etc/realpeer/realpeer.toml >/etc/realpeer/second.toml
mkdir /etc/systemd/system/realpeer@second.socket.d
printf '[Socket]\nListenStream=0.0.0.0:2223\n' >/etc/systemd/system/realpeer@second.socket.d/address.conf
systemctl daemon-reload
systemctl start realpeer@second.socket
systemctl is-active realpeer@second.service
visit() { # PORT
    exec 4<>"/dev/tcp/127.0.0.1/$1" || return
    printf 'PROXY TCP4 203.0.113.8 192.0.2.10 40001 22\r\n' >&4
    read -r -t 10 banner <&4 && [[ $banner == SSH-2.0-* ]]
    local served=$?
    printf 'SSH-2.0-visitor\r\n' >&4
    exec 4>&-
    return "$served"
}
visit 2223 && echo "the second serves"
systemctl is-active realpeer@second.service

# The upgrade, while clients come all the time and the first session stays open.
pid() { systemctl show -P MainPID "$1"; }
first=$(pid realpeer) second=$(pid realpeer@second)
until [ -e /run/enough ]; do visit 2222 && echo served || echo failed; done >/run/visits &
dpkg -i /story/newer.deb
touch /run/enough; wait
grep -q served /run/visits && ! grep failed /run/visits && echo "all were served"
[ "$first" != "$(pid realpeer)" ] && [ "$second" != "$(pid realpeer@second)" ] && echo "new processes"
visit 2223 && echo "the second still serves"
printf 'SSH-2.0-first\r\n' >&3
read -r -N 16 -t 10 <&3 && echo "the first session goes on"
exec 3>&-
for try in {1..100}; do journalctl --output=cat --identifier=sshd | grep 'port 40000' && break || sleep 0.1; done

systemctl stop realpeer@second.socket
ip rule | grep -q 'iif lo' && echo "rules are there"
dpkg -r realpeer
systemctl is-active realpeer realpeer@second
{ ip rule; ip -6 rule; } | grep -v 'lookup local$\|lookup main$\|lookup default$' || echo "no rule is left"
ip route show table all type local | grep -v 'table local' || echo "no route is left"
rm -r /etc/systemd/system/realpeer@second.socket.d
dpkg -P realpeer
ls -d /run/realpeer; getent passwd realpeer || echo "no user is left"
