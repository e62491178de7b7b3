//! One row: from streams to a token.

use super::logits::{ABSENT, Format, INFINITE, logit_of};
use super::mix::{Streams, restrict};
use super::select::{Groups, Ranked, collect, kth_largest, kth_ranked, last_of_nucleus, raise};
use super::weight::{PROBABILITY_BITS, Scale, WEIGHT_BITS, log2_share, nucleus_mass, scaled};

/// NaN or -inf excluded at least one allowed id.
pub const STATUS_EXCLUDED: u8 = 1;
/// A logit was +inf: the lowest such id was taken.
pub const STATUS_INFINITE: u8 = 2;
/// No id was left: the token is the lowest allowed id and means nothing.
pub const STATUS_EMPTY: u8 = 4;

/// Probability that switches top-p off.
const CERTAIN: u64 = 1 << PROBABILITY_BITS;
/// Ids mixed, or drawn from, at once where nothing else sets the number.
const TILE: usize = 1024;

/// Parameters of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowParameters {
    pub(super) bits_per_logit: f32,
    pub(super) greedy: bool,
    /// 0 is off.
    pub(super) top_k: usize,
    /// floor(p 2^31).
    pub(super) top_p: u64,
    /// floor(p 2^31).
    pub(super) min_p: u64,
    /// Whether top-k keeps all ids that equal the k-th.
    pub(super) keep_ties: bool,
    /// Whether min-p comes before top-k and top-p.
    pub(super) min_p_first: bool,
    /// A uniform number.
    pub(super) random: u64,
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowDraw {
    /// Id, counted from the row's first.
    pub token: u32,
    /// Ids that were left to draw from.
    pub num_kept: u32,
    /// log2 of the token's probability with 26 fractional bits.
    pub log2_probability: i64,
    /// Bits `STATUS_*`.
    pub status: u8,
}

/// Memory that is used again from row to row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    keys: Vec<u32>,
    maxima: Vec<u32>,
    candidates: Vec<Ranked>,
    ranked: Vec<Ranked>,
    weighted: Vec<(Ranked, u64)>,
}

/// Draws from one row. Inlined into one function per instruction set.
#[inline(always)]
pub(super) fn draw_row<F: Format>(
    streams: &Streams<'_, F>,
    mask: Option<&[bool]>,
    parameters: RowParameters,
    scratch: &mut Scratch,
) -> RowDraw {
    let num_ids = streams.num_ids();
    let top_k = if parameters.top_k < num_ids {
        parameters.top_k
    } else {
        0
    };
    let groups = match top_k {
        0 => None,
        k => Groups::new(num_ids, k),
    };
    let tile = groups.map_or(TILE, |groups| groups.num_groups);
    scratch.maxima.clear();
    scratch
        .maxima
        .resize(groups.map_or(0, |groups| groups.num_groups), 0);
    scratch.keys.resize(num_ids, ABSENT);
    let mut largest = ABSENT;
    let mut status = 0;
    for (number, keys) in scratch.keys.chunks_mut(tile).enumerate() {
        let start = number * tile;
        streams.mix(start, keys);
        let mask = mask.map(|mask| mask.get(start..).unwrap_or_default());
        if restrict(keys, mask) {
            status = STATUS_EXCLUDED;
        }
        largest = keys.iter().fold(largest, |largest, key| largest.max(*key));
        raise(&mut scratch.maxima, keys);
    }

    if largest == ABSENT {
        let lowest = mask.map_or(0, |mask| {
            mask.iter().position(|allowed| *allowed).unwrap_or(0)
        });
        return RowDraw {
            token: narrow(lowest),
            status: status | STATUS_EMPTY,
            ..RowDraw::default()
        };
    }
    if parameters.greedy || largest == INFINITE {
        if largest == INFINITE {
            status |= STATUS_INFINITE;
        }
        let token = scratch
            .keys
            .iter()
            .position(|key| *key == largest)
            .unwrap_or(0);
        return RowDraw {
            token: narrow(token),
            num_kept: 1,
            log2_probability: 0,
            status,
        };
    }
    let scale = Scale {
        top: logit_of(largest),
        bits_per_logit: parameters.bits_per_logit,
    };
    let filter = Filter::new(parameters, scale, largest);
    let drawn = if top_k > 0 {
        let bound = match groups {
            Some(_) => kth_largest(&mut scratch.maxima, top_k),
            None => ABSENT,
        };
        scratch.candidates.clear();
        collect(
            &scratch.keys,
            bound.max(filter.first),
            &mut scratch.candidates,
        );
        filter.keep_k(top_k, scratch);
        filter.draw_candidates(None, scratch)
    } else if parameters.top_p < CERTAIN {
        let mass = mass_of(&scratch.keys, filter.first, scale).0;
        // Ids that weigh less than this lie behind the nucleus, all of them together.
        let allowed_loss = mass - nucleus_mass(mass, parameters.top_p);
        let bound = scale.smallest_key(allowed_loss / num_ids as u64, largest);
        scratch.candidates.clear();
        collect(
            &scratch.keys,
            bound.max(filter.first),
            &mut scratch.candidates,
        );
        filter.draw_candidates(Some(mass), scratch)
    } else {
        filter.draw_all(&scratch.keys)
    };
    RowDraw { status, ..drawn }
}

/// A row's filters, those by weight as bounds on keys.
#[derive(Debug, Clone, Copy)]
struct Filter {
    parameters: RowParameters,
    scale: Scale,
    /// Smallest key that may take part in cuts by rank.
    first: u32,
    /// Smallest key that may be drawn.
    last: u32,
}

impl Filter {
    fn new(parameters: RowParameters, scale: Scale, largest: u32) -> Self {
        let last = match parameters.min_p {
            0 => ABSENT + 1,
            p => scale.smallest_key(p << (WEIGHT_BITS - PROBABILITY_BITS), largest),
        };
        let first = if parameters.min_p_first {
            last
        } else {
            ABSENT + 1
        };
        Self {
            parameters,
            scale,
            first,
            last,
        }
    }

    /// Leaves the k highest-ranked candidates, in the order of their ids.
    fn keep_k(&self, k: usize, scratch: &mut Scratch) {
        if scratch.candidates.len() <= k {
            return;
        }
        scratch.ranked.clear();
        scratch.ranked.extend_from_slice(&scratch.candidates);
        if let Some(mut lowest) = kth_ranked(&mut scratch.ranked, k) {
            if self.parameters.keep_ties {
                lowest = Ranked::lowest_of(lowest.key());
            }
            scratch.candidates.retain(|candidate| *candidate >= lowest);
        }
    }

    /// Cuts the candidates, which are in the order of their ids, by mass and draws one. `mass` is that of
    /// all ids that the cut is about, if there are more than the candidates.
    fn draw_candidates(&self, mass: Option<u64>, scratch: &mut Scratch) -> RowDraw {
        let Scratch {
            candidates,
            weighted,
            ..
        } = scratch;
        weighted.clear();
        weighted.extend(
            candidates
                .iter()
                .map(|candidate| (*candidate, self.scale.weight(candidate.key()))),
        );
        let mut lowest = Ranked::lowest_of(self.last);
        if self.parameters.top_p < CERTAIN {
            let mass = mass.unwrap_or_else(|| weighted.iter().map(|(_, weight)| weight).sum());
            let needed = nucleus_mass(mass, self.parameters.top_p);
            if let Some(last) = last_of_nucleus(weighted, needed) {
                lowest = lowest.max(last);
            }
        }
        candidates.retain(|candidate| *candidate >= lowest);
        let weight = |candidate: &Ranked| self.scale.weight(candidate.key());
        let mass = candidates.iter().map(weight).sum();
        let target = scaled(self.parameters.random, mass);
        let mut before = 0;
        let found = candidates.iter().find(|candidate| {
            before += weight(candidate);
            before > target
        });
        // The mass is above the target, so one is found.
        found.map_or_else(RowDraw::default, |found| {
            self.drawn(found.id() as usize, found.key(), candidates.len(), mass)
        })
    }

    /// Draws from all keys that are large enough.
    #[inline(always)]
    fn draw_all(&self, keys: &[u32]) -> RowDraw {
        let (mass, num_kept) = mass_of(keys, self.last, self.scale);
        let target = scaled(self.parameters.random, mass);
        let mut before = 0;
        for (number, tile) in keys.chunks(TILE).enumerate() {
            let (tile_mass, _) = mass_of(tile, self.last, self.scale);
            if before + tile_mass <= target {
                before += tile_mass;
                continue;
            }
            for (place, key) in tile.iter().enumerate() {
                before += weight_from(*key, self.last, self.scale);
                if before > target {
                    return self.drawn(number * TILE + place, *key, num_kept, mass);
                }
            }
        }
        RowDraw::default()
    }

    fn drawn(&self, token: usize, key: u32, num_kept: usize, mass: u64) -> RowDraw {
        RowDraw {
            token: narrow(token),
            num_kept: narrow(num_kept),
            log2_probability: log2_share(self.scale.exponent(key), mass),
            status: 0,
        }
    }
}

/// Weight of a key that is at least `bound`, else 0.
#[inline(always)]
fn weight_from(key: u32, bound: u32, scale: Scale) -> u64 {
    // What is absent has a weight too, of a logit that is NaN; the bound is above it.
    let weight = scale.weight(key);
    if key >= bound { weight } else { 0 }
}

/// Sum of the weights of all keys that are at least `bound`, and how many there are.
#[inline(always)]
fn mass_of(keys: &[u32], bound: u32, scale: Scale) -> (u64, usize) {
    keys.iter().fold((0, 0), |(mass, count), key| {
        (
            mass + weight_from(*key, bound, scale),
            count + usize::from(*key >= bound),
        )
    })
}

/// An id or a number of ids: at most 2^19 - 1.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
