//! What HAProxy and nginx are told, to do what realpeer does.

use crate::run::{Stage, TARGET};
use crate::scene::PROXY;

/// As many as realpeer and go-mmproxy start on a machine of two cores.
const THREADS: usize = 2;

/// HAProxy's, which takes the client's address for its own by `usesrc`.
pub fn haproxy(stage: &Stage) -> Vec<String> {
    let config = format!(
        "global
  nbthread {THREADS}
  maxconn 6000
  tune.pipesize 1048576
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-auto
frontend f
  bind {PROXY} accept-proxy
  default_backend b
backend b
  source 0.0.0.0 usesrc client
  server s {TARGET}
"
    );
    // With a master process, which takes the signal for a reload.
    let file = stage.file("haproxy.cfg", &config);
    vec!["-W".into(), "-f".into(), file]
}

/// nginx's, and the flags that go with it.
pub fn nginx(stage: &Stage) -> Vec<String> {
    let (pid, log) = (stage.file("nginx.pid", ""), stage.file("nginx.log", ""));
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
{user} pid {pid}; error_log {log}; worker_processes {THREADS}; worker_rlimit_nofile 19000;
events {{ worker_connections 9000; }}
stream {{
  server {{
    listen {PROXY} proxy_protocol reuseport;
    set_real_ip_from 127.0.0.0/8;
    proxy_bind $remote_addr:$remote_port transparent;
    proxy_timeout 1h;
    proxy_pass {TARGET};
  }}
}}
"
    );
    [
        "-e".into(),
        log,
        "-g".into(),
        "daemon off;".into(),
        "-c".into(),
        stage.file("nginx.conf", &config),
    ]
    .into()
}
