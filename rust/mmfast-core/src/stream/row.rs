//! Filling a row: ids go from their source straight to where the model reads them.
//!
//! A row is written once, from left to right: documents, then padding. Labels and weights are those of the
//! next token, so they lie one position before it.

use crate::error::{Error, Result};
use crate::lanes::{are_below, count_up, fill};
use crate::objective::{Sequence, TokenSink, is_media, modality, total_length, weight};
use crate::stream::arrays::BatchArrays;
use crate::stream::batch::IGNORED_LABEL;
use crate::stream::lookup::Lookup;
use crate::stream::window::{Item, part_of};
use crate::stream::{Stream, StreamSource};

/// What a row holds.
#[derive(Debug, Default)]
pub(crate) struct RowFacts {
    /// Where documents end in the row.
    pub(crate) ends: Vec<i32>,
    pub(crate) weight_sum: f64,
    pub(crate) media: Vec<RowMedia>,
}

/// Placeholders in a row, and what they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMedia {
    /// Where the first placeholder lies in the row.
    pub start: usize,
    /// How many there are.
    pub num_ids: usize,
    /// What they stand for.
    pub reference: String,
}

/// Writes the documents of a row.
struct RowWriter<'a> {
    arrays: BatchArrays<'a>,
    /// Where the current document begins, and the next token goes.
    start: usize,
    end: usize,
    weight_sum: f64,
    /// Start and number of the current document's placeholders for media.
    media: Vec<(usize, usize)>,
}

#[expect(
    clippy::indexing_slicing,
    reason = "a plan puts no more into a row than it holds; whatever broke that would be a bug of ours"
)]
impl RowWriter<'_> {
    /// Writes labels, weights and modalities of tokens that are inputs already, the last ones there are.
    fn finish_run(&mut self, num_tokens: usize, modality: u8, weight: f32) {
        let start = self.end;
        self.end += num_tokens;
        fill(&mut self.arrays.modality_ids[start..self.end], modality);
        // The first token of a document is nobody's label.
        let skipped = usize::from(start == self.start).min(num_tokens);
        let labels = (start + skipped).saturating_sub(1)..self.end - 1;
        fill(&mut self.arrays.loss_weights[labels], weight);
        // Exact as long as a weight times a length is, so the same as adding them one by one.
        let num_labels = u32::try_from(num_tokens - skipped).unwrap_or(u32::MAX);
        self.weight_sum += f64::from(weight) * f64::from(num_labels);
    }

    /// Room for the next document's ids, as many as wanted.
    fn inputs(&mut self, num_tokens: usize) -> &mut [i64] {
        &mut self.arrays.input_ids[self.end..self.end + num_tokens]
    }

    /// Takes over a document whose ids are in place: labels are the inputs one position on.
    fn finish_plain(&mut self, sequences: &[Sequence]) {
        let start = self.start;
        for Sequence { length, mode } in sequences {
            if *length > 0 {
                if is_media(*mode) {
                    self.begin_media(*length as usize);
                }
                self.finish_run(*length as usize, modality(*mode), weight(*mode));
            }
        }
        if start < self.end {
            let labels = &mut self.arrays.labels[start..self.end - 1];
            labels.copy_from_slice(&self.arrays.input_ids[start + 1..self.end]);
        }
    }

    fn end_document(&mut self, number: i32) {
        let Self { start, end, .. } = *self;
        if start < end {
            self.arrays.labels[end - 1] = IGNORED_LABEL;
            self.arrays.loss_weights[end - 1] = 0.0;
        }
        fill(&mut self.arrays.document_ids[start..end], number);
        count_up(&mut self.arrays.position_ids[start..end]);
        self.start = end;
    }

    fn pad(&mut self, pad_id: i64) {
        let end = self.end;
        fill(&mut self.arrays.input_ids[end..], pad_id);
        fill(&mut self.arrays.labels[end..], IGNORED_LABEL);
        fill(&mut self.arrays.position_ids[end..], 0);
        fill(&mut self.arrays.document_ids[end..], 0);
        fill(&mut self.arrays.modality_ids[end..], 0);
        fill(&mut self.arrays.loss_weights[end..], 0.0);
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "as above: a transformed document is no longer than it was planned"
)]
impl TokenSink for RowWriter<'_> {
    fn append(&mut self, ids: &[i64], modality: u8, weight: f32) -> &mut [i64] {
        let start = self.end;
        if ids.is_empty() {
            return &mut [];
        }
        let end = start + ids.len();
        self.arrays.input_ids[start..end].copy_from_slice(ids);
        let skipped = usize::from(start == self.start);
        self.arrays.labels[start + skipped - 1..end - 1].copy_from_slice(&ids[skipped..]);
        self.finish_run(ids.len(), modality, weight);
        &mut self.arrays.input_ids[start..end]
    }

    fn begin_media(&mut self, num_ids: usize) {
        self.media.push((self.end, num_ids));
    }
}

/// The items of some rows, with what the index says of them; used again for other rows.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    items: Vec<Item>,
    /// Where each row ends among the items.
    ends: Vec<usize>,
    lookup: Lookup,
    /// Ids of a document that the objective changes.
    ids: Vec<i64>,
}

impl Rows {
    /// Looks up the items of rows.
    pub(crate) fn look_up<'a, T: Iterator<Item = &'a Item>>(
        &mut self,
        stream: &Stream,
        rows: impl Iterator<Item = T>,
    ) -> Result<()> {
        self.items.clear();
        self.ends.clear();
        for row in rows {
            self.items.extend(row);
            self.ends.push(self.items.len());
        }
        let places = self.items.iter();
        let places = places.map(|item| (item.key.source(), item.key.document()));
        self.lookup.look_up(stream, places)
    }

    /// Fills one row; a row past the last holds padding only.
    pub(crate) fn fill(
        &mut self,
        stream: &Stream,
        row: usize,
        arrays: BatchArrays<'_>,
    ) -> Result<RowFacts> {
        let mut writer = RowWriter {
            arrays,
            start: 0,
            end: 0,
            weight_sum: 0.0,
            media: Vec::new(),
        };
        let last = self.ends.last().copied().unwrap_or(0);
        let before = row.checked_sub(1).and_then(|row| self.ends.get(row));
        let start = before.copied().unwrap_or(if row == 0 { 0 } else { last });
        let end = self.ends.get(row).copied().unwrap_or(last);
        let mut ends = Vec::with_capacity(end - start);
        let mut media = Vec::new();
        for (number, index) in (1..).zip(start..end) {
            self.write(stream, index, &mut writer)?;
            writer.end_document(number);
            if !writer.media.is_empty() {
                self.name_media(stream, index, &mut writer.media, &mut media)?;
            }
            self.announce(stream, index + 1, 3)?;
            ends.push(i32::try_from(writer.end).unwrap_or(i32::MAX));
        }
        writer.pad(stream.config.pad_id);
        Ok(RowFacts {
            ends,
            weight_sum: writer.weight_sum,
            media,
        })
    }

    /// Announces a quarter of the next item's ids, so that they come from memory while this one is written,
    /// and never so many that the writing has to wait.
    fn announce(&self, stream: &Stream, next: usize, quarter: u64) -> Result<()> {
        if let Some(item) = self.items.get(next) {
            let documents = &stream.source(item.key.source())?.documents;
            let num_ids = item.length.div_ceil(4);
            let start = item.start + quarter * u64::from(num_ids);
            documents.will_read(self.lookup.range(next), start, num_ids as usize);
        }
        Ok(())
    }

    /// Finds out what an item's placeholders stand for. They keep their order whatever the objective does.
    fn name_media(
        &self,
        stream: &Stream,
        index: usize,
        places: &mut Vec<(usize, usize)>,
        media: &mut Vec<RowMedia>,
    ) -> Result<()> {
        let Some(item) = self.items.get(index) else {
            return Ok(());
        };
        let source = stream.source(item.key.source())?;
        let mut offset = 0;
        let (start, end) = (item.start, item.start + u64::from(item.length));
        let numbers = self.lookup.range(index).zip(self.lookup.sequences(index));
        let inside = numbers.filter(|(_, Sequence { length, mode })| {
            let first = offset;
            offset += u64::from(*length);
            is_media(*mode) && *length > 0 && (start..end).contains(&first)
        });
        for ((sequence, _), (start, num_ids)) in inside.zip(places.drain(..)) {
            let reference = source.documents.media(sequence)?.ok_or_else(|| {
                Error::argument(format!(
                    "document {} of {} has placeholders for media, but nothing says what they stand for; \
                     is its .media file missing?",
                    item.key.document(),
                    source.name
                ))
            })?;
            media.push(RowMedia {
                start,
                num_ids,
                reference,
            });
        }
        Ok(())
    }

    fn write(&mut self, stream: &Stream, index: usize, row: &mut RowWriter<'_>) -> Result<()> {
        let Some(item) = self.items.get(index) else {
            return Ok(());
        };
        let source = stream.source(item.key.source())?;
        let range = self.lookup.range(index);
        let cut;
        let mut sequences = self.lookup.sequences(index);
        if u64::from(item.length) < total_length(sequences) {
            cut = part_of(sequences, item.start, item.length.into());
            sequences = &cut;
        }
        if stream.objective.is_plain() {
            let inputs = row.inputs(item.length as usize);
            self.announce(stream, index + 1, 0)?;
            source.documents.read_into(range, item.start, inputs)?;
            self.announce(stream, index + 1, 1)?;
            stream.require_known_ids(source, item, inputs)?;
            self.announce(stream, index + 1, 2)?;
            row.finish_plain(sequences);
        } else {
            for quarter in 0..3 {
                self.announce(stream, index + 1, quarter)?;
            }
            self.ids.resize(item.length as usize, 0);
            source
                .documents
                .read_into(range, item.start, &mut self.ids)?;
            stream.require_known_ids(source, item, &self.ids)?;
            let most = item.planned.into();
            stream
                .objective
                .write(item.key, sequences, &self.ids, most, row);
        }
        Ok(())
    }
}

impl Stream {
    /// Refuses ids outside the vocabulary.
    fn require_known_ids(&self, source: &StreamSource, item: &Item, ids: &[i64]) -> Result<()> {
        let Some(size) = self.config.vocabulary_size else {
            return Ok(());
        };
        if are_below(ids, size) {
            return Ok(());
        }
        match ids.iter().position(|id| !(0..size).contains(id)) {
            None => Ok(()),
            Some(position) => Err(Error::VocabularyMismatch(format!(
                "document {} of {} has id {} at position {}, outside the vocabulary of {size} ids; train with \
                 the vocabulary the data was prepared with",
                item.key.document(),
                source.name,
                ids.get(position).copied().unwrap_or_default(),
                item.start + position as u64,
            ))),
        }
    }
}
