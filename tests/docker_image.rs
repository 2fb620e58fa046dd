//! The image of packaging/docker/Dockerfile, built and started by a real engine, by itself and as
//! examples/compose has it. What this machine cannot have without a registry, the images to build from,
//! is made of its own programs; `cargo` in it hands out the binary under test.

mod support;

use std::io::Read;

use serde_json::{Value, json};
use support::engine::Kind;
use support::header::v1;
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};
use support::streams::{receive, send};
use support::{Engine, Host, TempDir, addr, image, repository, wait_until};

const BOTH: &str = "--cap-add NET_ADMIN --cap-add NET_RAW";
const LOOPBACK: &str = "-4 127.0.0.1:22 -6 [::1]:22";

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

struct Scene<'a> {
    client: &'a Host,
    server: &'a Host,
    engine: Engine<'a>,
}

/// An engine with the image.
fn on_stage(story: impl FnOnce(&Scene<'_>)) {
    let (client, server) = support::stage::wire();
    let Some(engine) = Engine::start(Kind::Docker, &server) else {
        return;
    };
    let scene = Scene {
        client: &client,
        server: &server,
        engine,
    };
    // Debian's nginx has as a module what the image's has in it.
    let nginx = format!("load_module {}; daemon off;", image::STREAM);
    let nginx = ["/usr/sbin/nginx", "-g", &nginx];
    let names = ["rust:1-alpine", "debian:12-slim", "nginx:1-alpine"];
    image::import(&scene.engine, &server, &names, &nginx);
    scene.build("realpeer", "packaging/docker/Dockerfile", "");
    story(&scene);
}

impl Scene<'_> {
    /// Builds an image by the repository's own Dockerfile, with BuildKit.
    #[track_caller]
    fn build(&self, name: &str, dockerfile: &str, context: &str) {
        // Another docker in the path may lack BuildKit.
        let mut docker = self.server.command("/usr/bin/docker");
        let socket = format!("unix://{}", self.engine.socket());
        docker.env("DOCKER_BUILDKIT", "1");
        docker.args(["-H", &socket, "build", "-t", name, "-f"]);
        docker.arg(repository(dockerfile)).arg(repository(context));
        let output = docker.output().expect("it is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    /// Starts the image in the network of `app`, without any capability but those of `flags`.
    fn run(&self, flags: &str, targets: &str) {
        let remove = self.engine.command(&["rm", "-f", "realpeer"]).output();
        remove.expect("it is installed");
        let line = format!(
            "run -d --name realpeer --network container:app --cap-drop ALL {flags} realpeer -l 0.0.0.0:2222 -v 1 {targets}"
        );
        self.engine.ok(&words(&line));
        wait_until("the image's program listens", || {
            self.logs("realpeer").contains("\"listening\"")
        });
    }

    fn logs(&self, name: &str) -> String {
        let output = self
            .engine
            .command(&["logs", name])
            .output()
            .expect("it is installed");
        let both = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&both).into_owned()
    }

    fn inspect(&self, name: &str, form: &str) -> String {
        self.engine.ok(&["inspect", "-f", form, name])
    }

    fn address(&self) -> String {
        self.inspect("app", "{{.NetworkSettings.IPAddress}}")
    }

    /// Both families reach the OpenSSH of `app`, which logs the client.
    #[track_caller]
    fn assert_serves(&self, port: u16) {
        self.assert_serves_from(CLIENT, VISITED, port);
        self.assert_serves_from(CLIENT6, VISITED6, port);
    }

    #[track_caller]
    fn assert_serves_from(&self, client: &str, visited: &str, port: u16) {
        let mut client = addr(client);
        client.set_port(port);
        let near = self.server.dial(&format!("{}:2222", self.address()));
        send(&near, v1(&client.to_string(), visited));
        assert_eq!(receive(&near, 8), b"SSH-2.0-", "{}", self.logs("realpeer"));
        self.engine.wait_for_client("app", &client.to_string());
    }

    /// What the running program says of its sandbox.
    fn sandbox(&self) -> Value {
        let status = "exec realpeer /usr/bin/realpeer ctl -json status";
        let answer: Value = serde_json::from_str(&self.engine.ok(&words(status))).expect("JSON");
        answer["status"]["sandbox"].clone()
    }
}

#[test]
fn the_image_serves_beside_an_application_with_no_more_than_it_needs() {
    on_stage(|scene| {
        let engine = &scene.engine;
        engine.run_sshd("app", &[]);
        assert_eq!(scene.inspect("realpeer", "{{.Config.User}}"), "65532:65532");

        // Without a place for the control socket.
        scene.run(&format!("{BOTH} --read-only"), LOOPBACK);
        scene.assert_serves(40001);
        let asked = engine
            .command(&words("exec realpeer /usr/bin/realpeer ctl status"))
            .output();
        assert!(!asked.expect("it is installed").status.success());

        let socket = "--read-only --tmpfs /run/realpeer:uid=65532 --health-interval 1s";
        scene.run(&format!("{BOTH} {socket}"), LOOPBACK);
        scene.assert_serves(40002);
        wait_until("it is healthy", || {
            scene.inspect("realpeer", "{{.State.Health.Status}}") == "healthy"
        });
        let sandbox = scene.sandbox();
        assert_eq!(sandbox["user"], "realpeer");
        assert_eq!(sandbox["kept"], json!(["CAP_NET_ADMIN", "CAP_NET_RAW"]));
        let missed = scene.logs("realpeer").contains("will not come back");
        assert!(!missed, "{}", scene.logs("realpeer"));

        // It is process 1: no other process can take over, and SIGTERM ends it.
        let upgrade = engine
            .command(&words("exec realpeer /usr/bin/realpeer ctl upgrade"))
            .output();
        let upgrade = upgrade.expect("it is installed");
        let said = String::from_utf8_lossy(&upgrade.stderr);
        assert!(
            !upgrade.status.success() && said.contains("restart its container"),
            "{said}"
        );
        engine.ok(&words("stop -t 20 realpeer"));
        let code = scene.inspect("realpeer", "{{.State.ExitCode}}");
        assert_eq!(code, "0", "{}", scene.logs("realpeer"));

        // A container that ends, and one that cannot change anything.
        let up = "run --rm --network container:app --cap-drop ALL --cap-add NET_ADMIN --read-only realpeer routing up";
        engine.ok(&words(&format!("{up} {LOOPBACK}")));
        scene.run("--cap-add NET_RAW", LOOPBACK);
        scene.assert_serves(40003);
        assert_eq!(scene.sandbox()["kept"], json!(["CAP_NET_RAW"]));
    });
}

/// The script in cargo's place cannot tell that the Dockerfile leaves something out.
#[test]
fn cargo_finds_what_the_dockerfile_copies() {
    let directory = TempDir::new();
    let to = directory.path("").display().to_string();
    let text = std::fs::read_to_string(repository("packaging/docker/Dockerfile")).expect("a file");
    let copied = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    let (host, top) = (Host::new("builder"), repository("").display().to_string());
    for line in copied.filter(|line| !line.starts_with("--from")) {
        let line = line.strip_suffix(" ./").unwrap_or(line);
        let mut names = words(line);
        names.dedup();
        for name in names {
            host.run(&["cp", "-r", &format!("{top}/{name}"), &to]);
        }
    }
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args([
        "metadata",
        "--no-deps",
        "--offline",
        "--locked",
        "--format-version=1",
    ]);
    let output = cargo.current_dir(&to).output().expect("cargo is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// An engine's profile of system calls may lack those of the sandbox; who forbids new privileges forbids
/// those of a file, but not those of root; and /proc/sys is read-only.
#[test]
fn the_image_serves_where_the_engine_forbids_more() {
    on_stage(|scene| {
        scene.engine.run_sshd("app", &[]);
        let directory = TempDir::new();
        let forbidden = [
            "seccomp",
            "landlock_create_ruleset",
            "landlock_add_rule",
            "landlock_restrict_self",
        ];
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": forbidden, "action": "SCMP_ACT_ERRNO"}],
        });
        let profile = directory.file("profile.json", &profile.to_string());
        scene.run(
            &format!("{BOTH} --security-opt seccomp={profile}"),
            LOOPBACK,
        );
        scene.assert_serves(40001);
        let sandbox = scene.sandbox();
        let lines = scene.logs("realpeer");
        for part in ["seccomp", "landlock"] {
            assert_eq!(sandbox[part], "unavailable");
            let part = format!("\"part\":\"{part}\"");
            let warned =
                |line: &str| line.contains("lacks a part of the sandbox") && line.contains(&part);
            assert!(lines.lines().any(warned), "{lines}");
        }

        let forbidden = format!("{BOTH} --security-opt no-new-privileges");
        scene.run(&forbidden, LOOPBACK);
        let lines = scene.logs("realpeer");
        assert!(
            lines.contains("no allowPrivilegeEscalation: false"),
            "{lines}"
        );
        scene.run(&format!("{forbidden} --user 0"), LOOPBACK);
        scene.assert_serves(40002);

        let own = || format!("-4 {}:22", scene.address());
        scene.run(BOTH, &own());
        let lines = scene.logs("realpeer");
        let advice = "--sysctl net.ipv4.tcp_fwmark_accept=1";
        assert!(lines.contains(advice), "{lines}");
        scene.engine.ok(&words("rm -f realpeer app"));
        scene.engine.run_sshd("app", &words(advice));
        scene.run(BOTH, &own());
        scene.assert_serves_from(CLIENT, VISITED, 40003);
    });
}

/// examples/compose as it is. The client is another host.
#[test]
fn the_compose_example_serves_through_a_restart_of_the_application() {
    on_stage(|scene| {
        scene.build(
            "sshd",
            "examples/compose/sshd/Dockerfile",
            "examples/compose/sshd",
        );
        let compose = |words: &[&str]| {
            let mut compose = scene.server.command("docker-compose");
            compose.env("DOCKER_HOST", format!("unix://{}", scene.engine.socket()));
            let file = repository("examples/compose/compose.yaml");
            compose.arg("-f").arg(file).args(["-p", "ssh"]).args(words);
            let output = compose.output().expect("it is installed");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        compose(&["config", "-q"]);
        compose(&["up", "-d", "--no-build"]);
        let sshd = compose(&["ps", "-q", "sshd"]);
        let begin = || {
            let mut near = None;
            wait_until("OpenSSH answers through the ingress", || {
                near = scene.client.try_dial(None, "192.0.2.10:22000").ok();
                let mut banner = [0; 8];
                let read = near.as_mut().map(|near| near.read_exact(&mut banner));
                matches!(read, Some(Ok(()))) && &banner == b"SSH-2.0-"
            });
            near.expect("a connection")
                .local_addr()
                .expect("an address")
                .to_string()
        };
        scene.engine.wait_for_client(&sshd, &begin());
        scene.engine.ok(&["restart", "-t", "1", &sshd]);
        scene.engine.wait_for_client(&sshd, &begin());
        let realpeer = compose(&["ps", "-q", "realpeer"]);
        wait_until("it is healthy", || {
            scene.inspect(&realpeer, "{{.State.Health.Status}}") == "healthy"
        });
    });
}
