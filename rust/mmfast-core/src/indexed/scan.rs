//! One pass over all ids of a dataset: proves them readable and in range, and counts them.

use std::ops::Range;

use super::reader::IndexedDataset;
use super::source::DocumentSource;
use crate::error::{Error, Result};

/// Bits of a mode byte that name the modality.
const MODALITY_BITS: u8 = 0x1f;
/// Number of modalities that a mode byte can name.
pub const NUM_MODALITIES: usize = MODALITY_BITS as usize + 1;

/// What a pass over the ids found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Smallest and largest id; `None` if there is none.
    pub id_range: Option<(i64, i64)>,
    /// Sequences of each modality.
    pub sequences_by_modality: [u64; NUM_MODALITIES],
    /// Ids of each modality.
    pub tokens_by_modality: [u64; NUM_MODALITIES],
}

impl Scan {
    /// Takes up what a pass over other ids found.
    pub fn add(&mut self, other: &Self) {
        let ends = self.id_range.into_iter().chain(other.id_range);
        self.id_range = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let counts = [
            (
                &mut self.sequences_by_modality,
                &other.sequences_by_modality,
            ),
            (&mut self.tokens_by_modality, &other.tokens_by_modality),
        ];
        for (sums, numbers) in counts {
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum += number;
            }
        }
    }
}

/// Reads every id of some sequences. With `allowed`, an id outside it is [`Error::Corrupt`] naming
/// where it is.
pub fn scan(
    dataset: &IndexedDataset,
    sequences: Range<u64>,
    allowed: Option<&Range<i64>>,
) -> Result<Scan> {
    let mut found = Scan::default();
    let mut ids = Vec::new();
    for sequence in sequences {
        ids.resize(dataset.token_range(sequence)?.len(), 0);
        dataset.read_into(sequence..sequence + 1, 0, &mut ids)?;
        let modality = usize::from(dataset.mode(sequence)? & MODALITY_BITS);
        if let (Some(count), Some(tokens)) = (
            found.sequences_by_modality.get_mut(modality),
            found.tokens_by_modality.get_mut(modality),
        ) {
            *count += 1;
            *tokens += ids.len() as u64;
        }
        let (Some(&smallest), Some(&largest)) = (ids.iter().min(), ids.iter().max()) else {
            continue;
        };
        if let Some(allowed) = allowed
            && !(allowed.contains(&smallest) && allowed.contains(&largest))
        {
            return Err(outside(dataset, sequence, &ids, allowed));
        }
        found.id_range = Some(match found.id_range {
            Some((low, high)) => (low.min(smallest), high.max(largest)),
            None => (smallest, largest),
        });
    }
    Ok(found)
}

fn outside(dataset: &IndexedDataset, sequence: u64, ids: &[i64], allowed: &Range<i64>) -> Error {
    let position = ids.iter().position(|id| !allowed.contains(id)).unwrap_or(0);
    Error::corrupt(
        &dataset.prefix().bin(),
        format!(
            "id {} at position {position} of sequence {sequence} (document {}) is outside {}..{}",
            ids.get(position).copied().unwrap_or(0),
            dataset.document_of(sequence),
            allowed.start,
            allowed.end
        ),
    )
}
