//! Documents longer than a row: refuse, cut, split or leave out.
//!
//! The rule of a cut: a text sequence may end after any id; an atomic sequence (image, video) is kept
//! whole or left out together with everything behind it.

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

/// Ids in the longest prefix of at most `room` ids that ends inside no atomic sequence.
pub fn longest_prefix(sequences: &[Sequence], room: u64) -> u64 {
    let mut kept = 0;
    for sequence in sequences {
        let length = u64::from(sequence.length);
        if kept + length > room {
            return if is_atomic(sequence.mode) { kept } else { room };
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
            assert_eq!(longest_prefix(&document, room), kept, "room {room}");
        }
    }

    #[test]
    fn video_is_atomic_and_the_no_loss_bit_changes_nothing() {
        for mode in [1, 2, 1 | 0x40, 2 | 0x40] {
            assert_eq!(longest_prefix(&[sequence(5, mode)], 4), 0, "mode {mode}");
        }
        assert_eq!(longest_prefix(&[sequence(5, 0x40)], 4), 4);
        assert_eq!(longest_prefix(&[sequence(5, 3)], 4), 4);
    }

    #[test]
    fn names_go_both_ways() {
        for name in ["error", "truncate", "split", "drop"] {
            assert_eq!(Overlong::from_name(name).unwrap().name(), name);
        }
        assert!(Overlong::from_name("cut").is_err());
    }
}
