//! A part of a row, and the jobs that are done on it.

use super::load::{Loaded, RowInputs};
use super::logits::{ABSENT, Format};
use super::masses::TILE;
use super::select::{Groups, Ranked};
use super::weight::Scale;
use super::widest::{collect, cut_experts, load, load_experts, weigh};

/// Above every key that a logit has.
const ABOVE_ALL: u32 = u32::MAX;

/// What is done on every part before the next thing is decided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Job {
    /// Keys from the streams.
    Load { groups: Option<Groups> },
    /// Keys of a contrast, without a penalty, and of its first stream; the maxima are those of the latter.
    LoadExperts { groups: Option<Groups> },
    /// The contrast's cut and the penalty.
    CutExperts {
        threshold: u32,
        likeliest: Option<usize>,
        groups: Option<Groups>,
    },
    /// Experts that are at least `bound`.
    CollectExperts { bound: u32 },
    /// Keys that are at least `bound`.
    Collect { bound: u32 },
    /// Masses of the tiles of keys, counting those that are at least `bound`.
    Weigh { bound: u32, scale: Scale },
}

/// Ids side by side, and what the jobs have made of them.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The row's id that it begins with.
    pub(super) first: usize,
    pub(super) keys: Vec<u32>,
    experts: Vec<u32>,
    pub(super) loaded: Loaded,
    pub(super) found: Vec<Ranked>,
    pub(super) masses: Vec<u64>,
    pub(super) num_kept: usize,
}

impl Part {
    /// Takes over `len` ids of a new row.
    pub(super) fn begin(&mut self, first: usize, len: usize) {
        self.first = first;
        self.keys.resize(len, ABSENT);
        self.loaded.excluded = false;
    }

    /// Does a job, with what it needs of the row.
    pub(super) fn work<F: Format>(&mut self, inputs: &RowInputs<'_, F>, job: Job) {
        let Self {
            first,
            keys,
            experts,
            loaded,
            found,
            masses,
            num_kept,
        } = self;
        match job {
            Job::Load { groups } => {
                loaded.begin(groups);
                load(inputs, *first, keys, loaded);
            }
            Job::LoadExperts { groups } => {
                loaded.begin(groups);
                experts.resize(keys.len(), ABSENT);
                load_experts(inputs, *first, (keys, experts), loaded);
            }
            Job::CutExperts {
                threshold,
                likeliest,
                groups,
            } => {
                loaded.begin(groups);
                let place = likeliest.and_then(|id| id.checked_sub(*first));
                if let Some(expert) = place.and_then(|place| experts.get_mut(place)) {
                    *expert = ABOVE_ALL;
                }
                cut_experts(inputs.penalty, *first, (keys, experts), threshold, loaded);
            }
            Job::CollectExperts { bound } => {
                found.clear();
                collect(experts, *first, bound, found);
            }
            Job::Collect { bound } => {
                found.clear();
                collect(keys, *first, bound, found);
            }
            Job::Weigh { bound, scale } => {
                masses.clear();
                *num_kept = weigh(keys, bound, scale, masses);
            }
        }
    }

    /// The first id that has this key.
    pub(super) fn first_at(&self, key: u32) -> Option<usize> {
        first_at(self.first, &self.keys, key)
    }

    /// The first id whose expert has this key.
    pub(super) fn first_expert_at(&self, key: u32) -> Option<usize> {
        first_at(self.first, &self.experts, key)
    }
}

impl Loaded {
    /// Forgets all maxima. What was excluded stays so.
    fn begin(&mut self, groups: Option<Groups>) {
        let num_groups = groups.map_or(TILE, |groups| groups.num_groups);
        self.maxima.clear();
        self.maxima.resize(num_groups, ABSENT);
    }
}

fn first_at(first: usize, keys: &[u32], key: u32) -> Option<usize> {
    // Whole tiles are passed over in wide steps.
    let tile = keys
        .chunks(TILE)
        .position(|tile| tile.iter().fold(false, |any, other| any | (*other == key)))?;
    let place = keys
        .iter()
        .skip(tile * TILE)
        .position(|other| *other == key)?;
    Some(first + tile * TILE + place)
}
