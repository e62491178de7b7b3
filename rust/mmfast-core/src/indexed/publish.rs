//! How new files take the place of old ones without ever being mixed with them.
//!
//! Writers work on `<prefix>.bin.tmp`, `<prefix>.mmf.tmp` and `<prefix>.idx.tmp` under
//! `<prefix>.lock`. To publish:
//!
//! 1. the old files step aside, `.idx` first: from here on there is no dataset. Where there was no
//!    `.mmf`, an empty `.mmf.old` says so;
//! 2. the new `.bin` and the new `.mmf` are renamed into place;
//! 3. the new `.idx` is renamed into place: this commits;
//! 4. the old files are removed, `.idx.old` last.
//!
//! The folder is made durable after each step, so a crash leaves one of two states. `.idx` is there:
//! the new files are whole. Only `.idx.old` is there: each old file is whole, under its stepped-aside
//! name if it has one and else under its own, and [`recover`] puts it back. Whoever opens the dataset
//! next does that.

use std::sync::Arc;

use super::prefix::Prefix;
use crate::error::Result;
use crate::vfs::{Lock, Vfs};

/// The exclusive right to replace a dataset; removes what was begun unless it is published.
#[derive(Debug)]
pub(super) struct Staging {
    vfs: Arc<dyn Vfs>,
    prefix: Prefix,
    process: u32,
    is_published: bool,
    _lock: Lock,
}

impl Staging {
    /// Locks the prefix, completes or undoes what a killed writer left there.
    pub(super) fn begin(vfs: Arc<dyn Vfs>, prefix: &Prefix) -> Result<Self> {
        let lock = vfs.lock(&prefix.lock())?;
        recover(&*vfs, prefix)?;
        Ok(Self {
            vfs,
            prefix: prefix.clone(),
            process: std::process::id(),
            is_published: false,
            _lock: lock,
        })
    }

    pub(super) fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Puts the finished, synced temporary files in place. On an error the old ones stay or come
    /// back, unless even that fails; then the next one to open the dataset brings it back.
    pub(super) fn publish(mut self) -> Result<()> {
        let swapped = self.swap();
        if swapped.is_err() {
            // The error that is reported is the first one.
            recover(&*self.vfs, &self.prefix).ok();
            return swapped;
        }
        self.is_published = true;
        remove_old(&*self.vfs, &self.prefix)
    }

    fn swap(&self) -> Result<()> {
        let (vfs, prefix) = (&*self.vfs, &self.prefix);
        if vfs.exists(&prefix.idx())? {
            vfs.rename(&prefix.idx(), &prefix.old_idx())?;
            vfs.sync_folder_of(prefix.path())?;
            if vfs.exists(&prefix.sidecar())? {
                vfs.rename(&prefix.sidecar(), &prefix.old_sidecar())?;
            } else {
                vfs.create(&prefix.old_sidecar())?;
            }
            vfs.sync_folder_of(prefix.path())?;
            if vfs.exists(&prefix.bin())? {
                vfs.rename(&prefix.bin(), &prefix.old_bin())?;
                vfs.sync_folder_of(prefix.path())?;
            }
        }
        vfs.rename(&prefix.new_bin(), &prefix.bin())?;
        vfs.sync_folder_of(prefix.path())?;
        vfs.rename(&prefix.new_sidecar(), &prefix.sidecar())?;
        vfs.sync_folder_of(prefix.path())?;
        vfs.rename(&prefix.new_idx(), &prefix.idx())?;
        vfs.sync_folder_of(prefix.path())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A forked child drops its copy of the parent's writer; the files are the parent's.
        if !self.is_published && self.process == std::process::id() {
            // What cannot be removed now is overwritten by the next writer.
            self.vfs.remove(&self.prefix.new_bin()).ok();
            self.vfs.remove(&self.prefix.new_sidecar()).ok();
            self.vfs.remove(&self.prefix.new_idx()).ok();
        }
    }
}

/// Brings a prefix whose publication was interrupted back to one whole dataset. Needs the lock.
pub(super) fn recover(vfs: &dyn Vfs, prefix: &Prefix) -> Result<()> {
    if vfs.exists(&prefix.idx())? {
        return remove_old(vfs, prefix);
    }
    if !vfs.exists(&prefix.old_idx())? {
        return Ok(());
    }
    if vfs.exists(&prefix.old_bin())? {
        vfs.rename(&prefix.old_bin(), &prefix.bin())?;
        vfs.sync_folder_of(prefix.path())?;
    }
    if vfs.exists(&prefix.old_sidecar())? {
        if vfs.open(&prefix.old_sidecar())?.num_bytes()? > 0 {
            vfs.rename(&prefix.old_sidecar(), &prefix.sidecar())?;
        } else {
            vfs.remove(&prefix.sidecar())?;
            vfs.sync_folder_of(prefix.path())?;
            vfs.remove(&prefix.old_sidecar())?;
        }
        vfs.sync_folder_of(prefix.path())?;
    }
    vfs.rename(&prefix.old_idx(), &prefix.idx())?;
    vfs.sync_folder_of(prefix.path())
}

/// `.idx.old` goes last, so that no other is ever found without the one that it belongs to.
fn remove_old(vfs: &dyn Vfs, prefix: &Prefix) -> Result<()> {
    for old in [prefix.old_bin(), prefix.old_sidecar(), prefix.old_idx()] {
        if vfs.exists(&old)? {
            vfs.remove(&old)?;
            vfs.sync_folder_of(prefix.path())?;
        }
    }
    Ok(())
}
