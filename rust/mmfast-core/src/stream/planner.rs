//! Collects the items of a window: documents as they are, or cut, split and left out by the rules.

use crate::error::{Error, Result};
use crate::objective::{Sequence, total_length};
use crate::order::DocumentAddress;
use crate::pack::{Overlong, longest_prefix};
use crate::random::DocumentKey;
use crate::stream::lookup::Lookup;
use crate::stream::packing::{Groups, Packing};
use crate::stream::window::{Item, PlanCounts, part_of};
use crate::stream::{Stream, StreamSource};

/// A window in the making.
pub(super) struct Planner<'a> {
    stream: &'a Stream,
    pub(super) items: Vec<Item>,
    /// Where each block of items that stay together begins, then their number; `None` if each item is a
    /// block.
    pub(super) blocks: Option<Vec<u32>>,
    /// Tokens of each block at most.
    pub(super) lengths: Vec<u32>,
    /// With [`Packing::Concat`]: where each row but the first begins among the items.
    pub(super) breaks: Vec<u32>,
    /// With [`Packing::Concat`]: tokens that the last row still holds.
    room: u64,
    pub(super) counts: PlanCounts,
    lookup: Lookup,
}

impl<'a> Planner<'a> {
    pub(super) fn new(stream: &'a Stream) -> Self {
        let units = usize::try_from(stream.config.window_units()).unwrap_or(0);
        let capacity = units.min(1 << 16);
        let is_grouped = stream.sources.iter().any(|s| s.groups != Groups::Single);
        Self {
            stream,
            items: Vec::with_capacity(capacity),
            blocks: is_grouped.then(|| vec![0]),
            lengths: Vec::with_capacity(capacity),
            breaks: Vec::new(),
            room: u64::from(stream.config.bin_tokens),
            counts: PlanCounts::default(),
            lookup: Lookup::default(),
        }
    }

    /// Adds documents, or groups of them.
    pub(super) fn add_units(&mut self, units: &[DocumentAddress]) -> Result<()> {
        let mut lookup = std::mem::take(&mut self.lookup);
        if self.blocks.is_none() {
            lookup.look_up(self.stream, units.iter().map(place))?;
            for (index, unit) in units.iter().enumerate() {
                let first = self.items.len();
                self.add_document(unit, lookup.sequences(index))?;
                for item in first..self.items.len() {
                    self.make_block(item, item + 1);
                }
            }
        } else {
            let mut documents = Vec::new();
            let mut ends = Vec::new();
            for unit in units {
                let source = self.stream.source(unit.source)?;
                let numbers = source.group(unit.document);
                documents.extend(numbers.map(|document| DocumentAddress { document, ..*unit }));
                ends.push(documents.len());
            }
            lookup.look_up(self.stream, documents.iter().map(place))?;
            let mut start = 0;
            for (unit, end) in units.iter().zip(ends) {
                let group = documents.get(start..end).unwrap_or_default();
                self.add_group(unit, group, start, &lookup)?;
                start = end;
            }
        }
        self.lookup = lookup;
        Ok(())
    }

    /// Adds the documents of a group, which are those from `first` on that were looked up.
    fn add_group(
        &mut self,
        group: &DocumentAddress,
        documents: &[DocumentAddress],
        first: usize,
        lookup: &Lookup,
    ) -> Result<()> {
        let first_item = self.items.len();
        let dropped_before = self.counts.dropped;
        for (index, document) in (first..).zip(documents) {
            self.add_document(document, lookup.sequences(index))?;
        }
        let source = self.stream.source(group.source)?;
        if source.groups == Groups::Single {
            for item in first_item..self.items.len() {
                self.make_block(item, item + 1);
            }
            return Ok(());
        }
        let has_lost = self.counts.dropped > dropped_before;
        if has_lost && self.stream.config.overlong == Overlong::Drop {
            // What belongs together is left out together.
            self.drop_from(first_item);
            return Ok(());
        }
        self.join(source, group, first_item)
    }

    /// Makes one block of the items from `first` on, or what the rule says if no row holds them.
    fn join(&mut self, source: &StreamSource, group: &DocumentAddress, first: usize) -> Result<()> {
        let capacity = u64::from(self.stream.config.bin_tokens);
        let planned = self.items.get(first..).unwrap_or_default();
        let planned: Vec<u64> = planned.iter().map(|i| u64::from(i.planned)).collect();
        let total: u64 = planned.iter().sum();
        if total <= capacity {
            self.make_block(first, self.items.len());
            return Ok(());
        }
        self.counts.overlong_groups += 1;
        let overlong = self.stream.config.overlong;
        match overlong {
            Overlong::Error => {
                return Err(Error::argument(format!(
                    "group {} of {} has {total} tokens and does not fit a row of {capacity}; raise \
                     bin_tokens, or set overlong to truncate, split or drop",
                    group.document, source.name
                )));
            }
            Overlong::Drop => {
                self.drop_from(first);
                return Ok(());
            }
            Overlong::Truncate | Overlong::Split => {}
        }
        let (mut start, mut used) = (first, 0);
        for (item, planned) in (first..).zip(planned) {
            if used + planned > capacity {
                self.make_block(start, item);
                if overlong == Overlong::Truncate {
                    self.drop_from(item);
                    return Ok(());
                }
                (start, used) = (item, 0);
            }
            used += planned;
        }
        self.make_block(start, self.items.len());
        Ok(())
    }

    /// Leaves out the documents that the items from `first` on are of.
    fn drop_from(&mut self, first: usize) {
        let items = self.items.get(first..).unwrap_or_default();
        let number = |item: &Item| item.key.document();
        let is_next = |pair: &&[Item]| pair.first().map(number) != pair.last().map(number);
        let num_others = items.windows(2).filter(is_next).count();
        self.counts.dropped += num_others as u64 + u64::from(!items.is_empty());
        self.items.truncate(first);
    }

    fn make_block(&mut self, start: usize, end: usize) {
        let items = self.items.get(start..end).unwrap_or_default();
        if items.is_empty() {
            return;
        }
        let length = items.iter().map(|item| item.planned).sum();
        self.lengths.push(length);
        if let Some(blocks) = &mut self.blocks {
            blocks.push(narrow(end));
        }
    }

    fn add_document(&mut self, address: &DocumentAddress, sequences: &[Sequence]) -> Result<()> {
        let DocumentAddress {
            source,
            epoch,
            document,
        } = *address;
        let whole = Part {
            key: DocumentKey::new(source, epoch, document, 0)?,
            start: 0,
            length: total_length(sequences),
        };
        self.counts.documents += 1;
        if whole.length == 0 {
            self.counts.empty += 1;
        } else if self.stream.config.packing == Packing::Concat {
            self.lay_out(whole, sequences)?;
        } else if whole.length <= self.capacity() {
            self.push(whole, sequences, self.capacity());
        } else {
            self.add_overlong(whole, sequences)?;
        }
        Ok(())
    }

    fn add_overlong(&mut self, whole: Part, sequences: &[Sequence]) -> Result<()> {
        match self.stream.config.overlong {
            Overlong::Error => Err(Error::argument(format!(
                "document {} of {} has {} ids and does not fit {}, or set overlong to truncate, split \
                 or drop",
                whole.key.document(),
                self.stream.source(whole.key.source())?.name,
                whole.length,
                self.stream.config.document_limit(),
            ))),
            Overlong::Drop => {
                self.counts.dropped += 1;
                Ok(())
            }
            Overlong::Truncate => {
                let length = self.prefix(&whole, sequences, self.capacity());
                if length == 0 {
                    self.counts.dropped += 1;
                    return Ok(());
                }
                self.counts.truncated += 1;
                self.push(Part { length, ..whole }, sequences, self.capacity());
                Ok(())
            }
            Overlong::Split => self.split(whole, sequences),
        }
    }

    /// Cuts a document into pieces, or leaves it out if a sequence that stays whole is too long for one.
    fn split(&mut self, whole: Part, sequences: &[Sequence]) -> Result<()> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < whole.length {
            let rest = Part {
                key: whole.key.with_piece(pieces.len() as u64)?,
                start,
                length: whole.length - start,
            };
            let behind = part_of(sequences, start, rest.length);
            let length = self.prefix(&rest, &behind, self.capacity());
            if length == 0 {
                self.counts.dropped += 1;
                return Ok(());
            }
            pieces.push(Part { length, ..rest });
            start += length;
        }
        self.counts.split += 1;
        for piece in pieces {
            self.push(piece, sequences, self.capacity());
        }
        Ok(())
    }

    /// Lays a document behind the ones before it, cut where rows end.
    fn lay_out(&mut self, whole: Part, mut sequences: &[Sequence]) -> Result<()> {
        let cut_at = self.stream.config.cut_at;
        let capacity = self.capacity();
        let is_too_long = |s: &Sequence| u64::from(s.length) > capacity && !cut_at.divides(s.mode);
        let mut end = whole.length;
        if let Some(stuck) = sequences.iter().position(is_too_long) {
            // No row holds this sequence, so it is as with a document that no row holds.
            match self.stream.config.overlong {
                Overlong::Error => return self.add_overlong(whole, sequences),
                Overlong::Truncate => {
                    sequences = sequences.get(..stuck).unwrap_or_default();
                    end = total_length(sequences);
                }
                Overlong::Split | Overlong::Drop => end = 0,
            }
            if end == 0 {
                self.counts.dropped += 1;
                return Ok(());
            }
            self.counts.truncated += 1;
        }
        let (mut start, mut piece) = (0, 0);
        while start < end {
            let rest = Part {
                key: whole.key.with_piece(piece)?,
                start,
                length: end - start,
            };
            let behind = part_of(sequences, start, rest.length);
            let room = self.room.min(capacity);
            let length = self.prefix(&rest, &behind, room);
            if length == 0 {
                self.end_row();
                continue;
            }
            self.push(Part { length, ..rest }, sequences, room);
            let planned = self.items.last().map_or(0, |item| u64::from(item.planned));
            self.room -= planned.min(self.room);
            if self.room == 0 {
                self.end_row();
            }
            start += length;
            piece += 1;
        }
        self.counts.split += u64::from(piece > 1);
        Ok(())
    }

    fn end_row(&mut self) {
        self.breaks.push(narrow(self.items.len()));
        self.room = u64::from(self.stream.config.bin_tokens);
    }

    /// Ids of the longest part at the front that `limit` tokens hold, with room for its spans if
    /// the rule of a cut allows; 0 if a sequence in front that stays whole does not fit.
    fn prefix(&self, part: &Part, sequences: &[Sequence], limit: u64) -> u64 {
        if part.length <= limit {
            return part.length;
        }
        let stream = self.stream;
        let spans = stream.objective.num_spans_at_most(part.key, sequences);
        let room = limit.saturating_sub(3 * spans);
        match longest_prefix(sequences, room, stream.config.cut_at) {
            0 => longest_prefix(sequences, limit, stream.config.cut_at),
            length => length,
        }
    }

    /// Adds an item that has at most `limit` tokens; `sequences` are those of the whole document.
    fn push(&mut self, part: Part, sequences: &[Sequence], limit: u64) {
        let cut;
        let sequences = if part.length == total_length(sequences) {
            sequences
        } else {
            cut = part_of(sequences, part.start, part.length);
            &cut
        };
        let objective = &self.stream.objective;
        let spans = objective
            .num_spans_at_most(part.key, sequences)
            .min((limit - part.length) / 3);
        // Neither is longer than a row.
        let [length, planned] =
            [part.length, part.length + 3 * spans].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        self.items.push(Item {
            key: part.key,
            start: part.start,
            length,
            planned,
        });
    }

    /// Tokens that an item may have after the objective.
    fn capacity(&self) -> u64 {
        u64::from(self.stream.config.document_tokens())
    }
}

/// A document, or the part of one that begins with its id `start`.
#[derive(Debug, Clone, Copy)]
struct Part {
    key: DocumentKey,
    start: u64,
    length: u64,
}

fn place(address: &DocumentAddress) -> (u64, u64) {
    (address.source, address.document)
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
