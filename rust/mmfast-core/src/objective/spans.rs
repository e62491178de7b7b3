//! Where spans may lie and how they are drawn.
//!
//! A segment is a maximal run of ids inside one sequence without a separator. A span lies inside one
//! segment; sequences without loss have none, because nothing would be learnt from moving them.

use crate::objective::{Sequence, is_no_loss, modality};
use crate::random::{DocumentDraws, below};

/// Candidates tried per wanted span before fewer are accepted.
const CANDIDATES_PER_SPAN: u64 = 256;

/// A run of ids `start..end` in a document, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First position.
    pub start: usize,
    /// Position after the last.
    pub end: usize,
}

impl Span {
    fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    fn len(self) -> usize {
        self.end - self.start
    }
}

/// A maximal run that a span may lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) span: Span,
    pub(crate) modality: u8,
}

/// Segments of a document in order.
pub(crate) fn segments(sequences: &[Sequence], ids: &[i64], separators: &[i64]) -> Vec<Segment> {
    let mut found = Vec::new();
    let mut offset = 0;
    for sequence in sequences {
        let length = sequence.length as usize;
        if !is_no_loss(sequence.mode) {
            let run = ids.get(offset..offset + length).unwrap_or_default();
            let mut start = offset;
            for piece in run.split(|id| separators.contains(id)) {
                let end = start + piece.len();
                if start < end {
                    found.push(Segment {
                        span: Span { start, end },
                        modality: modality(sequence.mode),
                    });
                }
                start = end + 1;
            }
        }
        offset += length;
    }
    found
}

/// Draws up to `num_spans` disjoint spans, each inside one segment, in document order.
///
/// As in metaseq's CM3 dataset, the ends of a candidate are two uniform positions of the document,
/// candidates that overlap an accepted one are refused, and each accepted one is clipped to the
/// segment with which it overlaps most (the first of equals). Unlike there, candidates that clip to
/// nothing are drawn again, and `num_spans` is reached unless 256 candidates a span fail; metaseq
/// stops after `num_spans²` and so gives a third of the documents with two spans only one.
pub(crate) fn random_spans(
    draws: &DocumentDraws,
    first_draw: u32,
    num_spans: u64,
    num_ids: usize,
    segments: &[Segment],
) -> Vec<Span> {
    let mut accepted: Vec<(Span, Span)> = Vec::new();
    if segments.is_empty() {
        return Vec::new();
    }
    for attempt in 0..num_spans.saturating_mul(CANDIDATES_PER_SPAN) {
        if accepted.len() as u64 >= num_spans {
            break;
        }
        let draw = first_draw.saturating_add(u32::try_from(attempt).unwrap_or(u32::MAX));
        let candidate = candidate(draws.pair(draw), num_ids);
        if accepted
            .iter()
            .any(|(raw, _)| raw.intersection(candidate).is_some())
        {
            continue;
        }
        if let Some(clipped) = clipped(candidate, segments) {
            accepted.push((candidate, clipped));
        }
    }
    let mut spans: Vec<Span> = accepted.into_iter().map(|(_, clipped)| clipped).collect();
    spans.sort_unstable();
    spans
}

/// Two uniform numbers u1 <= u2 as `floor(u1 · n)` and `floor(u2 · n + 1/2)`.
fn candidate((a, b): (u64, u64), num_ids: usize) -> Span {
    let num_ids = num_ids as u64;
    let end = (u128::from(a.max(b)) * u128::from(num_ids) + (1 << 63)) >> 64;
    Span {
        start: usize::try_from(below(num_ids, a.min(b))).unwrap_or(usize::MAX),
        end: usize::try_from(end).unwrap_or(usize::MAX),
    }
}

/// The part of `span` in the segment with which it overlaps most.
fn clipped(span: Span, segments: &[Segment]) -> Option<Span> {
    let first = segments.partition_point(|segment| segment.span.end <= span.start);
    let mut best: Option<Span> = None;
    for segment in segments.iter().skip(first) {
        if segment.span.start >= span.end {
            break;
        }
        if let Some(overlap) = segment.span.intersection(span)
            && best.is_none_or(|best| overlap.len() > best.len())
        {
            best = Some(overlap);
        }
    }
    best
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
mod tests {
    use super::*;
    use crate::random::{DocumentKey, Generator, Purpose};

    fn segment(start: usize, end: usize, modality: u8) -> Segment {
        Segment {
            span: Span { start, end },
            modality,
        }
    }

    #[test]
    fn segments_are_runs_between_separators_and_between_sequences() {
        let sequences = [
            Sequence { length: 5, mode: 0 },
            Sequence { length: 3, mode: 1 },
            Sequence {
                length: 2,
                mode: 0x40,
            },
            Sequence { length: 0, mode: 0 },
            Sequence { length: 4, mode: 0 },
        ];
        let ids = [9, 1, 2, 8, 3, 50, 51, 52, 4, 5, 9, 9, 6, 8];
        assert_eq!(
            segments(&sequences, &ids, &[8, 9]),
            [
                segment(1, 3, 0),
                segment(4, 5, 0),
                segment(5, 8, 1),
                segment(12, 13, 0)
            ]
        );
    }

    #[test]
    fn a_span_is_clipped_to_its_largest_overlap() {
        let segments = [segment(1, 3, 0), segment(4, 9, 0), segment(10, 15, 0)];
        let clip = |start, end| clipped(Span { start, end }, &segments);
        assert_eq!(
            clip(0, 6),
            Some(Span { start: 1, end: 3 }),
            "first of equals"
        );
        assert_eq!(clip(2, 12), Some(Span { start: 4, end: 9 }));
        assert_eq!(clip(5, 7), Some(Span { start: 5, end: 7 }));
        assert_eq!(clip(9, 10), None, "only a separator");
        assert_eq!(clip(7, 7), None, "empty");
        assert_eq!(clip(20, 30), None);
    }

    fn draws(document: u64) -> DocumentDraws {
        let key = DocumentKey::new(0, 0, document, 0).unwrap();
        Generator::new(4, Purpose::Spans).document(key)
    }

    /// cm3leon reference statistics: one span of S ids has S/3 on average, and its ends are the
    /// smaller and the larger of two uniform numbers.
    #[test]
    fn one_span_has_the_ends_of_two_uniform_numbers() {
        let (num_ids, documents) = (1_000, 100_000);
        let whole = [segment(0, num_ids, 0)];
        let mut total = 0;
        let mut starts = [0u32; 10];
        let mut ends = [0u32; 10];
        for document in 0..documents {
            let spans = random_spans(&draws(document), 0, 1, num_ids, &whole);
            let [span] = spans[..] else {
                panic!("one span was asked for");
            };
            total += span.len();
            starts[span.start * 10 / num_ids] += 1;
            ends[(span.end - 1) * 10 / num_ids] += 1;
        }
        let mean = total as f64 / documents as f64;
        assert!((mean / (num_ids as f64 / 3.0) - 1.0).abs() < 0.01, "{mean}");
        // P(min of two uniforms in tenth i) = (19 - 2i)/100; the larger one mirrors it.
        let chi_square = |counts: &mut dyn Iterator<Item = u32>| -> f64 {
            (0..10)
                .zip(counts)
                .map(|(i, count)| {
                    let expected = documents as f64 * f64::from(19 - 2 * i) / 100.0;
                    (f64::from(count) - expected).powi(2) / expected
                })
                .sum()
        };
        // 9 degrees of freedom, p = 0.01.
        assert!(chi_square(&mut starts.into_iter()) < 21.67);
        assert!(chi_square(&mut ends.into_iter().rev()) < 21.67);
    }

    #[test]
    fn the_wanted_number_of_spans_is_reached_almost_always() {
        let whole = [segment(0, 1_000, 0)];
        for (wanted, most_missing) in [(1, 0), (2, 20), (3, 100)] {
            let missing = (0..5_000)
                .filter(|d| {
                    random_spans(&draws(*d), 0, wanted, 1_000, &whole).len() as u64 != wanted
                })
                .count();
            assert!(
                missing <= most_missing,
                "{wanted} spans: {missing} of 5,000 documents fell short"
            );
        }
    }

    #[test]
    fn a_document_without_segments_gets_no_span() {
        assert!(random_spans(&draws(0), 0, 3, 10, &[]).is_empty());
    }
}
