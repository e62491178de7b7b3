//! Sampling from logits on the CPU: mixing of streams, contrast, penalty, temperature, top-k, top-p, min-p and
//! the draws, with the same result, bit for bit, as every other backend (`mmfast.sampling.reference` is
//! the definition).
//!
//! A row's mixed logits become 32-bit keys in the order of the logits, so that ranking, thresholds and
//! ties are integer comparisons. Every filter but a cut by rank is a threshold on keys, since the weight
//! of an id never falls as its logit rises; a cut by rank works on few candidates:
//!
//! - top-k: the k-th largest of the maxima of strided groups of keys bounds the k-th largest key from
//!   below, so the keys at or above it are a small superset of the k largest;
//! - top-p alone: ids lighter than (allowed loss / ids) together cannot matter.
//!
//! After the temperature everything is integers; no sum depends on its order. Dimensions: B rows, N ids.

#![expect(
    clippy::inline_always,
    reason = "what is inlined into a row's function is compiled for that function's instruction set"
)]
#![expect(
    clippy::needless_bitwise_bool,
    reason = "loops without an early exit become wide instructions"
)]

mod apart;
mod batch;
mod load;
mod logits;
mod masses;
mod mix;
mod parallel;
mod part;
mod penalty;
mod row;
mod select;
mod support;
mod weight;
mod widest;

pub use batch::{Bitmaps, Drawn, Inputs, Masks, Parameters, draw};
pub use logits::{Bf16, F16, F32, Format};
pub use row::{
    Draw, RULE_EXCLUSIVE, RULE_FULL_MASS, RULE_KEEP_TIES, RULE_MIN_P_FIRST, Row, STATUS_EMPTY,
    STATUS_EXCLUDED, STATUS_INFINITE,
};
