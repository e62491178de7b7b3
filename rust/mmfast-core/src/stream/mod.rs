//! Training batches from documents: windows of documents in stream order, packed into rows, permuted,
//! and shared out over ranks.
//!
//! The stream of documents is cut into windows of W. The documents of a window are packed into bins
//! and the bins are permuted; a bin is a sample and becomes one row. A global batch is the next G bins,
//! whichever windows they lie in; rank r of R fills bins r, r + R, …. All of it is a function of the
//! configuration and a [`Cursor`] of two numbers, so a stream can be continued anywhere, by any number
//! of ranks. Planning a window reads the lengths and modes of its sequences and no ids. Documents that
//! belong together ([`Groups`]) are ordered and packed as one.

mod arrays;
mod batch;
mod feeder;
mod lookup;
mod packing;
mod planner;
mod prefetch;
mod row;
mod state;
mod window;

#[cfg(test)]
mod packing_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

pub use arrays::{ArrayPool, BatchArrays, BatchMemory, OwnedArrays};
pub use batch::{Batch, BatchFacts, IGNORED_LABEL};
pub use feeder::Feeder;
pub use packing::{Groups, Packing};
pub use prefetch::{Poll, Prefetcher};
pub use row::RowMedia;
pub use state::{Cursor, STATE_VERSION, State};
pub use window::{PlanCounts, WindowPlan};

use crate::error::{Error, Result};
use crate::indexed::DocumentSource;
use crate::objective::{Objective, SeededObjective};
use crate::order::{ALGORITHM_VERSION, DocumentOrder, DryPoint, Share};
use crate::pack::{CutAt, Overlong};

/// Longest row: `cu_seqlens` counts the tokens of a batch in 32 bits.
const MAX_BIN_TOKENS: u32 = 1 << 24;

/// One source of documents.
pub struct StreamSource {
    /// How errors call it, e.g. its path.
    pub name: String,
    /// Its documents.
    pub documents: Arc<dyn DocumentSource>,
    /// Which of them must share a row.
    pub groups: Groups,
    /// Its part of the stream, in proportion to the other weights.
    pub weight: f64,
    /// How often it may be gone through; `None` for no limit.
    pub max_epochs: Option<u64>,
}

impl StreamSource {
    /// The documents of a group.
    fn group(&self, number: u64) -> Range<u64> {
        self.groups
            .documents(number, self.documents.num_documents())
    }

    /// What the stream orders: documents, or groups of them.
    fn num_units(&self) -> u64 {
        self.groups.num_groups(self.documents.num_documents())
    }
}

/// Everything about a stream that is not data or objective.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Seed of all draws.
    pub seed: u64,
    /// Documents per window; a group counts as one.
    pub window_documents: u64,
    /// How documents share rows.
    pub packing: Packing,
    /// Where documents may be cut.
    pub cut_at: CutAt,
    /// Tokens per row.
    pub bin_tokens: u32,
    /// Longest document, after the objective, e.g. a model's context; `None` for no limit but the row.
    pub max_document_tokens: Option<u32>,
    /// Rows per global batch, over all ranks.
    pub global_batch_bins: u32,
    /// What happens to documents longer than [`StreamConfig::document_tokens`].
    pub overlong: Overlong,
    /// This process's number.
    pub rank: u32,
    /// Number of processes.
    pub world_size: u32,
    /// Input id of padding.
    pub pad_id: i64,
    /// Ids must be below this; `None` for no check.
    pub vocabulary_size: Option<i64>,
}

impl StreamConfig {
    fn check(&self) -> Result<()> {
        let Self {
            bin_tokens,
            rank,
            world_size,
            ..
        } = self;
        if self.window_documents == 0 || self.window_documents > 1 << 32 {
            return Err(Error::argument(format!(
                "window_documents is between 1 and 2^32, found {}",
                self.window_documents
            )));
        }
        if *bin_tokens == 0 || *bin_tokens > MAX_BIN_TOKENS {
            return Err(Error::argument(format!(
                "bin_tokens is between 1 and {MAX_BIN_TOKENS}, found {bin_tokens}"
            )));
        }
        if self.max_document_tokens == Some(0) {
            return Err(Error::argument("max_document_tokens must be at least 1"));
        }
        if self.global_batch_bins == 0 {
            return Err(Error::argument("global_batch_bins must be at least 1"));
        }
        if rank >= world_size {
            return Err(Error::argument(format!(
                "rank {rank} is not below world_size {world_size}"
            )));
        }
        let tokens = u64::from(*bin_tokens) * u64::from(self.rows());
        if i32::try_from(tokens).is_err() {
            return Err(Error::argument(format!(
                "a rank's batch of {tokens} tokens is past 2^31 - 1; lower global_batch_bins or bin_tokens"
            )));
        }
        Ok(())
    }

    /// Documents or groups that are planned together.
    pub(crate) fn window_units(&self) -> u64 {
        match self.packing {
            Packing::None => 1,
            Packing::BestFit | Packing::Concat => self.window_documents,
        }
    }

    /// Tokens that a document may have: a row's, or fewer if `max_document_tokens` says so.
    pub fn document_tokens(&self) -> u32 {
        self.max_document_tokens
            .map_or(self.bin_tokens, |most| most.min(self.bin_tokens))
    }

    /// That limit in words, with what would raise it.
    fn document_limit(&self) -> String {
        let most = self.document_tokens();
        if most < self.bin_tokens {
            format!("max_document_tokens {most}; raise it")
        } else {
            format!("a row of {most}; raise bin_tokens")
        }
    }

    /// Rows per batch on each rank.
    pub fn rows(&self) -> u32 {
        self.global_batch_bins.div_ceil(self.world_size.max(1))
    }
}

/// A stream of training batches; holds no position of its own.
pub struct Stream {
    config: StreamConfig,
    sources: Vec<StreamSource>,
    objective: SeededObjective,
    order: DocumentOrder,
    fingerprint: String,
}

impl Stream {
    /// Checks everything that can be checked before the first batch.
    pub fn new(
        config: StreamConfig,
        sources: Vec<StreamSource>,
        objective: Objective,
    ) -> Result<Self> {
        config.check()?;
        for source in &sources {
            let named = |error| Error::argument(format!("groups of {}: {error}", source.name));
            let checked = source.groups.check(source.documents.num_documents());
            checked.map_err(named)?;
            if config.packing == Packing::Concat && source.groups != Groups::Single {
                return Err(Error::argument(format!(
                    "packing concat cuts documents where rows end, which would part the groups of {}; \
                     use best_fit or none",
                    source.name
                )));
            }
        }
        let shares: Vec<Share> = sources
            .iter()
            .map(|source| Share {
                num_documents: source.num_units(),
                weight: source.weight,
                max_epochs: source.max_epochs,
            })
            .collect();
        let order = DocumentOrder::new(config.seed, &shares).map_err(|error| {
            let names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
            Error::argument(format!("{error} (sources: {})", names.join(", ")))
        })?;
        let fingerprint = fingerprint(&config, &sources, &objective);
        Ok(Self {
            objective: objective.seeded(config.seed),
            config,
            sources,
            order,
            fingerprint,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &StreamConfig {
        &self.config
    }

    /// Identity of the stream: what two streams share only if they give the same rows. Four hashes,
    /// of packing, blend, objective and data.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where a finite stream ends, and the name of the source that ends it.
    pub fn dry_point(&self) -> Option<(DryPoint, &str)> {
        let dry = self.order.blend().dry_point()?;
        let source = self.sources.get(usize::try_from(dry.source).ok()?)?;
        Some((dry, &source.name))
    }

    /// Documents of all sources, each counted once.
    pub fn num_source_documents(&self) -> u64 {
        self.sources
            .iter()
            .map(|source| source.documents.num_documents())
            .sum()
    }

    fn source(&self, index: u64) -> Result<&StreamSource> {
        let source = usize::try_from(index)
            .ok()
            .and_then(|i| self.sources.get(i));
        source.ok_or(Error::IndexOutOfRange {
            what: "source",
            index: i64::try_from(index).unwrap_or(i64::MAX),
            len: self.sources.len() as u64,
        })
    }
}

/// Hashes of the four parts that decide a stream's rows, joined by dashes.
fn fingerprint(config: &StreamConfig, sources: &[StreamSource], objective: &Objective) -> String {
    let packing = format!(
        "stream {STATE_VERSION} order {ALGORITHM_VERSION} packing {} window {} bin {} document {} \
         overlong {} cut at {}",
        config.packing.name(),
        config.window_units(),
        config.bin_tokens,
        config.document_tokens(),
        config.overlong.name(),
        config.cut_at.name()
    );
    let blend: Vec<(u64, Option<u64>)> = sources
        .iter()
        .map(|source| (source.weight.to_bits(), source.max_epochs))
        .collect();
    let data: Vec<(u64, u64, String)> = sources
        .iter()
        .map(|source| {
            (
                source.documents.num_documents(),
                source.documents.fingerprint(),
                source.groups.description(),
            )
        })
        .collect();
    let parts = [
        packing,
        format!("{blend:?}"),
        objective.description(),
        format!("{data:?}"),
    ];
    let hash = |text: &str| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    parts.map(|part| hash(&part)).join("-")
}
