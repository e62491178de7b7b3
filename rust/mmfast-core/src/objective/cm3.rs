//! Causal masking (CM3, arXiv 2201.07520; as trained in `CM3Leon`, arXiv 2309.02591): spans of a
//! document are replaced by sentinels and moved to its end.
//!
//! `10 11 [12 13] 14` becomes `10 11 <mask:0> 14 <mask:0> 12 13 <eoss>`: three ids more for each span.
//! The behaviour is that of metaseq's `cm3_dataset.py`, with these differences: a document without
//! spans and fewer spans than sentinels are fine; a span is never empty; spans are chosen so that the
//! result fits its row, so no moved span loses its end; no span holds a separator.
//!
//! Draws of a document: 0 = (whole segment?, which segment), 1 = (number of spans, unused), 2 and up =
//! ends of the candidates.

use crate::error::{Error, Result};
use crate::objective::spans::{Span, random_spans, segments};
use crate::objective::{Original, Sequence, TEXT, TokenSink, is_no_loss, modality};
use crate::random::{Chance, DocumentDraws, PoissonTable, below};

const WHOLE_SEGMENT_DRAW: u32 = 0;
const COUNT_DRAW: u32 = 1;
const FIRST_CANDIDATE_DRAW: u32 = 2;
/// Ids that each span adds: two sentinels and one end.
const IDS_PER_SPAN: u64 = 3;

/// How the number of spans is drawn, before it is clamped.
#[derive(Debug, Clone)]
pub enum SpanCount {
    /// Always the same.
    Fixed(u64),
    /// Poisson distributed.
    Poisson(PoissonTable),
}

/// The causal masking objective.
#[derive(Debug, Clone)]
pub struct Cm3 {
    /// Number of spans before clamping.
    pub count: SpanCount,
    /// Least number of spans.
    pub min_spans: u64,
    /// Largest number of spans, at most the number of sentinels.
    pub max_spans: u64,
    /// Chance that the span is one whole segment.
    pub whole_segment: Chance,
    /// Modality that such a segment must have; `None` for any.
    pub whole_segment_modality: Option<u8>,
    /// Weight of sentinels as targets.
    pub sentinel_loss_weight: f32,
    /// Ids of the sentinels in order.
    pub sentinels: Vec<i64>,
    /// Id that ends a moved span.
    pub eoss: i64,
    /// Ids that no span may hold.
    pub separators: Vec<i64>,
}

impl Cm3 {
    /// Checks that the parts agree.
    pub fn checked(self) -> Result<Self> {
        let num_sentinels = self.sentinels.len() as u64;
        if self.max_spans > num_sentinels {
            return Err(Error::argument(format!(
                "max_spans {} is more than the vocabulary's {num_sentinels} sentinels mask_0, mask_1, …",
                self.max_spans
            )));
        }
        if self.min_spans > self.max_spans {
            return Err(Error::argument(format!(
                "min_spans {} is more than max_spans {}",
                self.min_spans, self.max_spans
            )));
        }
        if self.whole_segment.is_possible() && num_sentinels == 0 {
            return Err(Error::argument(
                "whole_segment_prob needs a sentinel mask_0 in the vocabulary",
            ));
        }
        if !(self.sentinel_loss_weight.is_finite() && self.sentinel_loss_weight >= 0.0) {
            return Err(Error::argument(format!(
                "sentinel_loss_weight must not be negative, found {}",
                self.sentinel_loss_weight
            )));
        }
        Ok(self)
    }

    /// Text for a fingerprint; version 1 of the algorithm.
    pub(crate) fn description(&self) -> String {
        format!(
            "cm3 1: {:?} {}..={} whole {:?} {:?} weight {} ids {:?} {} {:?}",
            self.count,
            self.min_spans,
            self.max_spans,
            self.whole_segment,
            self.whole_segment_modality,
            self.sentinel_loss_weight,
            self.sentinels,
            self.eoss,
            self.separators
        )
    }

    /// Spans that a document gets at most; see [`super::SeededObjective::num_spans_at_most`].
    pub(crate) fn num_spans_at_most(&self, draws: &DocumentDraws, sequences: &[Sequence]) -> u64 {
        let movable = |s: &&Sequence| !is_no_loss(s.mode);
        let num_movable: u64 = sequences
            .iter()
            .filter(movable)
            .map(|s| u64::from(s.length))
            .sum();
        let wants_whole = self.whole_segment.happens(draws.pair(WHOLE_SEGMENT_DRAW).0)
            && sequences
                .iter()
                .filter(movable)
                .any(|s| s.length > 0 && self.may_be_whole(modality(s.mode)));
        let count = self.draw_count(draws).max(u64::from(wants_whole));
        count.min(num_movable)
    }

    fn draw_count(&self, draws: &DocumentDraws) -> u64 {
        let count = match &self.count {
            SpanCount::Fixed(count) => *count,
            SpanCount::Poisson(table) => u64::from(table.sample(draws.pair(COUNT_DRAW).0)),
        };
        count.clamp(self.min_spans, self.max_spans)
    }

    fn may_be_whole(&self, modality: u8) -> bool {
        self.whole_segment_modality
            .is_none_or(|wanted| wanted == modality)
    }

    /// The spans of a document in order. `room` is how many ids may be added.
    pub(crate) fn draw_spans(
        &self,
        draws: &DocumentDraws,
        sequences: &[Sequence],
        ids: &[i64],
        room: u64,
    ) -> Vec<Span> {
        let most = self
            .num_spans_at_most(draws, sequences)
            .min(room / IDS_PER_SPAN);
        if most == 0 {
            return Vec::new();
        }
        let segments = segments(sequences, ids, &self.separators);
        let (whole, which) = draws.pair(WHOLE_SEGMENT_DRAW);
        if self.whole_segment.happens(whole) {
            let eligible: Vec<Span> = segments
                .iter()
                .filter(|segment| self.may_be_whole(segment.modality))
                .map(|segment| segment.span)
                .collect();
            let index = usize::try_from(below(eligible.len() as u64, which)).unwrap_or(usize::MAX);
            if let Some(span) = eligible.get(index) {
                return vec![*span];
            }
        }
        // Without a segment to take whole, the document is masked like any other.
        let count = self.draw_count(draws).min(most);
        random_spans(draws, FIRST_CANDIDATE_DRAW, count, ids.len(), &segments)
    }

    /// Writes the document with its spans moved.
    pub(crate) fn write(&self, spans: &[Span], original: &Original<'_>, sink: &mut impl TokenSink) {
        let weight = self.sentinel_loss_weight;
        let mut copied = 0;
        for (span, sentinel) in spans.iter().zip(&self.sentinels) {
            original.copy(copied, span.start, sink);
            sink.append(&[*sentinel], TEXT, weight);
            copied = span.end;
        }
        original.copy(copied, usize::MAX, sink);
        for (span, sentinel) in spans.iter().zip(&self.sentinels) {
            sink.append(&[*sentinel], TEXT, weight);
            original.copy(span.start, span.end, sink);
            sink.append(&[self.eoss], TEXT, 1.0);
        }
    }
}

/// The document that was transformed into `ids`; an error if `ids` is not such a document.
pub fn restore(ids: &[i64], sentinels: &[i64], eoss: i64) -> Result<Vec<i64>> {
    let positions = |sentinel: &i64| -> Vec<usize> {
        let found = ids.iter().enumerate().filter(|(_, id)| *id == sentinel);
        found.map(|(position, _)| position).collect()
    };
    let malformed = |what: &str| Error::argument(format!("not a CM3 document: {what}"));
    let mut document = Vec::with_capacity(ids.len());
    let mut copied = 0;
    let mut tail = ids.len();
    for (index, sentinel) in sentinels.iter().enumerate() {
        let (hole, moved) = match positions(sentinel)[..] {
            [] => break,
            [hole, moved] => (hole, moved),
            _ => return Err(malformed("a sentinel occurs neither 0 nor 2 times")),
        };
        if index == 0 {
            tail = moved;
        }
        let span = ids
            .get(moved + 1..)
            .and_then(|rest| rest.split(|id| *id == eoss).next())
            .filter(|span| moved + 1 + span.len() < ids.len())
            .ok_or_else(|| malformed("a moved span has no end"))?;
        let before = ids
            .get(copied..hole)
            .filter(|_| hole < tail)
            .ok_or_else(|| malformed("the sentinels are out of order"))?;
        document.extend_from_slice(before);
        document.extend_from_slice(span);
        copied = hole + 1;
    }
    let rest = ids.get(copied..tail);
    document.extend_from_slice(rest.ok_or_else(|| malformed("the sentinels are out of order"))?);
    Ok(document)
}

#[cfg(test)]
#[path = "cm3_tests.rs"]
#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
mod tests;
