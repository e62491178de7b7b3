//! How new files take the place of old ones without ever being mixed with them.
//!
//! Writers work on `<prefix>.bin.tmp`, `<prefix>.mmf.tmp`, `<prefix>.idx.tmp` and, where there are media
//! references, `<prefix>.media.tmp` under `<prefix>.lock`. Once all of them are complete and durable:
//!
//! 1. `.idx.tmp` is renamed to `.idx.ready`: this commits;
//! 2. the journal goes, since all that it acknowledged is in the new files, and the old `.idx` goes,
//!    after its `.media`: from here on no dataset is seen;
//! 3. the new `.bin`, `.mmf` and `.media` are renamed into place;
//! 4. `.idx.ready` is renamed to `.idx`.
//!
//! The folder is made durable after each step, and within a step the order does not matter. So a
//! crash leaves one of two states. `.idx.ready` is not there: nothing has happened to the old files.
//! It is there: the new files are whole, each under its temporary name or under its own, and
//! [`complete`] does what is left. Whoever opens the dataset next does that.

use std::sync::Arc;

use super::prefix::Prefix;
use crate::error::Result;
use crate::vfs::{Lock, Vfs};

/// The exclusive right to replace a dataset. Dropped without [`Self::publish`], it removes what was
/// begun, except for what a journal vouches for.
#[derive(Debug)]
pub(super) struct Staging {
    vfs: Arc<dyn Vfs>,
    prefix: Prefix,
    process: u32,
    may_have_journal: bool,
    is_committed: bool,
    _lock: Lock,
}

impl Staging {
    /// Locks the prefix, completes what a killed writer was publishing there, and discards what
    /// another had in its journal.
    pub(super) fn begin(vfs: Arc<dyn Vfs>, prefix: &Prefix) -> Result<Self> {
        let mut staging = Self::begin_journaled(vfs, prefix)?;
        staging.discard_journal()?;
        Ok(staging)
    }

    /// The same, but a journal and the ids that it vouches for stay, now and when this is dropped.
    pub(super) fn begin_journaled(vfs: Arc<dyn Vfs>, prefix: &Prefix) -> Result<Self> {
        let lock = vfs.lock(&prefix.lock())?;
        complete(&*vfs, prefix)?;
        Ok(Self {
            vfs,
            prefix: prefix.clone(),
            process: std::process::id(),
            may_have_journal: true,
            is_committed: false,
            _lock: lock,
        })
    }

    pub(super) fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Gives up what the journal vouches for.
    pub(super) fn discard(mut self) -> Result<()> {
        self.discard_journal()
    }

    /// The journal goes before its ids: without them it would be taken for damaged.
    fn discard_journal(&mut self) -> Result<()> {
        if self.vfs.exists(&self.prefix.journal())? {
            self.vfs.remove(&self.prefix.journal())?;
            self.vfs.sync_folder_of(self.prefix.path())?;
        }
        self.may_have_journal = false;
        Ok(())
    }

    /// Puts the finished, synced temporary files in place. After an error the old ones are there, or,
    /// if it came late, the new ones: the next one to open the dataset completes what is left.
    pub(super) fn publish(mut self) -> Result<()> {
        self.vfs.sync_folder_of(self.prefix.path())?;
        self.vfs
            .rename(&self.prefix.new_idx(), &self.prefix.ready_idx())?;
        self.is_committed = true;
        complete(&*self.vfs, &self.prefix)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A forked child drops its copy of the parent's writer; the files are the parent's.
        if self.is_committed || self.process != std::process::id() {
            return;
        }
        // What cannot be removed now is overwritten by the next writer.
        self.vfs.remove(&self.prefix.new_sidecar()).ok();
        self.vfs.remove(&self.prefix.new_media()).ok();
        self.vfs.remove(&self.prefix.new_idx()).ok();
        self.vfs.remove(&self.prefix.new_journal()).ok();
        if !self.may_have_journal {
            self.vfs.remove(&self.prefix.new_bin()).ok();
        }
    }
}

/// Completes a publication that was committed. Needs the lock; may be cut short and done again.
pub(super) fn complete(vfs: &dyn Vfs, prefix: &Prefix) -> Result<()> {
    if !vfs.exists(&prefix.ready_idx())? {
        return Ok(());
    }
    // That it is committed must not be forgotten once there is no way back.
    vfs.sync_folder_of(prefix.path())?;
    if vfs.exists(&prefix.idx())? && vfs.exists(&prefix.media())? {
        // Durably before the old index goes: without that, a `.media` is the new one.
        vfs.remove(&prefix.media())?;
        vfs.sync_folder_of(prefix.path())?;
    }
    for superseded in [prefix.journal(), prefix.new_journal(), prefix.idx()] {
        vfs.remove(&superseded)?;
    }
    vfs.sync_folder_of(prefix.path())?;
    for (new, own) in [
        (prefix.new_bin(), prefix.bin()),
        (prefix.new_sidecar(), prefix.sidecar()),
        (prefix.new_media(), prefix.media()),
    ] {
        if vfs.exists(&new)? {
            vfs.rename(&new, &own)?;
        }
    }
    vfs.sync_folder_of(prefix.path())?;
    vfs.rename(&prefix.ready_idx(), &prefix.idx())?;
    vfs.sync_folder_of(prefix.path())
}
