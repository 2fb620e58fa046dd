#!/bin/sh
# Lets the load balancer reach realpeer, and nobody else; now and after the next boot.
set -eu
rule='rule family="ipv4" source address="192.0.2.5" port port="2222" protocol="tcp" accept'
firewall-cmd --permanent --add-rich-rule="$rule"
firewall-cmd --add-rich-rule="$rule"
