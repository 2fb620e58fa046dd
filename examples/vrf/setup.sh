#!/bin/sh
# Lets a listener outside every VRF accept connections that arrive in one.
set -eu
sysctl -w net.ipv4.tcp_l3mdev_accept=1
sysctl -w net.ipv4.udp_l3mdev_accept=1
