//! The documents of each generation.

use mmfast_core::random::{below, philox4x32};

/// Sequences of ids, each with its mode.
pub type Document = Vec<(Vec<i64>, u8)>;

/// Most documents that a generation adds, its number not counted.
const MAX_DOCUMENTS: u64 = 40;
/// Most ids of a sequence.
const MAX_LENGTH: u64 = 200;
/// Of so many generations one has a document that is larger than what a writer gathers in memory.
const GENERATIONS_PER_LARGE_DOCUMENT: u64 = 10;
const LARGE_LENGTH: u64 = 1 << 20;

/// How a generation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With a journal.
    Journaled,
    /// Without.
    Plain,
    /// Merged from the generation before and a part with documents of its own.
    Merged,
}

/// How this generation is written.
pub fn kind(generation: u64) -> Kind {
    match generation % 4 {
        0 => Kind::Plain,
        3 => Kind::Merged,
        _ => Kind::Journaled,
    }
}

/// All documents of a generation.
pub fn documents(generation: u64) -> Vec<Document> {
    let mut all = match kind(generation) {
        Kind::Merged => documents(generation - 1),
        Kind::Journaled | Kind::Plain => Vec::new(),
    };
    all.extend(own_documents(generation));
    all
}

/// The numbers of documents after which a generation is flushed.
pub fn flush_points(generation: u64) -> Vec<u64> {
    let num_documents = num_own_documents(generation) + 1;
    let is_one = |count: &u64| draw(generation, [*count, 1], 4) == 0;
    (1..=num_documents).filter(is_one).collect()
}

/// The documents that a generation does not have from the one before.
pub(crate) fn own_documents(generation: u64) -> Vec<Document> {
    let mut own: Vec<_> = (0..num_own_documents(generation))
        .map(|number| document(generation, number))
        .collect();
    own.push(vec![(vec![i64::try_from(generation).unwrap_or(0)], 0)]);
    own
}

fn num_own_documents(generation: u64) -> u64 {
    draw(generation, [0, 2], MAX_DOCUMENTS + 1)
}

fn document(generation: u64, number: u64) -> Document {
    let num_sequences = draw(generation, [number, 3], 4);
    let sequence = |sequence| {
        let is_large = generation.is_multiple_of(GENERATIONS_PER_LARGE_DOCUMENT) && number == 0;
        let max_length = if is_large { LARGE_LENGTH } else { MAX_LENGTH };
        let length = draw(generation, [number, 4 + sequence], max_length);
        let first = draw(generation, [number, 8 + sequence], 1 << 30);
        let ids = (first..first + length).map(u64::cast_signed).collect();
        (ids, u8::try_from(sequence).unwrap_or(0))
    };
    (0..num_sequences).map(sequence).collect()
}

/// A number below `n`, for this generation and purpose.
fn draw(generation: u64, [number, purpose]: [u64; 2], n: u64) -> u64 {
    let words = [generation, number, purpose].map(|word| u32::try_from(word).unwrap_or(u32::MAX));
    let [a, b, ..] = philox4x32([words[0], words[1], words[2], 0], [0, 0]);
    below(n, u64::from(a) << 32 | u64::from(b))
}
