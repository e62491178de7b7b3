//! One rank's part of a global batch: its memory, and what the memory holds.

use crate::stream::Cursor;
use crate::stream::row::{RowFacts, RowMedia};
use crate::stream::window::PlanCounts;

/// Label of positions that predict nothing: a document's last token, and padding.
pub const IGNORED_LABEL: i64 = -100;

/// A filled batch. `M` is where its arrays are.
#[derive(Debug)]
pub struct Batch<M> {
    /// The arrays.
    pub memory: M,
    /// What they hold.
    pub facts: BatchFacts,
}

/// What a batch holds. Dimensions: B rows, L = `bin_tokens`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BatchFacts {
    /// B, the same on every rank.
    pub num_rows: usize,
    /// L.
    pub row_tokens: usize,
    /// Ends of the documents in the flattened rows, after a leading 0. The padding of a row counts as
    /// one more document, so that the last entry is B·L.
    pub cu_seqlens: Vec<i32>,
    /// Longest stretch in `cu_seqlens`.
    pub max_seqlen: i32,
    /// Sum of the weights.
    pub weight_sum: f64,
    /// Tokens that are not padding.
    pub num_tokens: u64,
    /// Documents, or pieces of split ones.
    pub num_documents: u64,
    /// Placeholders for media, with their rows.
    pub media: Vec<(usize, RowMedia)>,
    /// The stream's position after the whole global batch.
    pub cursor: Cursor,
    /// What became of the documents of all windows begun since the stream was started or continued.
    pub counts: PlanCounts,
}

impl BatchFacts {
    /// Of a batch whose rows are added one after the other.
    pub(crate) fn new(num_rows: usize, row_tokens: usize) -> Self {
        Self {
            num_rows,
            row_tokens,
            cu_seqlens: vec![0],
            ..Self::default()
        }
    }

    /// Adds a row, the one after the last.
    pub(crate) fn add_row(&mut self, row: usize, filled: RowFacts) {
        let RowFacts {
            ends,
            weight_sum,
            media,
        } = filled;
        self.media
            .extend(media.into_iter().map(|media| (row, media)));
        let start = self.cu_seqlens.last().copied().unwrap_or(0);
        for end in &ends {
            self.end_stretch(start + end);
        }
        self.num_documents += ends.len() as u64;
        let used = ends.last().copied().unwrap_or(0);
        self.num_tokens += u64::from(used.unsigned_abs());
        self.weight_sum += weight_sum;
        // A batch has fewer than 2^31 tokens.
        self.end_stretch(start + i32::try_from(self.row_tokens).unwrap_or(i32::MAX));
    }

    fn end_stretch(&mut self, end: i32) {
        let start = self.cu_seqlens.last().copied().unwrap_or(0);
        if end > start {
            self.cu_seqlens.push(end);
            self.max_seqlen = self.max_seqlen.max(end - start);
        }
    }
}
