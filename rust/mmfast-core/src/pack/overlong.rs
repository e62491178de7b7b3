//! Documents longer than a row: refuse, cut, split or leave out.
//!
//! The rule of a cut: a text sequence may end after any id, unless [`CutAt::Segments`] keeps it whole; an
//! atomic sequence (image, video) is kept whole or left out together with everything behind it.

use crate::error::{Error, Result};
use crate::objective::{Sequence, is_atomic};

/// What happens to a document that does not fit a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlong {
    /// It is an error that names the document.
    Error,
    /// The longest prefix that the rule of a cut allows is kept.
    Truncate,
    /// It becomes several documents, cut by the same rule.
    Split,
    /// It is left out.
    Drop,
}

impl Overlong {
    /// From its name in a configuration.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "error" => Ok(Self::Error),
            "truncate" => Ok(Self::Truncate),
            "split" => Ok(Self::Split),
            "drop" => Ok(Self::Drop),
            _ => Err(Error::argument(format!(
                "overlong is one of error, truncate, split, drop; found {name:?}"
            ))),
        }
    }

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Truncate => "truncate",
            Self::Split => "split",
            Self::Drop => "drop",
        }
    }
}

/// Where a document may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CutAt {
    /// After any id of a text sequence, and between sequences.
    #[default]
    Ids,
    /// Between sequences only.
    Segments,
}

impl CutAt {
    /// From its name in a configuration.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "ids" => Ok(Self::Ids),
            "segments" => Ok(Self::Segments),
            _ => Err(Error::argument(format!(
                "cut_at is one of ids, segments; found {name:?}"
            ))),
        }
    }

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ids => "ids",
            Self::Segments => "segments",
        }
    }

    /// Whether a cut inside a sequence of this mode is allowed.
    pub fn divides(self, mode: u8) -> bool {
        self == Self::Ids && !is_atomic(mode)
    }
}

/// Ids in the longest prefix of at most `room` ids that ends where a cut is allowed.
pub fn longest_prefix(sequences: &[Sequence], room: u64, cut_at: CutAt) -> u64 {
    let mut kept = 0;
    for sequence in sequences {
        let length = u64::from(sequence.length);
        if kept + length > room {
            return if cut_at.divides(sequence.mode) {
                room
            } else {
                kept
            };
        }
        kept += length;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(length: u32, mode: u8) -> Sequence {
        Sequence { length, mode }
    }

    #[test]
    fn text_is_cut_anywhere_and_images_never() {
        let document = [sequence(5, 0), sequence(16, 1), sequence(4, 0)];
        for (room, kept) in [
            (0, 0),
            (3, 3),
            (5, 5),
            (20, 5),
            (21, 21),
            (23, 23),
            (25, 25),
            (90, 25),
        ] {
            assert_eq!(
                longest_prefix(&document, room, CutAt::Ids),
                kept,
                "room {room}"
            );
        }
    }

    #[test]
    fn video_is_atomic_and_the_no_loss_bit_changes_nothing() {
        for mode in [1, 2, 1 | 0x40, 2 | 0x40] {
            let kept = longest_prefix(&[sequence(5, mode)], 4, CutAt::Ids);
            assert_eq!(kept, 0, "mode {mode}");
        }
        for mode in [0x40, 3] {
            assert_eq!(longest_prefix(&[sequence(5, mode)], 4, CutAt::Ids), 4);
        }
    }

    #[test]
    fn at_segments_nothing_is_cut_but_between_sequences() {
        let document = [sequence(5, 0), sequence(16, 1), sequence(4, 0)];
        for (room, kept) in [(3, 0), (5, 5), (20, 5), (21, 21), (23, 21), (25, 25)] {
            let found = longest_prefix(&document, room, CutAt::Segments);
            assert_eq!(found, kept, "room {room}");
        }
    }

    #[test]
    fn names_go_both_ways() {
        for name in ["error", "truncate", "split", "drop"] {
            assert_eq!(Overlong::from_name(name).unwrap().name(), name);
        }
        for name in ["ids", "segments"] {
            assert_eq!(CutAt::from_name(name).unwrap().name(), name);
        }
        assert!(CutAt::from_name("text").is_err());
        assert!(Overlong::from_name("cut").is_err());
    }
}
