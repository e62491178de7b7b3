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
    /// Largest key of each group. Without groups it is that of strided ones all the same, for the largest of all.
    pub(super) maxima: Vec<u32>,
    /// Whether an id that exists was absent.
    pub(super) excluded: bool,
}

/// Ids that are seen by one step after the other before the next ones: what each leaves stays in the nearest cache.
const BLOCK: usize = 1024;

/// Keys that begin at the row's id `start`, from its streams.
#[inline(always)]
pub(super) fn load<F: Format>(
    inputs: &RowInputs<'_, F>,
    start: usize,
    keys: &mut [u32],
    loaded: &mut Loaded,
) {
    let Loaded { maxima, excluded } = loaded;
    let tile = maxima.len();
    for (number, keys) in keys.chunks_mut(tile).enumerate() {
        let start = start + number * tile;
        let blocks = keys.chunks_mut(BLOCK).zip(maxima.chunks_mut(BLOCK));
        for (number, (keys, maxima)) in blocks.enumerate() {
            let start = start + number * BLOCK;
            inputs.streams.mix(start, keys);
            let is_partial = !matches!(inputs.support, Support::All);
            if is_partial {
                *excluded |= inputs.support.restrict(start, keys);
            }
            if let Some(penalty) = inputs.penalty {
                *excluded |= penalty.apply(start, keys);
            }
            let lowest = raise(maxima, keys);
            *excluded |= !is_partial & (lowest == ABSENT);
        }
    }
}

/// The same up to the contrast's cut: keys of the contrast without a penalty, and those of its first stream,
/// which are the ones noted.
#[inline(always)]
pub(super) fn load_experts<F: Format>(
    inputs: &RowInputs<'_, F>,
    start: usize,
    (keys, experts): (&mut [u32], &mut [u32]),
    loaded: &mut Loaded,
) {
    let tile = loaded.maxima.len();
    let tiles = keys.chunks_mut(tile).zip(experts.chunks_mut(tile));
    for (number, (keys, experts)) in tiles.enumerate() {
        let start = start + number * tile;
        inputs.streams.mix(start, keys);
        loaded.excluded |= inputs.support.restrict(start, keys);
        inputs.streams.expert(start, keys, experts);
        raise(&mut loaded.maxima, experts);
    }
}

/// The rest of it: the cut at `threshold`, then the penalty.
#[inline(always)]
pub(super) fn cut_experts(
    penalty: Option<Penalty<'_>>,
    start: usize,
    (keys, experts): (&mut [u32], &[u32]),
    threshold: u32,
    loaded: &mut Loaded,
) {
    let tile = loaded.maxima.len();
    let tiles = keys.chunks_mut(tile).zip(experts.chunks(tile));
    for (number, (keys, experts)) in tiles.enumerate() {
        for (key, expert) in keys.iter_mut().zip(experts) {
            *key = if *expert >= threshold { *key } else { ABSENT };
        }
        if let Some(penalty) = penalty {
            loaded.excluded |= penalty.apply(start + number * tile, keys);
        }
        raise(&mut loaded.maxima, keys);
    }
}
