//! How documents share rows: packed, one after the other, or each in a row of its own; and which of them
//! belong together.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

/// How documents share rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Whole documents in as few rows as best-fit-decreasing finds.
    #[default]
    BestFit,
    /// One after the other in stream order, cut where a row ends. Where the rule of a cut does not allow
    /// a cut there, the row ends early, so an image is never cut.
    Concat,
    /// One document or group a row, in stream order. Rows need no plan, so any position is known at once.
    None,
}

impl Packing {
    /// From its name in a configuration.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "best_fit" => Ok(Self::BestFit),
            "concat" => Ok(Self::Concat),
            "none" => Ok(Self::None),
            _ => Err(Error::argument(format!(
                "packing is one of best_fit, concat, none; found {name:?}"
            ))),
        }
    }

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestFit => "best_fit",
            Self::Concat => "concat",
            Self::None => "none",
        }
    }
}

/// Which documents of a source must share a row: runs of consecutive ones. What the stream orders and
/// counts are groups; documents keep their order inside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Groups {
    /// Each document for itself.
    #[default]
    Single,
    /// So many documents each; the last group may have fewer.
    OfSize(u64),
    /// First document of each group, then the number of documents.
    At(Arc<[u64]>),
}

impl Groups {
    /// Checks that the groups are those of so many documents.
    pub(crate) fn check(&self, num_documents: u64) -> Result<()> {
        match self {
            Self::OfSize(0) => Err(Error::argument("a group has at least 1 document, found 0")),
            Self::Single | Self::OfSize(_) => Ok(()),
            Self::At(starts) => {
                if starts.first() != Some(&0) || starts.last() != Some(&num_documents) {
                    return Err(Error::argument(format!(
                        "the boundaries of groups begin with 0 and end with the number of documents, \
                         {num_documents}; found {:?} to {:?}",
                        starts.first(),
                        starts.last()
                    )));
                }
                match starts
                    .windows(2)
                    .position(|pair| pair.first() >= pair.last())
                {
                    None => Ok(()),
                    Some(group) => Err(Error::argument(format!(
                        "group {group} has no documents: boundaries must rise"
                    ))),
                }
            }
        }
    }

    /// How many groups so many documents make.
    pub fn num_groups(&self, num_documents: u64) -> u64 {
        match self {
            Self::Single => num_documents,
            Self::OfSize(size) => num_documents.div_ceil((*size).max(1)),
            Self::At(starts) => starts.len().saturating_sub(1) as u64,
        }
    }

    /// The documents of a group.
    pub(crate) fn documents(&self, group: u64, num_documents: u64) -> Range<u64> {
        match self {
            Self::Single => group..group + 1,
            Self::OfSize(size) => {
                let start = group.saturating_mul(*size);
                start..start.saturating_add(*size).min(num_documents)
            }
            Self::At(starts) => {
                let at = usize::try_from(group).unwrap_or(usize::MAX);
                let bounds = starts.get(at).zip(starts.get(at.saturating_add(1)));
                bounds.map_or(0..0, |(start, end)| *start..*end)
            }
        }
    }

    /// Text for a fingerprint.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Single => "single".to_string(),
            Self::OfSize(size) => format!("of {size}"),
            Self::At(starts) => {
                let bytes: Vec<u8> = starts.iter().flat_map(|s| s.to_le_bytes()).collect();
                format!("at {:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
            }
        }
    }
}
