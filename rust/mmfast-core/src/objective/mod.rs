//! What the model sees of a document: the tokens in training order, their inputs and their weights.
//!
//! Next-token training leaves the order alone; CM3 moves spans to the end ([`Cm3`]). Both weigh ids of
//! "no loss" sequences and placeholders for media 0, may leave captions out first ([`CaptionDropout`]) and may
//! replace image ids in the input ([`ImageNoise`]).
//!
//! How many spans a document gets is drawn from the lengths and modes of its sequences alone
//! ([`Objective::num_spans_at_most`]), so that rows can be planned without reading an id. What is read
//! later can only lower the number (a document of nothing but separators has nothing to move) and leave a
//! caption out; the row then has as many pad ids more.

mod cm3;
mod dropout;
mod noise;
mod spans;

pub use cm3::{Cm3, SpanCount, restore};
pub use dropout::CaptionDropout;
pub use noise::ImageNoise;
pub use spans::Span;

use crate::indexed::MEDIA_BIT;
use crate::random::{DocumentDraws, DocumentKey, Generator, Purpose};

/// Bits of a mode that hold the modality.
const MODALITY_BITS: u8 = 0x1F;
/// Bit of a mode that says "no loss".
const NO_LOSS_BIT: u8 = 0x40;
/// Modality of text; sentinels count as text.
pub const TEXT: u8 = 0;
/// Modality of images.
pub const IMAGE: u8 = 1;
/// Modality of video.
pub const VIDEO: u8 = 2;

/// Modality number of a mode byte.
pub fn modality(mode: u8) -> u8 {
    mode & MODALITY_BITS
}

/// Whether ids of this mode carry no loss: they are context, prompt, or placeholders for media.
pub fn is_no_loss(mode: u8) -> bool {
    mode & (NO_LOSS_BIT | MEDIA_BIT) != 0
}

/// Whether ids of this mode are placeholders for media.
pub fn is_media(mode: u8) -> bool {
    mode & MEDIA_BIT != 0
}

/// Weight of ids of this mode as targets.
pub(crate) fn weight(mode: u8) -> f32 {
    if is_no_loss(mode) { 0.0 } else { 1.0 }
}

/// Whether a sequence of this mode must never be cut.
pub fn is_atomic(mode: u8) -> bool {
    matches!(modality(mode), IMAGE | VIDEO) || is_media(mode)
}

/// Length and mode of a sequence: all that planning knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Length in ids.
    pub length: u32,
    /// Mode byte.
    pub mode: u8,
}

/// Ids of all sequences that there are in `sequences`.
pub fn total_length(sequences: &[Sequence]) -> u64 {
    sequences.iter().map(|s| u64::from(s.length)).sum()
}

/// A document in training order. All vectors have one entry per token.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Transformed {
    /// Ids as targets.
    pub ids: Vec<i64>,
    /// Ids as inputs: the same, but for image noise.
    pub input_ids: Vec<i64>,
    /// Modality of each id, 0 for sentinels.
    pub modalities: Vec<u8>,
    /// Weight of each id as a target.
    pub weights: Vec<f32>,
    /// Number of moved spans.
    pub num_spans: usize,
}

impl Transformed {
    fn clear(&mut self) {
        self.ids.clear();
        self.input_ids.clear();
        self.modalities.clear();
        self.weights.clear();
        self.num_spans = 0;
    }
}

/// Takes a document's tokens in training order.
pub(crate) trait TokenSink {
    /// Appends a run of tokens of one modality and weight; returns where they lie as inputs.
    fn append(&mut self, ids: &[i64], modality: u8, weight: f32) -> &mut [i64];

    /// Says that the next run is all the placeholders of a sequence, this many.
    fn begin_media(&mut self, _num_ids: usize) {}
}

impl TokenSink for Transformed {
    fn append(&mut self, ids: &[i64], modality: u8, weight: f32) -> &mut [i64] {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.input_ids.extend_from_slice(ids);
        self.modalities.resize(start + ids.len(), modality);
        self.weights.resize(start + ids.len(), weight);
        self.input_ids.get_mut(start..).unwrap_or_default()
    }
}

/// A document before the objective.
pub(crate) struct Original<'a> {
    sequences: &'a [Sequence],
    ids: &'a [i64],
    noise: Option<(&'a ImageNoise, DocumentDraws)>,
}

impl Original<'_> {
    /// Appends the tokens `start..end`.
    fn copy(&self, start: usize, end: usize, sink: &mut impl TokenSink) {
        let mut offset = 0;
        for Sequence { length, mode } in self.sequences {
            let next = offset + *length as usize;
            let (from, to) = (offset.max(start), next.min(end));
            offset = next;
            if from >= to {
                continue;
            }
            let run = self.ids.get(from..to).unwrap_or_default();
            if is_media(*mode) {
                // Spans and cuts leave such a sequence whole.
                sink.begin_media(run.len());
            }
            let inputs = sink.append(run, modality(*mode), weight(*mode));
            if let Some((noise, draws)) = &self.noise
                && modality(*mode) == IMAGE
            {
                for (position, id) in (from..).zip(inputs) {
                    *id = noise.input_id(draws, position, *id);
                }
            }
        }
    }
}

/// A training objective.
#[derive(Debug, Clone)]
pub struct Objective {
    masking: Option<Cm3>,
    noise: Option<ImageNoise>,
    dropout: Option<CaptionDropout>,
}

impl Objective {
    /// Plain next-token training.
    pub fn next_token(noise: Option<ImageNoise>) -> Self {
        Self {
            masking: None,
            noise,
            dropout: None,
        }
    }

    /// Causal masking.
    pub fn cm3(masking: Cm3, noise: Option<ImageNoise>) -> Self {
        Self {
            masking: Some(masking),
            noise,
            dropout: None,
        }
    }

    /// The same with captions left out of some documents.
    #[must_use]
    pub fn with_caption_dropout(self, dropout: Option<CaptionDropout>) -> Self {
        Self { dropout, ..self }
    }

    /// The objective's draws under a seed.
    pub fn seeded(self, seed: u64) -> SeededObjective {
        SeededObjective {
            spans: Generator::new(seed, Purpose::Spans),
            noise: Generator::new(seed, Purpose::ImageNoise),
            dropout: Generator::new(seed, Purpose::CaptionDropout),
            objective: self,
        }
    }

    /// Everything that decides the objective's output, as text for a fingerprint.
    pub fn description(&self) -> String {
        let masking = self.masking.as_ref().map(Cm3::description);
        let noise = self.noise.as_ref().map(ImageNoise::description);
        let mut text = format!(
            "{}; {}",
            masking.as_deref().unwrap_or("next token"),
            noise.as_deref().unwrap_or("no noise")
        );
        // Without dropout the text, and with it every fingerprint, is that of builds before it.
        if let Some(dropout) = &self.dropout {
            text.push_str("; ");
            text.push_str(&dropout.description());
        }
        text
    }
}

/// An objective with the generators of its draws.
#[derive(Debug, Clone)]
pub struct SeededObjective {
    objective: Objective,
    spans: Generator,
    noise: Generator,
    dropout: Generator,
}

impl SeededObjective {
    /// The unseeded objective.
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// Spans that a document gets at most, known from its sequences' lengths and modes.
    ///
    /// Leaving sequences out or shortening them never raises the number.
    pub fn num_spans_at_most(&self, key: DocumentKey, sequences: &[Sequence]) -> u64 {
        self.objective.masking.as_ref().map_or(0, |cm3| {
            cm3.num_spans_at_most(&self.spans.document(key), sequences)
        })
    }

    /// Brings a document into training order; `output` is overwritten.
    ///
    /// `ids` are the ids of `sequences` one after the other, and there are no more than `max_tokens`
    /// of them. The result has `ids.len() + 3 * num_spans` tokens, less a caption that is left out, and
    /// never more than `max_tokens`: a document that nearly fills a row gets fewer spans.
    pub fn transform(
        &self,
        key: DocumentKey,
        sequences: &[Sequence],
        ids: &[i64],
        max_tokens: u64,
        output: &mut Transformed,
    ) {
        output.clear();
        output.num_spans = self.write(key, sequences, ids, max_tokens, output);
    }

    /// [`Self::transform`] to wherever the tokens go; returns the number of moved spans.
    pub(crate) fn write(
        &self,
        key: DocumentKey,
        sequences: &[Sequence],
        ids: &[i64],
        max_tokens: u64,
        sink: &mut impl TokenSink,
    ) -> usize {
        let objective = &self.objective;
        let shorter = objective.dropout.as_ref().and_then(|dropout| {
            dropout.without_caption(&self.dropout.document(key), sequences, ids)
        });
        let (sequences, ids) = match &shorter {
            Some((sequences, ids)) => (sequences.as_slice(), ids.as_slice()),
            None => (sequences, ids),
        };
        let original = Original {
            sequences,
            ids,
            noise: self
                .objective
                .noise
                .as_ref()
                .map(|noise| (noise, self.noise.document(key))),
        };
        match &self.objective.masking {
            None => {
                original.copy(0, ids.len(), sink);
                0
            }
            Some(cm3) => {
                let room = max_tokens.saturating_sub(ids.len() as u64);
                let spans = cm3.draw_spans(&self.spans.document(key), sequences, ids, room);
                cm3.write(&spans, &original, sink);
                spans.len()
            }
        }
    }

    /// Whether a document's tokens are its ids as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.objective.masking.is_none()
            && self.objective.noise.is_none()
            && self.objective.dropout.is_none()
    }
}
