//! The capabilities of the calling thread, which each thread has for itself (capabilities(7)).

use std::io;

/// May claim foreign addresses.
pub const NET_RAW: u32 = 13;
/// May change routing.
pub const NET_ADMIN: u32 = 12;
/// May look into other users' processes.
pub const SYS_PTRACE: u32 = 19;
/// May enter namespaces, and much more.
pub const SYS_ADMIN: u32 = 21;

/// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// 32 capabilities of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives capabilities up for good, on this thread only. Those it does not have are none the worse.
pub fn give_up(capabilities: &[u32]) -> io::Result<()> {
    let mask = mask(capabilities);
    change(|bit| bit & !mask)
}

/// Keeps no other capabilities than these, on this thread only.
pub fn keep_only(capabilities: &[u32]) -> io::Result<()> {
    let mask = mask(capabilities);
    change(|bit| bit & mask)
}

/// Whether this thread has a capability in effect.
pub fn has(capability: u32) -> bool {
    read().is_ok_and(|sets| of(sets, |half| half.effective) & mask(&[capability]) != 0)
}

fn mask(capabilities: &[u32]) -> u64 {
    capabilities
        .iter()
        .fold(0, |mask, number| mask | 1 << number)
}

fn of(sets: [Sets; 2], set: impl Fn(Sets) -> u32) -> u64 {
    u64::from(set(sets[0])) | u64::from(set(sets[1])) << 32
}

fn change(change: impl Fn(u64) -> u64) -> io::Result<()> {
    let mut sets = read()?;
    let halves = |set: fn(Sets) -> u32| {
        let new = change(of(sets, set));
        [new as u32, (new >> 32) as u32]
    };
    let effective = halves(|half| half.effective);
    let permitted = halves(|half| half.permitted);
    let inheritable = halves(|half| half.inheritable);
    for (half, sets) in sets.iter_mut().enumerate() {
        *sets = Sets {
            effective: effective[half],
            permitted: permitted[half],
            inheritable: inheritable[half],
        };
    }
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    // SAFETY: the pointers lead to a header and the two halves that its version asks for; the kernel
    // only reads them.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn read() -> io::Result<[Sets; 2]> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the pointers lead to a header and to room for the two halves that its version tells.
    match unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(sets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_up_for_itself_alone() {
        let before = has(NET_RAW);
        let given_up = std::thread::spawn(|| give_up(&[NET_RAW]).map(|()| has(NET_RAW))).join();
        assert!(matches!(given_up, Ok(Ok(false))));
        assert_eq!(has(NET_RAW), before);
        let kept = std::thread::spawn(|| keep_only(&[SYS_ADMIN]).map(|()| has(NET_ADMIN))).join();
        assert!(matches!(kept, Ok(Ok(false))));
    }
}
