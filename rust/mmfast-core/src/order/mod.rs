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
pub use megatron::{MegatronConfig, MegatronIndices, require_divisible};

use crate::error::Result;
use crate::random::Purpose;

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
        let (source, asked, num_documents) = self.blend.locate(position)?;
        let epoch = asked / num_documents;
        let permutation = Permutation::new(
            self.seed,
            Purpose::DocumentOrder,
            [source, epoch],
            num_documents,
        );
        Some(DocumentAddress {
            source,
            epoch,
            document: permutation.index(asked % num_documents),
        })
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
