//! Lists of networks: a file with one address or CIDR per line, looked up in a trie.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use prefix_trie::joint::set::JointPrefixSet;

use crate::sandbox;

/// A list of networks, or where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkList {
    /// A file with an address or CIDR a line.
    File(PathBuf),
    /// In the configuration file itself.
    Here(Vec<IpNet>),
}

impl NetworkList {
    /// The value of a flag: the name of a file.
    pub fn file(text: &str) -> Result<NetworkList, String> {
        Ok(NetworkList::File(text.into()))
    }
}

/// A set of networks. A look-up costs a walk down the trie, however many there are.
#[derive(Clone, Debug, Default)]
pub struct Networks(JointPrefixSet<IpNet>);

impl Networks {
    /// Reads a file. Unreadable, malformed and empty files are errors that name file and line.
    pub fn load(path: &Path) -> Result<Networks> {
        let networks = Networks::load_any(path)?;
        if networks.0.is_empty() {
            bail!(
                "{} lists no network, so nobody could connect; leave it out to let everybody",
                path.display()
            );
        }
        Ok(networks)
    }

    /// The networks of a list that may not be empty.
    pub fn of(list: &NetworkList) -> Result<Networks> {
        match list {
            NetworkList::File(path) => Networks::load(path),
            NetworkList::Here(networks) => Ok(networks.iter().copied().collect()),
        }
    }

    /// As `of`, for a list that may be empty.
    pub fn of_any(list: &NetworkList) -> Result<Networks> {
        match list {
            NetworkList::File(path) => Networks::load_any(path),
            NetworkList::Here(networks) => Ok(networks.iter().copied().collect()),
        }
    }

    /// As `load`, for a file that may list nothing.
    pub fn load_any(path: &Path) -> Result<Networks> {
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {name}{}", sandbox::hint(path)))?;
        let mut networks = Networks::default();
        for (number, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            let Some(network) = parse(entry) else {
                bail!(
                    "{name}, line {}: {entry:?} is neither an address nor a network such as 10.0.0.0/8",
                    number + 1
                );
            };
            networks.insert(network);
        }
        Ok(networks)
    }

    /// Adds a network.
    pub fn insert(&mut self, network: IpNet) {
        self.0.insert(network);
    }

    /// A network of the list that has addresses in common with `network`.
    pub fn overlap(&self, network: &IpNet) -> Option<IpNet> {
        let within = || self.0.children(network).next();
        self.0.get_lpm(network).or_else(within)
    }

    /// The narrowest network of the list that holds `ip`, which must not be IPv4-mapped.
    pub fn narrowest(&self, ip: IpAddr) -> Option<IpNet> {
        self.0.get_lpm(&ip.into())
    }

    /// Whether a network of the list holds `ip`, which must not be IPv4-mapped.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.narrowest(ip).is_some()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Networks {
        Networks(networks.into_iter().collect())
    }
}

/// A bare address or a CIDR; host bits are dropped, IPv4-mapped networks become IPv4.
pub fn parse(text: &str) -> Option<IpNet> {
    let network = match text.parse::<IpAddr>() {
        Ok(ip) => ip.into(),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    Some(canonical(network.trunc()))
}

fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    let mapped = Ipv6Addr::to_ipv4_mapped(&v6.network());
    match (mapped, v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(len)) => Ipv4Net::new(v4, len).map_or(network, IpNet::V4),
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Networks> {
        let dir = std::env::temp_dir().join(format!(
            "realpeer-networks-{:?}",
            std::thread::current().id()
        ));
        std::fs::write(&dir, text)?;
        let networks = Networks::load(&dir);
        std::fs::remove_file(&dir)?;
        networks
    }

    fn has(networks: &Networks, ip: &str) -> bool {
        networks.contains(ip.parse().unwrap())
    }

    #[test]
    fn addresses_networks_and_comments() {
        let list = load("# ours\n10.0.0.0/8 # behind\n192.0.2.7\n\n 2001:db8::/32\n::ffff:198.51.100.0/120\n172.16.9.9/12\n").unwrap();
        for ip in [
            "10.255.0.1",
            "192.0.2.7",
            "2001:db8:1::1",
            "198.51.100.200",
            "172.31.0.1",
        ] {
            assert!(has(&list, ip), "{ip}");
        }
        for ip in [
            "11.0.0.1",
            "192.0.2.8",
            "2001:db9::1",
            "198.51.101.1",
            "172.32.0.1",
        ] {
            assert!(!has(&list, ip), "{ip}");
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = load("10.0.0.0/8\nnonsense\n").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("nonsense"),
            "{error}"
        );
        assert!(load("10.0.0.0/33").is_err());
        assert!(
            load("# nothing\n")
                .unwrap_err()
                .to_string()
                .contains("no network")
        );
        let missing = Networks::load(Path::new("/nonexistent/list")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/list"));
    }

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        let list = load("10.0.0.0/8\n192.0.2.7\n").unwrap();
        for (network, expected) in [
            ("10.1.0.0/16", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("10.0.0.0/8")),
            ("192.0.2.0/24", Some("192.0.2.7/32")),
            ("192.0.2.8/32", None),
            ("::/0", None),
        ] {
            let found = list.overlap(&network.parse().unwrap());
            assert_eq!(found, expected.map(|n| n.parse().unwrap()), "{network}");
        }
    }

    #[test]
    fn a_default_route_covers_its_own_family_only() {
        let list = load("0.0.0.0/0\n").unwrap();
        assert!(has(&list, "203.0.113.9") && !has(&list, "2001:db8::1"));
    }
}
