//! One row: from streams to tokens.
//!
//! A row is loaded, collected from and weighed in parts, each on a thread of its own where there are several;
//! what is decided between is little. Parts hold whole tiles, and no result depends on their number.

use super::load::{Loaded, RowInputs};
use super::logits::{ABSENT, Format, INFINITE, flush, key_of, logit_of};
use super::masses::{TILE, accumulate, locate};
use super::parallel::for_each;
use super::select::{Buckets, Entry, Groups, Ranked, raise};
use super::weight::{PROBABILITY_BITS, Scale, WEIGHT_BITS, log2_share, nucleus_mass, scaled};
use super::widest::{collect, cut_experts, kth_highest, last_of_nucleus, load, load_experts, weigh};
use crate::random::philox4x32;

/// NaN or -inf excluded at least one allowed id.
pub const STATUS_EXCLUDED: u8 = 1;
/// A logit was +inf: the lowest such id was taken.
pub const STATUS_INFINITE: u8 = 2;
/// No id was left: the token is the lowest allowed id and means nothing.
pub const STATUS_EMPTY: u8 = 4;

/// Probability that switches top-p off.
const CERTAIN: u64 = 1 << PROBABILITY_BITS;
/// Above every key that a logit has.
const ABOVE_ALL: u32 = u32::MAX;

/// Parameters of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowParameters {
    /// Of the draw.
    pub(super) bits_per_logit: f32,
    /// Of the filters.
    pub(super) filter_bits_per_logit: f32,
    pub(super) greedy: bool,
    /// 0 is off.
    pub(super) top_k: usize,
    /// floor(p 2^31).
    pub(super) top_p: u64,
    /// floor(p 2^31).
    pub(super) min_p: u64,
    /// 0 is off.
    pub(super) contrastive_k: usize,
    /// ln(alpha).
    pub(super) contrastive_log_alpha: f32,
    /// Whether top-k keeps all ids that equal the k-th.
    pub(super) keep_ties: bool,
    /// Whether top-p keeps ids while the mass before them is at most its share, not only below.
    pub(super) exclusive: bool,
    /// Whether top-p's share is of the mass before top-k.
    pub(super) full_mass: bool,
    /// Whether min-p comes before top-k and top-p.
    pub(super) min_p_first: bool,
    /// Key of the random numbers.
    pub(super) seed: [u32; 2],
    /// Low and high word of the step.
    pub(super) step: [u32; 2],
    /// Number of the row's first draw.
    pub(super) position: u32,
}

/// What was found out about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row {
    /// Ids that were left to draw from.
    pub num_kept: u32,
    /// Bits `STATUS_*`.
    pub status: u8,
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draw {
    /// Id, counted from the row's first.
    pub token: u32,
    /// log2 of the token's probability with 26 fractional bits.
    pub log2_probability: i64,
}

/// Memory that is used again from row to row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    keys: Vec<u32>,
    experts: Vec<u32>,
    parts: Vec<Part>,
    masses: Vec<u64>,
    candidates: Vec<Ranked>,
    buckets: Buckets,
    edge: Vec<Ranked>,
    edge_keys: Vec<u32>,
}

/// What one part of a row gives.
#[derive(Debug, Default)]
struct Part {
    loaded: Loaded,
    found: Vec<Ranked>,
    masses: Vec<u64>,
    num_kept: usize,
}

/// Fills `drawn` with independent draws from one row, whose ids are shared out over `num_threads`.
pub(super) fn draw_row<F: Format>(
    inputs: &RowInputs<'_, F>,
    parameters: &RowParameters,
    num_threads: usize,
    scratch: &mut Scratch,
    drawn: &mut [Draw],
) -> Row {
    let num_ids = inputs.streams.num_ids();
    let top_k = if parameters.top_k < num_ids {
        parameters.top_k
    } else {
        0
    };
    let groups = Groups::new(num_ids, top_k);
    let split = Split::new(num_ids, groups, num_threads);
    scratch.keys.resize(num_ids, ABSENT);
    let mut excluded = false;
    if parameters.contrastive_k > 0 {
        excluded = scratch.load_contrast(inputs, parameters, num_threads);
        scratch.cut_contrast(inputs, split, groups);
    } else {
        scratch.load(inputs, split, groups);
    }
    let (largest, more) = scratch.gather_loaded();
    let status = if excluded | more { STATUS_EXCLUDED } else { 0 };

    if largest == ABSENT || largest == INFINITE || parameters.greedy {
        let (token, num_kept, more) = match largest {
            ABSENT => (inputs.support.lowest(num_ids), 0, STATUS_EMPTY),
            INFINITE => (scratch.first_at(largest), 1, STATUS_INFINITE),
            _ => (scratch.first_at(largest), 1, 0),
        };
        drawn.fill(Draw {
            token: narrow(token),
            log2_probability: 0,
        });
        return Row {
            num_kept,
            status: status | more,
        };
    }
    let scale = |bits_per_logit| Scale {
        top: logit_of(largest),
        bits_per_logit,
    };
    let filter = scale(parameters.filter_bits_per_logit);
    let draw = scale(parameters.bits_per_logit);
    // A filter by weight is a bound on keys.
    let likely = match parameters.min_p {
        0 => ABSENT + 1,
        p => filter.smallest_key(p << (WEIGHT_BITS - PROBABILITY_BITS), largest),
    };
    let num_kept = if top_k == 0 && parameters.top_p >= CERTAIN {
        let num_kept = scratch.weigh_keys(split, likely, draw);
        pick(&scratch.keys, likely, draw, &mut scratch.masses, parameters, drawn);
        num_kept
    } else {
        let lowest = scratch.cut_by_rank(parameters, (top_k, groups), (filter, largest), likely, split);
        let Scratch { candidates, masses, .. } = scratch;
        masses.clear();
        let num_kept = weigh(candidates, lowest, draw, masses);
        pick(candidates, lowest, draw, masses, parameters, drawn);
        for drawn in drawn {
            // So far a token is a place among the candidates.
            let candidate = candidates.get(drawn.token as usize);
            drawn.token = candidate.map_or(0, |candidate| candidate.id());
        }
        num_kept
    };
    Row {
        num_kept: narrow(num_kept),
        status,
    }
}

/// How a row is cut into parts.
#[derive(Debug, Clone, Copy)]
struct Split {
    /// Ids handled at once.
    tile: usize,
    /// Ids of a part, a multiple of `tile`.
    part: usize,
}

impl Split {
    fn new(num_ids: usize, groups: Option<Groups>, num_threads: usize) -> Self {
        let tile = groups.map_or(TILE, |groups| groups.num_groups);
        let num_tiles = num_ids.div_ceil(tile);
        Self {
            tile,
            part: num_tiles.div_ceil(num_threads.max(1)).max(1) * tile,
        }
    }
}

impl Scratch {
    /// Calls the work with each part's first id, its keys, its experts if there are any, and its memory.
    fn for_each_part(
        &mut self,
        split: Split,
        num_groups: Option<usize>,
        work: impl Fn(usize, &mut [u32], &mut [u32], &mut Part) + Sync,
    ) {
        let num_parts = self.keys.len().div_ceil(split.part);
        self.parts.resize_with(num_parts, Part::default);
        if let Some(num_groups) = num_groups {
            for part in &mut self.parts {
                part.loaded.reset(num_groups);
            }
        }
        let experts = self.experts.chunks_mut(split.part);
        let experts = experts.chain(std::iter::repeat_with(Default::default));
        let keys = self.keys.chunks_mut(split.part);
        let parts = keys.zip(experts).zip(&mut self.parts).enumerate();
        for_each(parts, |(number, ((keys, experts), part))| {
            work(number * split.part, keys, experts, part);
        });
    }

    fn load<F: Format>(&mut self, inputs: &RowInputs<'_, F>, split: Split, groups: Option<Groups>) {
        let num_groups = groups.map_or(0, |groups| groups.num_groups);
        self.for_each_part(split, Some(num_groups), |start, keys, _, part| {
            load(inputs, start, keys, split.tile, &mut part.loaded);
        });
    }

    /// Keys of a contrast, and as `experts` what tells which of them count: those at `ABOVE_ALL`.
    fn load_contrast<F: Format>(
        &mut self,
        inputs: &RowInputs<'_, F>,
        parameters: &RowParameters,
        num_threads: usize,
    ) -> bool {
        let num_ids = self.keys.len();
        let k = parameters.contrastive_k;
        let groups = Groups::new(num_ids, k);
        let split = Split::new(num_ids, groups, num_threads);
        self.experts.resize(num_ids, ABSENT);
        let num_groups = groups.map_or(0, |groups| groups.num_groups);
        self.for_each_part(split, Some(num_groups), |start, keys, experts, part| {
            load_experts(inputs, start, (keys, experts), split.tile, &mut part.loaded);
        });
        let (largest, excluded) = self.gather_loaded();
        let bound = self.bound_of_kth(groups, k).max(ABSENT + 1);
        self.for_each_part(split, None, |start, _, experts, part| {
            part.found.clear();
            collect(experts, start, bound, &mut part.found);
        });
        self.gather_found();
        let kth = kth_highest(&self.candidates, k, &mut self.buckets, &mut self.edge);
        // With fewer than k ids the smallest is the k-th.
        let kth = kth.or(self.candidates.iter().min().copied());
        let kth = kth.map_or(ABSENT, Entry::key);
        let threshold = key_of(flush(logit_of(kth) + parameters.contrastive_log_alpha));
        let likeliest = self.experts.iter().position(|expert| *expert == largest);
        for expert in &mut self.experts {
            *expert = if *expert >= threshold { ABOVE_ALL } else { ABSENT };
        }
        if let Some(expert) = likeliest.and_then(|id| self.experts.get_mut(id)) {
            *expert = ABOVE_ALL;
        }
        excluded
    }

    fn cut_contrast<F: Format>(
        &mut self,
        inputs: &RowInputs<'_, F>,
        split: Split,
        groups: Option<Groups>,
    ) {
        let num_groups = groups.map_or(0, |groups| groups.num_groups);
        self.for_each_part(split, Some(num_groups), |start, keys, experts, part| {
            let keys = (keys, &*experts);
            cut_experts(inputs.penalty, start, keys, ABOVE_ALL, split.tile, &mut part.loaded);
        });
        self.experts.clear();
    }

    /// Brings the maxima of all parts into the first; returns the largest key, and whether ids were excluded.
    fn gather_loaded(&mut self) -> (u32, bool) {
        let Some((first, others)) = self.parts.split_first_mut() else {
            return (ABSENT, false);
        };
        let all = &mut first.loaded;
        for other in others {
            raise(&mut all.maxima, &other.loaded.maxima);
            all.largest = all.largest.max(other.loaded.largest);
            all.excluded |= other.loaded.excluded;
        }
        (all.largest, all.excluded)
    }

    /// What all parts have found, as candidates in the order of their ids.
    fn gather_found(&mut self) {
        self.candidates.clear();
        match self.parts.as_mut_slice() {
            [part] => std::mem::swap(&mut self.candidates, &mut part.found),
            parts => parts.iter().for_each(|part| self.candidates.extend_from_slice(&part.found)),
        }
    }

    /// A key that at least k keys reach, from the gathered maxima; 0 if that is not known of a higher one.
    fn bound_of_kth(&mut self, groups: Option<Groups>, k: usize) -> u32 {
        if groups.is_none() {
            return ABSENT;
        }
        let Self { parts, buckets, edge_keys, .. } = self;
        let maxima = parts.first().map_or(&[][..], |part| &part.loaded.maxima);
        kth_highest(maxima, k, buckets, edge_keys).unwrap_or(ABSENT)
    }

    /// Masses of all tiles of keys from `bound` on; returns how many such keys there are.
    fn weigh_keys(&mut self, split: Split, bound: u32, scale: Scale) -> usize {
        self.for_each_part(split, None, |_, keys, _, part| {
            part.masses.clear();
            part.num_kept = weigh(keys, bound, scale, &mut part.masses);
        });
        self.masses.clear();
        for part in &self.parts {
            self.masses.extend_from_slice(&part.masses);
        }
        self.parts.iter().map(|part| part.num_kept).sum()
    }

    /// Leaves the ids that may pass top-k and top-p as candidates; returns the lowest-ranked that passes them
    /// and min-p, whose bound is `likely`.
    fn cut_by_rank(
        &mut self,
        parameters: &RowParameters,
        (top_k, groups): (usize, Option<Groups>),
        (filter, largest): (Scale, u32),
        likely: u32,
        split: Split,
    ) -> Ranked {
        let first = if parameters.min_p_first {
            likely
        } else {
            ABSENT + 1
        };
        let has_nucleus = parameters.top_p < CERTAIN;
        // Of all that top-k has not cut yet.
        let full_mass = if has_nucleus && (top_k == 0 || parameters.full_mass) {
            self.weigh_keys(split, first, filter);
            Some(self.masses.iter().sum::<u64>())
        } else {
            None
        };
        let needed = |mass| nucleus_mass(mass, parameters.top_p, parameters.exclusive);
        let bound = match full_mass {
            _ if top_k > 0 => self.bound_of_kth(groups, top_k),
            Some(mass) => {
                // Ids that weigh less than this lie behind the nucleus, all of them together.
                let allowed_loss = mass.saturating_sub(needed(mass));
                filter.smallest_key(allowed_loss / self.keys.len().max(1) as u64, largest)
            }
            None => ABSENT,
        };
        let bound = bound.max(first);
        self.for_each_part(split, None, |start, keys, _, part| {
            part.found.clear();
            collect(keys, start, bound, &mut part.found);
        });
        self.gather_found();
        let Self { candidates, buckets, edge, masses, .. } = self;
        let mut lowest = Ranked::lowest_of(bound);
        if top_k > 0
            && let Some(kth) = kth_highest(candidates, top_k, buckets, edge)
        {
            lowest = if parameters.keep_ties {
                Ranked::lowest_of(kth.key())
            } else {
                kth
            };
        }
        if has_nucleus {
            let mass = full_mass.unwrap_or_else(|| {
                masses.clear();
                weigh(candidates, lowest, filter, masses);
                masses.iter().sum()
            });
            lowest = last_of_nucleus(candidates, lowest, filter, needed(mass), buckets, edge);
        }
        lowest.max(Ranked::lowest_of(likely))
    }

    fn first_at(&self, key: u32) -> usize {
        self.keys.iter().position(|other| *other == key).unwrap_or(0)
    }
}

/// Draws from the entries that rank no lower than `bound`, whose tiles have these masses.
fn pick<E: Entry>(
    entries: &[E],
    bound: E,
    scale: Scale,
    masses: &mut [u64],
    parameters: &RowParameters,
    drawn: &mut [Draw],
) {
    let mass = accumulate(masses);
    let [step_low, step_high] = parameters.step;
    for (number, drawn) in (0_u32..).zip(drawn) {
        let counter = [parameters.position.wrapping_add(number), step_low, step_high, 0];
        let [low, high, ..] = philox4x32(counter, parameters.seed);
        let target = scaled(u64::from(high) << 32 | u64::from(low), mass);
        // The mass is above the target, so one is found.
        if let Some((place, entry)) = locate(entries, bound, scale, masses, target) {
            *drawn = Draw {
                token: narrow(place),
                log2_probability: log2_share(scale.exponent(entry.key()), mass),
            };
        }
    }
}

/// An id or a number of ids: at most 2^19 - 1.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
