//! Which document comes next, in closed form: stream position → (source, source epoch, document).
//!
//! No index is built and nothing is shuffled in memory: a blend table gives the source and how often
//! it was asked before, a permutation evaluated on the fly gives the document. [`MegatronIndices`] is
//! the exception: megatron-core's order, for runs that must see the same samples.

mod blend;
mod feistel;
mod megatron;

pub use blend::{Blend, DryPoint, Share};
pub use feistel::{ALGORITHM_VERSION, Permutation};
pub use megatron::{
    MegatronConfig, MegatronIndices, SampleBounds, SampleRows, read_samples, require_divisible,
};

use crate::error::Result;
use crate::random::Purpose;

/// Permutations that a walk keeps from run to run.
const MAX_PERMUTATIONS: usize = 4_096;

/// A document's place in the data and in its source's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentAddress {
    /// Index of the source.
    pub source: u64,
    /// How many times the source was gone through before.
    pub epoch: u64,
    /// Document number in the source.
    pub document: u64,
}

/// The order of a stream's documents.
#[derive(Debug, Clone)]
pub struct DocumentOrder {
    seed: u64,
    blend: Blend,
}

impl DocumentOrder {
    /// The order for shares of sources under a seed.
    pub fn new(seed: u64, shares: &[Share]) -> Result<Self> {
        Ok(Self {
            seed,
            blend: Blend::new(seed, shares)?,
        })
    }

    /// How the sources share the stream.
    pub fn blend(&self) -> &Blend {
        &self.blend
    }

    /// The document at a stream position; `None` past the end of a finite stream.
    pub fn locate(&self, position: u64) -> Option<DocumentAddress> {
        let mut found = Vec::new();
        self.walk().locate(position, 1, &mut found);
        found.pop()
    }

    /// For many positions: what is the same for all documents of a source epoch is computed once.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            order: self,
            permutations: Vec::new(),
            current: Vec::new(),
            numbers: Vec::new(),
            walking: Vec::new(),
        }
    }
}

/// [`DocumentOrder::locate`] for runs of positions.
///
/// Feistel rounds are long chains of dependent steps, and how often a number is permuted again is random.
/// So all numbers of a run take a step before any takes the next: steps of different numbers overlap, and
/// no branch depends on one.
#[derive(Debug)]
pub struct Walk<'a> {
    order: &'a DocumentOrder,
    /// Permutations that were met.
    permutations: Vec<Permutation>,
    /// Epoch and permutation that each source is in.
    current: Vec<Option<(u64, u32)>>,
    /// Number in its source, and permutation, of each position of a run.
    numbers: Vec<(u64, u32)>,
    /// Positions of the run whose number is not inside yet.
    walking: Vec<u32>,
}

impl Walk<'_> {
    /// Appends the documents at `count` positions from `first` on, at most 2^32; fewer where a finite
    /// stream ends.
    pub fn locate(&mut self, first: u64, count: u32, out: &mut Vec<DocumentAddress>) {
        let start = out.len();
        if self.permutations.len() > MAX_PERMUTATIONS {
            self.permutations.clear();
            self.current.clear();
        }
        self.numbers.clear();
        self.walking.clear();
        for offset in 0..count {
            let Some((source, asked, num_documents)) = first
                .checked_add(offset.into())
                .and_then(|position| self.order.blend.locate(position))
            else {
                break;
            };
            let (epoch, number) = (asked / num_documents, asked % num_documents);
            let permutation = self.permutation(source, epoch, num_documents);
            self.numbers.push((number, permutation));
            self.walking.push(offset);
            out.push(DocumentAddress {
                source,
                epoch,
                document: 0,
            });
        }
        while !self.walking.is_empty() {
            let mut num_outside = 0;
            for at in 0..self.walking.len() {
                let offset = self.walking.get(at).copied().unwrap_or_default();
                let Some((number, permutation)) = self.numbers.get_mut(offset as usize) else {
                    continue;
                };
                let Some(permutation) = self.permutations.get(*permutation as usize) else {
                    continue;
                };
                *number = permutation.encrypt(*number);
                let is_outside = !permutation.contains(*number);
                // Written whether it is kept or not, so that nothing waits for the answer.
                if let Some(kept) = self.walking.get_mut(num_outside) {
                    *kept = offset;
                }
                num_outside += usize::from(is_outside);
            }
            self.walking.truncate(num_outside);
        }
        let found = out.get_mut(start..).unwrap_or_default();
        for (address, (number, _)) in found.iter_mut().zip(&self.numbers) {
            address.document = *number;
        }
    }

    fn permutation(&mut self, source: u64, epoch: u64, num_documents: u64) -> u32 {
        let at = usize::try_from(source).unwrap_or(usize::MAX);
        if self.current.len() <= at {
            self.current.resize(at + 1, None);
        }
        if let Some(Some((of, known))) = self.current.get(at)
            && *of == epoch
        {
            return *known;
        }
        let (purpose, seed) = (Purpose::DocumentOrder, self.order.seed);
        let made = Permutation::new(seed, purpose, [source, epoch], num_documents);
        let index = u32::try_from(self.permutations.len()).unwrap_or(u32::MAX);
        self.permutations.push(made);
        if let Some(current) = self.current.get_mut(at) {
            *current = Some((epoch, index));
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_document_of_every_source_epoch_comes_exactly_once() {
        let share = |num_documents, weight| Share {
            num_documents,
            weight,
            max_epochs: None,
        };
        let order = DocumentOrder::new(7, &[share(31, 1.0), share(100, 2.5)]).unwrap();
        let mut seen: HashMap<(u64, u64), Vec<u64>> = HashMap::new();
        for position in 0..5_000 {
            let at = order.locate(position).unwrap();
            seen.entry((at.source, at.epoch))
                .or_default()
                .push(at.document);
        }
        let mut complete = 0;
        for ((source, _), mut documents) in seen {
            let size = [31, 100][usize::try_from(source).unwrap()];
            documents.sort_unstable();
            if documents.len() == size {
                complete += 1;
                assert!(documents.iter().copied().eq(0..size as u64));
            } else {
                documents.dedup();
                assert!(
                    documents.len() < size,
                    "a partial epoch repeats no document"
                );
            }
        }
        assert!(complete > 40, "{complete}");
    }

    #[test]
    fn epochs_and_seeds_have_their_own_order() {
        let share = Share {
            num_documents: 1_000,
            weight: 1.0,
            max_epochs: None,
        };
        let documents = |seed: u64, epoch: u64| -> Vec<u64> {
            let order = DocumentOrder::new(seed, std::slice::from_ref(&share)).unwrap();
            (0..1_000)
                .map(|i| order.locate(epoch * 1_000 + i).unwrap().document)
                .collect()
        };
        let first = documents(1, 0);
        for other in [documents(1, 1), documents(2, 0)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1,000 documents kept their place");
        }
        assert_eq!(first, documents(1, 0));
    }
}
