//! Where a stream stands, and the check that a saved position belongs to it.

use crate::error::{Error, Result};
use crate::stream::Stream;
use crate::stream::feeder::past_end;
use crate::stream::window::WindowPlan;

/// Version of saved states; raised whenever the same state would mean other rows.
pub const STATE_VERSION: u64 = 1;

/// Parts of a fingerprint, in its order, with what a user may have changed.
const FINGERPRINT_PARTS: [(&str, &str); 4] = [
    (
        "packing",
        "packing, window_documents, bin_tokens, max_document_tokens, overlong or cut_at",
    ),
    ("blend", "weights, max_epochs or the number of sources"),
    ("objective", "the objective or its vocabulary"),
    ("data", "the documents or groups of a source"),
];

/// A position between bins. The bin may be the window's last plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Window of the next bin.
    pub window: u64,
    /// Number of the next bin in the window's permuted order.
    pub bin: u64,
}

/// A position that can be written down: the same on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// [`STATE_VERSION`] of the writer.
    pub version: u64,
    /// Seed of the stream.
    pub seed: u64,
    /// The position.
    pub cursor: Cursor,
    /// [`Stream::fingerprint`] of the writer.
    pub fingerprint: String,
}

impl Stream {
    /// The state of this stream at a position.
    pub fn state_at(&self, cursor: Cursor) -> State {
        State {
            version: STATE_VERSION,
            seed: self.config.seed,
            cursor,
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// The position in a state; an error that says what differs if the state is of another stream.
    pub fn cursor_of(&self, state: &State) -> Result<Cursor> {
        Ok(self.resume(state)?.0)
    }

    /// The position in a state and the plan of its window, which had to be made to check the position;
    /// `None` at the end of a finite stream.
    pub(crate) fn resume(&self, state: &State) -> Result<(Cursor, Option<WindowPlan>)> {
        if state.version != STATE_VERSION {
            return Err(Error::StateMismatch(format!(
                "it has version {} and this build reads {STATE_VERSION}; continue with the version of \
                 mmfast that wrote it",
                state.version
            )));
        }
        if state.seed != self.config.seed {
            return Err(Error::StateMismatch(format!(
                "it has seed {} and the stream {}",
                state.seed, self.config.seed
            )));
        }
        if state.fingerprint != self.fingerprint {
            let mut theirs = state.fingerprint.split('-');
            let differing: Vec<String> = self
                .fingerprint
                .split('-')
                .zip(FINGERPRINT_PARTS)
                .filter(|(mine, _)| theirs.next() != Some(*mine))
                .map(|(_, (part, cause))| format!("{part} ({cause})"))
                .collect();
            return Err(Error::StateMismatch(format!(
                "it was saved with another {}; restore that setting, or start a new stream",
                differing.join(" and another ")
            )));
        }
        Ok((state.cursor, self.plan_at(state.cursor)?))
    }

    /// The plan of a position's window; refuses positions that the stream never comes to.
    fn plan_at(&self, cursor: Cursor) -> Result<Option<WindowPlan>> {
        let Cursor { window, bin } = cursor;
        let plan = self.plan(window)?;
        let num_bins = match &plan {
            Some(plan) => plan.num_bins(),
            // The end of a finite stream lies at the start of the window after the last.
            None if window == 0 || self.has_window(window - 1) => 0,
            None => {
                return Err(Error::StateMismatch(format!(
                    "it stands in window {window}, which is past the end"
                )));
            }
        };
        if bin > num_bins {
            return Err(past_end(cursor, num_bins));
        }
        Ok(plan)
    }

    fn has_window(&self, window: u64) -> bool {
        let first = window.checked_mul(self.config.window_units());
        first.is_some_and(|position| self.order.locate(position).is_some())
    }
}
