//! What the index says of many documents: where their sequences are, their lengths and modes.
//!
//! Documents come in random order, so each look-up waits for memory. Many are made at once, pass by pass,
//! so that the waits of different documents overlap.

use std::ops::Range;

use crate::error::Result;
use crate::objective::Sequence;
use crate::stream::Stream;

/// The sequences of some documents; used again for others.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    ranges: Vec<Range<u64>>,
    sequences: Vec<Sequence>,
    /// Where each document ends among `sequences`.
    ends: Vec<usize>,
}

impl Lookup {
    /// Looks up documents, given by source and number.
    pub(crate) fn look_up(
        &mut self,
        stream: &Stream,
        documents: impl Iterator<Item = (u64, u64)> + Clone,
    ) -> Result<()> {
        self.ranges.clear();
        self.sequences.clear();
        self.ends.clear();
        for (source, document) in documents.clone() {
            let documents = &stream.source(source)?.documents;
            self.ranges.push(documents.document_sequences(document)?);
        }
        for ((source, _), range) in documents.zip(&self.ranges) {
            let documents = &stream.source(source)?.documents;
            for sequence in range.clone() {
                self.sequences.push(Sequence {
                    length: documents.sequence_length(sequence)?,
                    mode: documents.mode(sequence)?,
                });
            }
            self.ends.push(self.sequences.len());
        }
        Ok(())
    }

    /// Which sequences the `index`-th of those documents has.
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        self.ranges.get(index).cloned().unwrap_or_default()
    }

    /// Their lengths and modes.
    pub(crate) fn sequences(&self, index: usize) -> &[Sequence] {
        let before = index
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        let start = before.copied().unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(start);
        self.sequences.get(start..end).unwrap_or_default()
    }
}
