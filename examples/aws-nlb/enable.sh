#!/bin/sh
# Makes a TCP target group send PROXY version 2, from the load balancer's own addresses.
# TARGET_GROUP is its ARN.
set -eu
aws elbv2 modify-target-group-attributes \
    --target-group-arn "$TARGET_GROUP" \
    --attributes Key=proxy_protocol_v2.enabled,Value=true Key=preserve_client_ip.enabled,Value=false
