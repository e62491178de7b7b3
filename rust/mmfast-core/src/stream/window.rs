//! Planning a window: which documents, how long after the objective, in which bins.

use crate::error::{Error, Result};
use crate::objective::{Sequence, total_length};
use crate::order::{DocumentAddress, Permutation};
use crate::pack::{Bins, Overlong, best_fit_decreasing, longest_prefix};
use crate::random::{DocumentKey, Purpose};
use crate::stream::Stream;

/// A document, or the part of one, that goes into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) address: DocumentAddress,
    /// Which part of a split document; 0 for a whole one.
    pub(crate) piece: u64,
    /// First id of the part in the document.
    pub(crate) start: u64,
    /// Ids of the part before the objective.
    pub(crate) length: u64,
}

impl Item {
    /// The key of the item's random draws.
    pub(crate) fn key(&self) -> Result<DocumentKey> {
        let DocumentAddress {
            source,
            epoch,
            document,
        } = self.address;
        DocumentKey::new(source, epoch, document, self.piece)
    }
}

/// What became of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanCounts {
    /// Documents drawn, whatever became of them.
    pub documents: u64,
    /// Documents of which the end was cut off.
    pub truncated: u64,
    /// Documents that became several.
    pub split: u64,
    /// Documents left out because they, or an image in them, are too long.
    pub dropped: u64,
    /// Documents without ids.
    pub empty: u64,
}

impl PlanCounts {
    /// Adds the counts of another window.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.truncated += other.truncated;
        self.split += other.split;
        self.dropped += other.dropped;
        self.empty += other.empty;
    }
}

/// The bins of a window in the order in which they are used.
pub struct WindowPlan {
    items: Vec<Item>,
    bins: Bins,
    order: Permutation,
    counts: PlanCounts,
}

impl WindowPlan {
    /// Number of bins.
    pub fn num_bins(&self) -> u64 {
        self.bins.len() as u64
    }

    /// What became of the window's documents.
    pub fn counts(&self) -> &PlanCounts {
        &self.counts
    }

    /// Items of the bin that comes `position`-th.
    pub(crate) fn bin(&self, position: u64) -> impl Iterator<Item = &Item> {
        let bin = usize::try_from(self.order.index(position)).unwrap_or(usize::MAX);
        self.bins
            .bin(bin)
            .iter()
            .filter_map(|item| self.items.get(*item))
    }
}

impl Stream {
    /// Plans a window; `None` if the stream ends before it.
    pub fn plan(&self, window: u64) -> Result<Option<WindowPlan>> {
        let Some(first) = window.checked_mul(self.config.window_documents) else {
            return Ok(None);
        };
        let mut planner = Planner {
            stream: self,
            items: Vec::new(),
            lengths: Vec::new(),
            counts: PlanCounts::default(),
        };
        let mut sequences = Vec::new();
        for position in first..first.saturating_add(self.config.window_documents) {
            let Some(address) = self.order.locate(position) else {
                break;
            };
            self.read_sequences(address, &mut sequences)?;
            planner.add_document(address, &sequences)?;
        }
        if planner.counts.documents == 0 {
            return Ok(None);
        }
        let bins = best_fit_decreasing(&planner.lengths, self.config.bin_tokens)?;
        let order = Permutation::new(
            self.config.seed,
            Purpose::BinOrder,
            [window, 0],
            bins.len() as u64,
        );
        Ok(Some(WindowPlan {
            items: planner.items,
            bins,
            order,
            counts: planner.counts,
        }))
    }

    /// Lengths and modes of a document's sequences; `sequences` is overwritten.
    pub(crate) fn read_sequences(
        &self,
        address: DocumentAddress,
        sequences: &mut Vec<Sequence>,
    ) -> Result<()> {
        let documents = &self.source(address.source)?.documents;
        sequences.clear();
        for sequence in documents.document_sequences(address.document)? {
            sequences.push(Sequence {
                length: documents.sequence_length(sequence)?,
                mode: documents.mode(sequence)?,
            });
        }
        Ok(())
    }
}

/// The part `start..start + length` of sequences, counted in ids.
pub(crate) fn part_of(sequences: &[Sequence], start: u64, length: u64) -> Vec<Sequence> {
    let end = start + length;
    let mut offset = 0;
    let mut part = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let next = offset + u64::from(sequence.length);
        let kept = next.min(end).saturating_sub(offset.max(start));
        if kept > 0 {
            part.push(Sequence {
                length: u32::try_from(kept).unwrap_or(sequence.length),
                mode: sequence.mode,
            });
        }
        offset = next;
    }
    part
}

/// Collects the items of a window.
struct Planner<'a> {
    stream: &'a Stream,
    items: Vec<Item>,
    /// Planned length of each item: an upper bound of what the row will hold.
    lengths: Vec<u32>,
    counts: PlanCounts,
}

impl Planner<'_> {
    fn add_document(&mut self, address: DocumentAddress, sequences: &[Sequence]) -> Result<()> {
        self.counts.documents += 1;
        let total = total_length(sequences);
        let whole = Item {
            address,
            piece: 0,
            start: 0,
            length: total,
        };
        if total == 0 {
            self.counts.empty += 1;
            return Ok(());
        }
        if total <= self.capacity() {
            return self.push(whole, sequences);
        }
        match self.stream.config.overlong {
            Overlong::Error => Err(Error::argument(format!(
                "document {} of {} has {total} ids and does not fit {}, or set overlong to truncate, split \
                 or drop",
                address.document,
                self.stream.source(address.source)?.name,
                self.stream.config.document_limit(),
            ))),
            Overlong::Drop => {
                self.counts.dropped += 1;
                Ok(())
            }
            Overlong::Truncate => {
                let length = self.prefix(&whole, sequences)?;
                if length == 0 {
                    self.counts.dropped += 1;
                    return Ok(());
                }
                self.counts.truncated += 1;
                self.push(Item { length, ..whole }, sequences)
            }
            Overlong::Split => self.split(whole, sequences),
        }
    }

    /// Cuts a document into pieces, or leaves it out if an atomic sequence is too long for one.
    fn split(&mut self, whole: Item, sequences: &[Sequence]) -> Result<()> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < whole.length {
            let rest = Item {
                piece: pieces.len() as u64,
                start,
                length: whole.length - start,
                ..whole
            };
            let length = self.prefix(&rest, &part_of(sequences, start, rest.length))?;
            if length == 0 {
                self.counts.dropped += 1;
                return Ok(());
            }
            pieces.push(Item { length, ..rest });
            start += length;
        }
        self.counts.split += 1;
        for piece in pieces {
            self.push(piece, sequences)?;
        }
        Ok(())
    }

    /// Ids of the longest part at the front of an item that fits, with room for its spans if
    /// the rule of a cut allows; 0 if an atomic sequence in front does not fit.
    fn prefix(&self, item: &Item, sequences: &[Sequence]) -> Result<u64> {
        if item.length <= self.capacity() {
            return Ok(item.length);
        }
        let spans = self
            .stream
            .objective
            .num_spans_at_most(item.key()?, sequences);
        let room = self.capacity().saturating_sub(3 * spans);
        Ok(match longest_prefix(sequences, room) {
            0 => longest_prefix(sequences, self.capacity()),
            length => length,
        })
    }

    fn push(&mut self, item: Item, sequences: &[Sequence]) -> Result<()> {
        let part;
        let sequences = if item.length == total_length(sequences) {
            sequences
        } else {
            part = part_of(sequences, item.start, item.length);
            &part
        };
        let spans = self
            .stream
            .objective
            .num_spans_at_most(item.key()?, sequences)
            .min((self.capacity() - item.length) / 3);
        let length = u32::try_from(item.length + 3 * spans);
        self.lengths.push(length.unwrap_or(u32::MAX));
        self.items.push(item);
        Ok(())
    }

    /// Tokens that an item may have after the objective.
    fn capacity(&self) -> u64 {
        u64::from(self.stream.config.document_tokens())
    }
}
