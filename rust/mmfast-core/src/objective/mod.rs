//! What the model sees of a document: the tokens in training order, their inputs and their weights.
//!
//! Next-token training leaves the order alone; CM3 moves spans to the end ([`Cm3`]). Both weigh ids of
//! "no loss" sequences 0 and may replace image ids in the input ([`ImageNoise`]).
//!
//! How many spans a document gets is drawn from the lengths and modes of its sequences alone
//! ([`Objective::num_spans_at_most`]), so that rows can be planned without reading an id. What is read
//! later can only lower the number (a document of nothing but separators has nothing to move), which
//! leaves three pad ids per missing span in the row.

mod cm3;
mod noise;
mod spans;

pub use cm3::{Cm3, SpanCount, restore};
pub use noise::ImageNoise;
pub use spans::Span;

use crate::random::{DocumentKey, Generator, Purpose};

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

/// Whether ids of this mode are context or prompt and carry no loss.
pub fn is_no_loss(mode: u8) -> bool {
    mode & NO_LOSS_BIT != 0
}

/// Whether a sequence of this mode must never be cut.
pub fn is_atomic(mode: u8) -> bool {
    matches!(modality(mode), IMAGE | VIDEO)
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

    fn push(&mut self, id: i64, input_id: i64, modality: u8, weight: f32) {
        self.ids.push(id);
        self.input_ids.push(input_id);
        self.modalities.push(modality);
        self.weights.push(weight);
    }
}

/// A training objective.
#[derive(Debug, Clone)]
pub struct Objective {
    masking: Option<Cm3>,
    noise: Option<ImageNoise>,
}

impl Objective {
    /// Plain next-token training.
    pub fn next_token(noise: Option<ImageNoise>) -> Self {
        Self {
            masking: None,
            noise,
        }
    }

    /// Causal masking.
    pub fn cm3(masking: Cm3, noise: Option<ImageNoise>) -> Self {
        Self {
            masking: Some(masking),
            noise,
        }
    }

    /// The objective's draws under a seed.
    pub fn seeded(self, seed: u64) -> SeededObjective {
        SeededObjective {
            spans: Generator::new(seed, Purpose::Spans),
            noise: Generator::new(seed, Purpose::ImageNoise),
            objective: self,
        }
    }

    /// Everything that decides the objective's output, as text for a fingerprint.
    pub fn description(&self) -> String {
        let masking = self.masking.as_ref().map(Cm3::description);
        let noise = self.noise.as_ref().map(ImageNoise::description);
        format!(
            "{}; {}",
            masking.as_deref().unwrap_or("next token"),
            noise.as_deref().unwrap_or("no noise")
        )
    }
}

/// An objective with the generators of its draws.
#[derive(Debug, Clone)]
pub struct SeededObjective {
    objective: Objective,
    spans: Generator,
    noise: Generator,
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
    /// of them. The result has `ids.len() + 3 * num_spans` tokens and never more than `max_tokens`: a
    /// document that nearly fills a row gets fewer spans.
    pub fn transform(
        &self,
        key: DocumentKey,
        sequences: &[Sequence],
        ids: &[i64],
        max_tokens: u64,
        output: &mut Transformed,
    ) {
        output.clear();
        let noise = self.objective.noise.as_ref();
        let noise = noise.map(|noise| (noise, self.noise.document(key)));
        let mut modes = Vec::with_capacity(ids.len());
        for sequence in sequences {
            modes.extend(std::iter::repeat_n(sequence.mode, sequence.length as usize));
        }
        let input_id = |position: usize, id: i64, mode: u8| match &noise {
            Some((noise, draws)) => noise.input_id(draws, position, id, mode),
            None => id,
        };
        let mut emit = |output: &mut Transformed, start: usize, end: usize| {
            let range = ids.iter().zip(&modes).enumerate();
            for (position, (id, mode)) in range.take(end).skip(start) {
                let weight = if is_no_loss(*mode) { 0.0 } else { 1.0 };
                output.push(*id, input_id(position, *id, *mode), modality(*mode), weight);
            }
        };
        match &self.objective.masking {
            None => emit(output, 0, ids.len()),
            Some(cm3) => {
                let room = max_tokens.saturating_sub(ids.len() as u64);
                let spans = cm3.draw_spans(&self.spans.document(key), sequences, ids, room);
                cm3.write(&spans, ids.len(), output, &mut emit);
            }
        }
    }
}
