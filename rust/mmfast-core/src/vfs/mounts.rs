//! What kind of file system a file lies on, so that maps over a network can be avoided.

use std::fs;

use super::File;
use crate::error::Result;

const MOUNTS: &str = "/proc/self/mountinfo";
/// Kinds whose servers may take a file away, or cut it short, under a map; and on which every page that
/// a map touches is a round trip of its own. FUSE is counted among them: what is behind it cannot be told.
const NETWORK_KINDS: [&str; 17] = [
    "nfs", "nfs4", "lustre", "gpfs", "ceph", "cifs", "smb2", "smb3", "smbfs", "9p", "afs",
    "beegfs", "fuse", "panfs", "pvfs2", "orangefs", "wekafs",
];

/// The kind of file system of a file, as mounts name it (`ext4`, `nfs4`, `fuse.sshfs`), if it can be
/// told. Disks of this machine are not told apart: a file on a block device gives `None`.
pub fn file_system_kind(file: &File) -> Result<Option<String>> {
    let (major, minor) = file.device()?;
    if major != 0 {
        return Ok(None);
    }
    // Not every system lists its mounts; then nothing is known.
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    Ok(kind_of_device(&mounts, major, minor).map(str::to_string))
}

/// Whether files of this kind are reached over a network, or may be.
pub fn is_network_kind(kind: &str) -> bool {
    NETWORK_KINDS.contains(&kind) || kind.starts_with("fuse.")
}

/// Finds a device in the text of `mountinfo`: `36 35 0:44 / /data rw - nfs4 server:/data rw` (proc(5)).
fn kind_of_device(mounts: &str, major: u64, minor: u64) -> Option<&str> {
    let device = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let (fields, tail) = line.split_once(" - ")?;
        let is_it = fields.split_ascii_whitespace().nth(2) == Some(&device);
        is_it.then(|| tail.split_ascii_whitespace().next())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{Disk, Vfs};

    #[test]
    fn a_device_is_found_among_the_mounts() {
        let mounts = "22 28 0:20 / /proc rw,nosuid shared:14 - proc proc rw\n\
            36 28 0:44 / /data rw,relatime shared:1 master:2 - nfs4 server:/data rw\n\
            37 28 0:45 / /home rw - fuse.sshfs me@there: rw\n\
            broken line\n";
        assert_eq!(kind_of_device(mounts, 0, 44), Some("nfs4"));
        assert_eq!(kind_of_device(mounts, 0, 45), Some("fuse.sshfs"));
        assert_eq!(kind_of_device(mounts, 0, 4), None);
        assert_eq!(kind_of_device("", 0, 44), None);
    }

    #[test]
    fn networks_and_fuse_are_told_from_local_kinds() {
        for kind in [
            "nfs",
            "nfs4",
            "lustre",
            "gpfs",
            "ceph",
            "cifs",
            "fuse",
            "fuse.glusterfs",
        ] {
            assert!(is_network_kind(kind), "{kind}");
        }
        for kind in ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk"] {
            assert!(!is_network_kind(kind), "{kind}");
        }
    }

    #[test]
    fn a_file_of_this_machine_has_a_known_or_a_local_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        Disk.create(&path).unwrap();
        let kind = file_system_kind(&Disk.open(&path).unwrap()).unwrap();
        assert!(kind.is_none_or(|kind| !kind.is_empty()));
    }
}
