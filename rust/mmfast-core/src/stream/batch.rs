//! Rows of a training batch, filled from bins.
//!
//! Dimensions: B rows, L = `bin_tokens`. Every array is B·L long, row after row. A row holds the bin's
//! documents one after the other and then padding.

use crate::error::{Error, Result};
use crate::objective::{Sequence, Transformed, total_length};
use crate::stream::window::{Item, PlanCounts, WindowPlan, part_of};
use crate::stream::{Cursor, Stream};

/// Label of positions that predict nothing: a document's last token, and padding.
pub const IGNORED_LABEL: i64 = -100;

/// One rank's part of a global batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// B, the same on every rank.
    pub num_rows: usize,
    /// L.
    pub row_tokens: usize,
    /// What the model reads; the pad id in padding.
    pub input_ids: Vec<i64>,
    /// The id that follows in the same document.
    pub labels: Vec<i64>,
    /// Position in the document, from 0.
    pub position_ids: Vec<i32>,
    /// Number of the document in its row, from 1; 0 is padding.
    pub document_ids: Vec<i32>,
    /// Modality of the input id.
    pub modality_ids: Vec<u8>,
    /// Weight of the label.
    pub loss_weights: Vec<f32>,
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
    /// The stream's position after the whole global batch.
    pub cursor: Cursor,
    /// What became of the documents of all windows begun since the stream was started or continued.
    pub counts: PlanCounts,
}

impl Batch {
    /// A batch of nothing but padding.
    pub(crate) fn empty(num_rows: usize, row_tokens: usize, pad_id: i64) -> Self {
        let size = num_rows * row_tokens;
        Self {
            num_rows,
            row_tokens,
            input_ids: vec![pad_id; size],
            labels: vec![IGNORED_LABEL; size],
            position_ids: vec![0; size],
            document_ids: vec![0; size],
            modality_ids: vec![0; size],
            loss_weights: vec![0.0; size],
            cu_seqlens: vec![0],
            max_seqlen: 0,
            weight_sum: 0.0,
            num_tokens: 0,
            num_documents: 0,
            cursor: Cursor::default(),
            counts: PlanCounts::default(),
        }
    }

    /// Ends a stretch of `cu_seqlens` at a position of the flattened rows.
    fn end_stretch(&mut self, position: usize) {
        let end = i32::try_from(position).unwrap_or(i32::MAX);
        let start = self.cu_seqlens.last().copied().unwrap_or(0);
        if end > start {
            self.cu_seqlens.push(end);
            self.max_seqlen = self.max_seqlen.max(end - start);
        }
    }

    /// Counts the rows that were not filled as stretches of padding.
    pub(crate) fn end_with_padding(&mut self) {
        let ended = self.cu_seqlens.last().copied().unwrap_or(0);
        let ended = usize::try_from(ended).unwrap_or(0) / self.row_tokens.max(1);
        for row in ended..self.num_rows {
            self.end_stretch((row + 1) * self.row_tokens);
        }
    }

    /// Writes a document at a position of the flattened rows.
    fn write_document(&mut self, position: usize, number: i32, document: &Transformed) {
        let num_tokens = document.ids.len();
        let range = position..position + num_tokens;
        copy(&mut self.input_ids, position, &document.input_ids);
        copy(&mut self.modality_ids, position, &document.modalities);
        // Labels and weights of the document's last token stay as they are in padding.
        let weights = document.weights.get(1..).unwrap_or_default();
        copy(
            &mut self.labels,
            position,
            document.ids.get(1..).unwrap_or_default(),
        );
        copy(&mut self.loss_weights, position, weights);
        if let Some(numbers) = self.document_ids.get_mut(range.clone()) {
            numbers.fill(number);
        }
        let positions = self.position_ids.get_mut(range).unwrap_or_default();
        for (slot, position) in positions.iter_mut().zip(0..) {
            *slot = position;
        }
        self.weight_sum += weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        self.num_tokens += num_tokens as u64;
        self.num_documents += 1;
    }
}

/// Copies values to a position that has room for them.
fn copy<T: Copy>(target: &mut [T], position: usize, values: &[T]) {
    if let Some(target) = target.get_mut(position..position + values.len()) {
        target.copy_from_slice(values);
    }
}

/// Buffers that are used again from document to document.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    sequences: Vec<Sequence>,
    ids: Vec<i64>,
    transformed: Transformed,
}

impl Stream {
    /// Fills one row from a bin.
    pub(crate) fn fill_row(
        &self,
        batch: &mut Batch,
        row: usize,
        plan: &WindowPlan,
        bin: u64,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut position = row * batch.row_tokens;
        for (number, item) in (1..).zip(plan.bin(bin)) {
            self.read_item(item, scratch)?;
            let Scratch {
                sequences,
                ids,
                transformed,
            } = scratch;
            self.objective.transform(
                item.key()?,
                sequences,
                ids,
                u64::from(self.config.document_tokens()),
                transformed,
            );
            batch.write_document(position, number, transformed);
            position += transformed.ids.len();
            batch.end_stretch(position);
        }
        batch.end_stretch((row + 1) * batch.row_tokens);
        Ok(())
    }

    /// Reads the ids of an item and the lengths of its sequences.
    fn read_item(&self, item: &Item, scratch: &mut Scratch) -> Result<()> {
        let source = self.source(item.address.source)?;
        let Scratch { sequences, ids, .. } = scratch;
        self.read_sequences(item.address, sequences)?;
        let range = source.documents.document_sequences(item.address.document)?;
        ids.resize(usize::try_from(item.length).unwrap_or(0), 0);
        source.documents.read_into(range, item.start, ids)?;
        if item.start > 0 || item.length < total_length(sequences) {
            *sequences = part_of(sequences, item.start, item.length);
        }
        let Some(size) = self.config.vocabulary_size else {
            return Ok(());
        };
        // A pass without an early exit is vectorised; the offender is looked for only if there is one.
        if !ids
            .iter()
            .fold(false, |outside, id| outside | !(0..size).contains(id))
        {
            return Ok(());
        }
        match ids.iter().position(|id| !(0..size).contains(id)) {
            None => Ok(()),
            Some(position) => Err(Error::VocabularyMismatch(format!(
                "document {} of {} has id {} at position {}, outside the vocabulary of {size} ids; train with \
                 the vocabulary the data was prepared with",
                item.address.document,
                source.name,
                ids.get(position).copied().unwrap_or_default(),
                item.start + position as u64,
            ))),
        }
    }
}
