//! `-user`: the process becomes another user right after it has read its configuration.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{
    AccessFlags, Gid, Uid, User, access, geteuid, initgroups, setgroups, setresgid, setresuid,
};

use super::capabilities::OF_THE_GATE;
use crate::control;

/// What a start takes: what the running process may keep, and what gives the control socket to a
/// group and empties the bounding set.
const OF_THE_START: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_CHOWN,
    Capability::CAP_SETPCAP,
];

/// A file that the process writes as that user, in a directory of this mode, which is made where it
/// is missing.
#[derive(Debug)]
pub struct Written {
    /// The file, which need not be there.
    pub file: PathBuf,
    /// The mode of a new directory.
    pub mode: u32,
}

/// Becomes the user `wanted`, a name or a number, with the capabilities that a start takes. To be
/// called before there are other threads. `enters_namespaces`: with those that this takes, too.
pub fn become_user(wanted: &str, writes: &[Written], enters_namespaces: bool) -> Result<()> {
    let user = Wanted::find(wanted)?;
    if geteuid() == user.uid {
        return Ok(());
    }
    let may = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if !may(Capability::CAP_SETUID) || !may(Capability::CAP_SETGID) {
        bail!("only root can become {wanted}: start realpeer as root, or leave -user out");
    }
    for written in writes {
        user.give_directory(written)?;
    }
    user.switch(enters_namespaces)
        .with_context(|| format!("cannot become {wanted}"))?;
    for Written { file, .. } in writes {
        if let Some(path) = unusable(file) {
            bail!(
                "{wanted} cannot write {}: chown -R {wanted} {}",
                path.display(),
                directory(file).display()
            );
        }
    }
    Ok(())
}

struct Wanted {
    /// As the user database has it.
    name: Option<CString>,
    uid: Uid,
    gid: Gid,
}

impl Wanted {
    /// A number that the user database does not know is its own group, too.
    fn find(text: &str) -> Result<Wanted> {
        let number = text.parse().ok();
        let known = match number {
            Some(number) => User::from_uid(Uid::from_raw(number)),
            None => User::from_name(text),
        };
        match (
            known.with_context(|| format!("cannot look up {text}"))?,
            number,
        ) {
            (Some(user), _) => Ok(Wanted {
                name: Some(CString::new(user.name)?),
                uid: user.uid,
                gid: user.gid,
            }),
            (None, Some(number)) => Ok(Wanted {
                name: None,
                uid: Uid::from_raw(number),
                gid: Gid::from_raw(number),
            }),
            (None, None) => bail!("there is no user {text}"),
        }
    }

    /// A directory that is made here, or that is realpeer's own and still root's, becomes the user's.
    fn give_directory(&self, written: &Written) -> Result<()> {
        let directory = directory(&written.file);
        let is_new = !directory.exists();
        if is_new {
            let made = DirBuilder::new().mode(written.mode).create(directory);
            made.with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let is_roots = fs::symlink_metadata(directory).is_ok_and(|found| found.uid() == 0);
        if is_new || (is_roots && directory == Path::new(control::DIRECTORY)) {
            // Nobody but root can have put another file there.
            let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
            for path in [written.file.as_path(), directory] {
                match lchown(path, Some(uid), Some(gid)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).with_context(|| format!("cannot give {}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn switch(&self, enters_namespaces: bool) -> Result<()> {
        match &self.name {
            Some(name) => initgroups(name, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setresgid(self.gid, self.gid, self.gid)?;
        nix::sys::prctl::set_keepcaps(true)?;
        setresuid(self.uid, self.uid, self.uid)?;
        nix::sys::prctl::set_keepcaps(false)?;
        let permitted = caps::read(None, CapSet::Permitted)?;
        let of_the_gate = OF_THE_GATE.into_iter().filter(|_| enters_namespaces);
        let kept: CapsHashSet = OF_THE_START
            .into_iter()
            .chain(of_the_gate)
            .filter(|capability| permitted.contains(capability))
            .collect();
        caps::set(None, CapSet::Permitted, &kept)?;
        caps::set(None, CapSet::Effective, &kept)?;
        Ok(())
    }
}

/// The directory of `file`, or `file` itself, if the user that we are now cannot write it.
fn unusable(file: &Path) -> Option<&Path> {
    let (all, both) = (
        AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
        AccessFlags::R_OK | AccessFlags::W_OK,
    );
    let directory = directory(file);
    if access(directory, all).is_err() {
        return Some(directory);
    }
    (file.exists() && access(file, both).is_err()).then_some(file)
}

fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
