//! From streams to keys: mixing, support, contrast and penalty, a tile at a time.

use super::logits::{ABSENT, Format};
use super::mix::Streams;
use super::penalty::Penalty;
use super::select::raise;
use super::support::Support;

/// What a row's keys are made of.
pub(super) struct RowInputs<'a, F: Format> {
    pub(super) streams: Streams<'a, F>,
    pub(super) support: Support<'a>,
    pub(super) penalty: Option<Penalty<'a>>,
}

/// What loading a part of a row has found.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Largest key of each group; empty without groups.
    pub(super) maxima: Vec<u32>,
    /// Largest key.
    pub(super) largest: u32,
    /// Whether an id that exists was absent.
    pub(super) excluded: bool,
}

impl Loaded {
    #[inline(always)]
    fn note(&mut self, keys: &[u32]) {
        self.largest = keys
            .iter()
            .fold(self.largest, |largest, key| largest.max(*key));
        raise(&mut self.maxima, keys);
    }
}

/// Keys that begin at the row's id `start`, from its streams.
#[inline(always)]
pub(super) fn load<F: Format>(
    inputs: &RowInputs<'_, F>,
    start: usize,
    keys: &mut [u32],
    tile: usize,
    loaded: &mut Loaded,
) {
    for (number, keys) in keys.chunks_mut(tile).enumerate() {
        let start = start + number * tile;
        inputs.streams.mix(start, keys);
        loaded.excluded |= inputs.support.restrict(start, keys);
        if let Some(penalty) = inputs.penalty {
            loaded.excluded |= penalty.apply(start, keys);
        }
        loaded.note(keys);
    }
}

/// The same up to the contrast's cut: keys of the contrast without a penalty, and those of its first stream,
/// which are the ones noted.
#[inline(always)]
pub(super) fn load_experts<F: Format>(
    inputs: &RowInputs<'_, F>,
    start: usize,
    (keys, experts): (&mut [u32], &mut [u32]),
    tile: usize,
    loaded: &mut Loaded,
) {
    let tiles = keys.chunks_mut(tile).zip(experts.chunks_mut(tile));
    for (number, (keys, experts)) in tiles.enumerate() {
        let start = start + number * tile;
        inputs.streams.mix(start, keys);
        loaded.excluded |= inputs.support.restrict(start, keys);
        inputs.streams.expert(start, keys, experts);
        loaded.note(experts);
    }
}

/// The rest of it: the cut at `threshold`, then the penalty.
#[inline(always)]
pub(super) fn cut_experts(
    penalty: Option<Penalty<'_>>,
    start: usize,
    (keys, experts): (&mut [u32], &[u32]),
    threshold: u32,
    tile: usize,
    loaded: &mut Loaded,
) {
    let tiles = keys.chunks_mut(tile).zip(experts.chunks(tile));
    for (number, (keys, experts)) in tiles.enumerate() {
        for (key, expert) in keys.iter_mut().zip(experts) {
            *key = if *expert >= threshold { *key } else { ABSENT };
        }
        if let Some(penalty) = penalty {
            loaded.excluded |= penalty.apply(start + number * tile, keys);
        }
        loaded.note(keys);
    }
}
