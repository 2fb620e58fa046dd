//! The network namespace that targets are in (`-target-netns`).

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::value::integer_in;

/// Whose targets: those of a namespace other than this host's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetNetns {
    /// Of a file such as `ip netns add` makes, by its absolute path.
    Path(PathBuf),
    /// Of a process, until it ends.
    Process(u32),
    /// Of a container, whenever it runs.
    Container {
        /// Who runs it.
        engine: Engine,
        /// Its name or id.
        name: String,
        /// The engine's API (`-docker-socket`).
        socket: PathBuf,
    },
}

/// A program that runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Engine {
    /// Docker.
    Docker,
    /// Podman, whose API is like Docker's.
    Podman,
}

impl Engine {
    /// As flags spell it.
    pub fn word(self) -> &'static str {
        match self {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
        }
    }

    /// Where its API is when root runs it.
    pub fn usual_socket(self) -> &'static Path {
        Path::new(match self {
            Engine::Docker => "/run/docker.sock",
            Engine::Podman => "/run/podman/podman.sock",
        })
    }
}

impl TargetNetns {
    /// Reads the value of `-target-netns`.
    pub fn read(text: &str) -> Result<TargetNetns, String> {
        let container = |engine: Engine, name: &str| match is_name(name) {
            true => Ok(TargetNetns::Container {
                engine,
                name: name.to_owned(),
                socket: engine.usual_socket().to_owned(),
            }),
            false => Err(format!(
                "{name:?} cannot be a container's name: letters, digits, - _ and . are allowed"
            )),
        };
        match text.split_once(':') {
            Some(("pid", number)) => {
                let pid = integer_in(number, 1, i64::from(i32::MAX))?;
                Ok(TargetNetns::Process(pid as u32))
            }
            Some(("docker", name)) => container(Engine::Docker, name),
            Some(("podman", name)) => container(Engine::Podman, name),
            _ if text.starts_with('/') => Ok(TargetNetns::Path(text.into())),
            _ => Err(
                "write the absolute path of a namespace file, pid:N, docker:NAME or podman:NAME"
                    .into(),
            ),
        }
    }
}

/// What Docker and Podman take as a name; it becomes a part of an URL.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

impl fmt::Display for TargetNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetNetns::Path(path) => path.display().fmt(f),
            TargetNetns::Process(pid) => write!(f, "pid:{pid}"),
            TargetNetns::Container { engine, name, .. } => write!(f, "{}:{name}", engine.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_written_as_it_is_read() {
        for text in ["/run/netns/blue", "pid:1234", "docker:git.ea-1", "podman:x"] {
            let read = TargetNetns::read(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "",
            "blue",
            "pid:",
            "pid:0",
            "pid:-1",
            "docker:",
            "docker:a/b",
            "docker:..",
            "lxc:a",
        ] {
            assert!(TargetNetns::read(text).is_err(), "{text:?}");
        }
    }
}
