//! One row: from streams to tokens.
//!
//! A row is loaded, collected from and weighed in parts, each on a thread of its own where there are several;
//! what is decided between is little. No result depends on the number of parts.

use super::load::RowInputs;
use super::logits::{ABSENT, Format, INFINITE, flush, key_of, logit_of};
use super::masses::{TILE, accumulate, locate};
use super::parallel::{Crew, Team};
use super::part::{Job, Part};
use super::select::{Buckets, Entry, Groups, Ranked, raise};
use super::weight::{
    EXPONENT_BITS, PROBABILITY_BITS, Scale, WEIGHT_BITS, log2_share, nucleus_mass, scaled,
};
use super::widest::{cut_weights, kth_highest, last_of_nucleus, place_of, weigh_each};
use crate::random::philox4x32;

/// NaN or -inf excluded at least one allowed id.
pub const STATUS_EXCLUDED: u8 = 1;
/// A logit was +inf: the lowest such id was taken.
pub const STATUS_INFINITE: u8 = 2;
/// No id was left: the token is the lowest allowed id and means nothing.
pub const STATUS_EMPTY: u8 = 4;

/// Top-k keeps all ids that equal the k-th.
pub const RULE_KEEP_TIES: i64 = 1;
/// Top-p keeps ids while the mass before them is at most its share.
pub const RULE_EXCLUSIVE: i64 = 2;
/// Top-p's share is of the mass before top-k.
pub const RULE_FULL_MASS: i64 = 4;
/// Min-p comes before top-k and top-p.
pub const RULE_MIN_P_FIRST: i64 = 8;

/// Probability that switches top-p off.
const CERTAIN: u64 = 1 << PROBABILITY_BITS;

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
    /// Bits `RULE_*`.
    pub(super) rules: i64,
    /// Key of the random numbers.
    pub(super) seed: [u32; 2],
    /// Low and high word of the step.
    pub(super) step: [u32; 2],
    /// Number of the row's first draw.
    pub(super) position: u32,
}

impl RowParameters {
    fn has(&self, rule: i64) -> bool {
        self.rules & rule != 0
    }

    /// For each draw a uniform number below `mass`.
    fn targets(&self, mass: u64) -> impl Iterator<Item = u64> {
        let (seed, position, [step_low, step_high]) = (self.seed, self.position, self.step);
        (0_u32..).map(move |number| {
            let counter = [position.wrapping_add(number), step_low, step_high, 0];
            let [low, high, ..] = philox4x32(counter, seed);
            scaled(u64::from(high) << 32 | u64::from(low), mass)
        })
    }
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

impl Draw {
    /// The natural logarithm of the token's probability; -inf if no id was left.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "float32 is what is asked for"
    )]
    pub fn log_probability(self, row: Row) -> f32 {
        const NATS: f64 = std::f64::consts::LN_2 / (1_u64 << EXPONENT_BITS) as f64;
        if row.status & STATUS_EMPTY == 0 {
            (self.log2_probability as f64 * NATS) as f32
        } else {
            f32::NEG_INFINITY
        }
    }
}

/// Memory that is used again from row to row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    parts: Vec<Part>,
    cuts: Cuts,
}

/// Memory of what is decided between the jobs.
#[derive(Debug, Default)]
struct Cuts {
    candidates: Vec<Ranked>,
    /// Of the candidates, by the filters' temperature where there is a nucleus.
    weights: Vec<u64>,
    buckets: Buckets,
    edge: Vec<Ranked>,
    edge_keys: Vec<u32>,
}

/// Threads that share the ids of a row.
pub(super) type RowTeam = Team<Part, Job>;

/// Fills `drawn` with independent draws from one row, whose ids are shared out over a team.
pub(super) fn draw_row<F: Format>(
    inputs: &RowInputs<'_, F>,
    parameters: &RowParameters,
    team: &RowTeam,
    scratch: &mut Scratch,
    drawn: &mut [Draw],
) -> Row {
    let num_ids = inputs.streams.num_ids();
    let num_tiles = num_ids.div_ceil(TILE);
    let len = num_tiles.div_ceil(team.len()).max(1) * TILE;
    let mut parts = std::mem::take(&mut scratch.parts);
    parts.resize_with(num_ids.div_ceil(len).max(1), Part::default);
    for (number, part) in parts.iter_mut().enumerate() {
        let first = number * len;
        part.begin(first, len.min(num_ids.saturating_sub(first)));
    }
    let work = |part: &mut Part, job: Job| part.work(inputs, job);
    let mut crew = Crew::new(parts, &work, team);
    let row = lead_row(inputs, parameters, &mut crew, &mut scratch.cuts, drawn);
    scratch.parts = crew.parts;
    row
}

fn lead_row<F: Format>(
    inputs: &RowInputs<'_, F>,
    parameters: &RowParameters,
    crew: &mut Crew<'_, Part, Job>,
    cuts: &mut Cuts,
    drawn: &mut [Draw],
) -> Row {
    let num_ids = inputs.streams.num_ids();
    let top_k = if parameters.top_k < num_ids {
        parameters.top_k
    } else {
        0
    };
    let groups = Groups::new(num_ids, top_k);
    if parameters.contrastive_k > 0 {
        let (threshold, likeliest) = cuts.contrast(parameters, num_ids, crew);
        crew.run(Job::CutExperts {
            threshold,
            likeliest,
            groups,
        });
    } else {
        crew.run(Job::Load { groups });
    }
    let (largest, excluded) = gather_loaded(&mut crew.parts);
    let status = if excluded { STATUS_EXCLUDED } else { 0 };

    if largest == ABSENT || largest == INFINITE || parameters.greedy {
        let first_at = |key| crew.parts.iter().find_map(|part| part.first_at(key));
        let (token, num_kept, more) = match largest {
            ABSENT => (inputs.support.lowest(num_ids), 0, STATUS_EMPTY),
            INFINITE => (first_at(largest).unwrap_or(0), 1, STATUS_INFINITE),
            _ => (first_at(largest).unwrap_or(0), 1, 0),
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
        crew.run(Job::Weigh {
            bound: likely,
            scale: draw,
        });
        let runs = crew.parts.iter_mut().map(|part| Run {
            first: part.first,
            keys: &part.keys,
            mass: accumulate(&mut part.masses),
            up_to: &part.masses,
        });
        let runs: Vec<_> = runs.collect();
        pick(&runs, likely, draw, parameters, drawn);
        crew.parts.iter().map(|part| part.num_kept).sum()
    } else {
        let cut = (top_k, groups, num_ids);
        let lowest = cuts.cut_by_rank(parameters, cut, (filter, largest), likely, crew);
        let Cuts {
            candidates,
            weights,
            ..
        } = cuts;
        let has_weights = parameters.top_p < CERTAIN && filter == draw;
        if !has_weights {
            weigh_each(candidates, lowest, draw, weights);
        }
        let (mass, num_kept) = cut_weights(candidates, lowest, weights);
        for (drawn, target) in drawn.iter_mut().zip(parameters.targets(mass)) {
            // The mass is above the target, so one is found.
            let place = place_of(weights, target);
            if let Some(candidate) = place.and_then(|place| candidates.get(place)) {
                *drawn = Draw {
                    token: candidate.id(),
                    log2_probability: log2_share(draw.exponent(candidate.key()), mass),
                };
            }
        }
        num_kept
    };
    Row {
        num_kept: narrow(num_kept),
        status,
    }
}

/// Brings the maxima of all parts into the first; returns the largest key, and whether ids were excluded.
fn gather_loaded(parts: &mut [Part]) -> (u32, bool) {
    let Some((first, others)) = parts.split_first_mut() else {
        return (ABSENT, false);
    };
    let all = &mut first.loaded;
    for other in others {
        raise(&mut all.maxima, &other.loaded.maxima);
        all.excluded |= other.loaded.excluded;
    }
    let largest = all.maxima.iter().copied().max();
    (largest.unwrap_or(ABSENT), all.excluded)
}

impl Cuts {
    /// What all parts have found, as candidates in the order of their ids.
    fn gather_found(&mut self, parts: &mut [Part]) {
        self.candidates.clear();
        match parts {
            [part] => std::mem::swap(&mut self.candidates, &mut part.found),
            parts => parts
                .iter()
                .for_each(|part| self.candidates.extend_from_slice(&part.found)),
        }
    }

    /// A key that at least k keys reach, from the gathered maxima; 0 if that is not known of a higher one.
    fn bound_of_kth(&mut self, groups: Option<Groups>, k: usize, parts: &[Part]) -> u32 {
        if groups.is_none() {
            return ABSENT;
        }
        let maxima = parts.first().map_or(&[][..], |part| &part.loaded.maxima);
        kth_highest(maxima, k, &mut self.buckets, &mut self.edge_keys).unwrap_or(ABSENT)
    }

    /// The key that a contrast's first stream must reach, and the id that stays in any case.
    fn contrast(
        &mut self,
        parameters: &RowParameters,
        num_ids: usize,
        crew: &mut Crew<'_, Part, Job>,
    ) -> (u32, Option<usize>) {
        let k = parameters.contrastive_k;
        let groups = Groups::new(num_ids, k);
        crew.run(Job::LoadExperts { groups });
        let (largest, _) = gather_loaded(&mut crew.parts);
        let bound = self.bound_of_kth(groups, k, &crew.parts).max(ABSENT + 1);
        crew.run(Job::CollectExperts { bound });
        self.gather_found(&mut crew.parts);
        let kth = kth_highest(&self.candidates, k, &mut self.buckets, &mut self.edge);
        // With fewer than k ids the smallest is the k-th.
        let kth = kth.or(self.candidates.iter().min().copied());
        let threshold = kth.map_or(ABSENT, |kth| {
            key_of(flush(
                logit_of(kth.key()) + parameters.contrastive_log_alpha,
            ))
        });
        let mut experts = crew.parts.iter();
        (
            threshold,
            experts.find_map(|part| part.first_expert_at(largest)),
        )
    }

    /// Leaves the ids that may pass top-k and top-p as candidates; returns the lowest-ranked that passes them
    /// and min-p, whose bound is `likely`.
    fn cut_by_rank(
        &mut self,
        parameters: &RowParameters,
        (top_k, groups, num_ids): (usize, Option<Groups>, usize),
        (filter, largest): (Scale, u32),
        likely: u32,
        crew: &mut Crew<'_, Part, Job>,
    ) -> Ranked {
        let first = if parameters.has(RULE_MIN_P_FIRST) {
            likely
        } else {
            ABSENT + 1
        };
        let has_nucleus = parameters.top_p < CERTAIN;
        // Of all that top-k has not cut yet.
        let full_mass = if has_nucleus && (top_k == 0 || parameters.has(RULE_FULL_MASS)) {
            crew.run(Job::Weigh {
                bound: first,
                scale: filter,
            });
            Some(crew.parts.iter().flat_map(|part| &part.masses).sum::<u64>())
        } else {
            None
        };
        let needed = |mass| nucleus_mass(mass, parameters.top_p, parameters.has(RULE_EXCLUSIVE));
        let bound = match full_mass {
            _ if top_k > 0 => self.bound_of_kth(groups, top_k, &crew.parts),
            Some(mass) => {
                // Ids that weigh less than this lie behind the nucleus, all of them together.
                let allowed_loss = mass.saturating_sub(needed(mass));
                filter.smallest_key(allowed_loss / num_ids.max(1) as u64, largest)
            }
            None => ABSENT,
        };
        let bound = bound.max(first);
        crew.run(Job::Collect { bound });
        self.gather_found(&mut crew.parts);
        let Self {
            candidates,
            buckets,
            edge,
            weights,
            ..
        } = self;
        let mut lowest = Ranked::lowest_of(bound);
        if top_k > 0
            && let Some(kth) = kth_highest(candidates, top_k, buckets, edge)
        {
            lowest = if parameters.has(RULE_KEEP_TIES) {
                Ranked::lowest_of(kth.key())
            } else {
                kth
            };
        }
        if has_nucleus {
            let mass = weigh_each(candidates, lowest, filter, weights);
            let needed = needed(full_mass.unwrap_or(mass));
            let weighed = (candidates.as_slice(), weights.as_slice());
            lowest = last_of_nucleus(weighed, lowest, filter, needed, buckets, edge);
        }
        lowest.max(Ranked::lowest_of(likely))
    }
}

/// Keys side by side, with the masses of their tiles.
struct Run<'a> {
    /// Id of the first.
    first: usize,
    keys: &'a [u32],
    /// Masses up to and including each tile.
    up_to: &'a [u64],
    /// The last of them.
    mass: u64,
}

/// Draws from the keys that are at least `bound`.
fn pick(
    runs: &[Run<'_>],
    bound: u32,
    scale: Scale,
    parameters: &RowParameters,
    drawn: &mut [Draw],
) {
    let mass = runs.iter().map(|run| run.mass).sum();
    for (drawn, mut target) in drawn.iter_mut().zip(parameters.targets(mass)) {
        for run in runs {
            if target >= run.mass {
                target -= run.mass;
                continue;
            }
            // The run's mass is above the target, so one is found.
            if let Some((place, key)) = locate(run.keys, bound, scale, run.up_to, target) {
                *drawn = Draw {
                    token: narrow(run.first + place),
                    log2_probability: log2_share(scale.exponent(key), mass),
                };
            }
            break;
        }
    }
}

/// An id or a number of ids: at most 2^19 - 1.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
