#!/bin/sh
# Lets the load balancer reach realpeer, and nobody else.
set -eu
ufw allow proto tcp from 192.0.2.5 to any port 2222 comment realpeer
