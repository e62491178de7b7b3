//! The arrays of a batch: whose memory they are, and how memory is used again.
//!
//! Dimensions: B rows, L = `bin_tokens`. Every array is B·L long, row after row. A batch of 32 rows of
//! 4,096 tokens has 3.8 MB of them, so fresh memory for each would cost more (page faults, zeroing) than
//! filling it. Whoever fills a batch writes every element, so what memory held before never shows.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// The arrays of a batch, to be filled.
#[derive(Debug)]
pub struct BatchArrays<'a> {
    /// What the model reads; the pad id in padding.
    pub input_ids: &'a mut [i64],
    /// The id that follows in the same document.
    pub labels: &'a mut [i64],
    /// Position in the document, from 0.
    pub position_ids: &'a mut [i32],
    /// Number of the document in its row, from 1; 0 is padding.
    pub document_ids: &'a mut [i32],
    /// Modality of the input id.
    pub modality_ids: &'a mut [u8],
    /// Weight of the label.
    pub loss_weights: &'a mut [f32],
}

impl<'a> BatchArrays<'a> {
    /// Refuses arrays of another size than `size`.
    pub(crate) fn require_size(&self, size: usize) -> Result<()> {
        for (name, found) in [
            ("input_ids", self.input_ids.len()),
            ("labels", self.labels.len()),
            ("position_ids", self.position_ids.len()),
            ("document_ids", self.document_ids.len()),
            ("modality_ids", self.modality_ids.len()),
            ("loss_weights", self.loss_weights.len()),
        ] {
            if found != size {
                return Err(Error::argument(format!(
                    "{name} has room for {found} tokens, and a batch has {size}"
                )));
            }
        }
        Ok(())
    }

    /// The arrays of one row after the other.
    pub(crate) fn rows(self, row_tokens: usize) -> impl Iterator<Item = BatchArrays<'a>> {
        let others = self
            .position_ids
            .chunks_exact_mut(row_tokens)
            .zip(self.document_ids.chunks_exact_mut(row_tokens))
            .zip(self.modality_ids.chunks_exact_mut(row_tokens))
            .zip(self.loss_weights.chunks_exact_mut(row_tokens));
        self.input_ids
            .chunks_exact_mut(row_tokens)
            .zip(self.labels.chunks_exact_mut(row_tokens))
            .zip(others)
            .map(
                |(
                    (input_ids, labels),
                    (((position_ids, document_ids), modality_ids), loss_weights),
                )| {
                    BatchArrays {
                        input_ids,
                        labels,
                        position_ids,
                        document_ids,
                        modality_ids,
                        loss_weights,
                    }
                },
            )
    }

    /// Takes the content of another batch of the same size.
    pub fn copy_from(&mut self, other: &BatchArrays<'_>) -> Result<()> {
        self.require_size(other.input_ids.len())?;
        self.input_ids.copy_from_slice(other.input_ids);
        self.labels.copy_from_slice(other.labels);
        self.position_ids.copy_from_slice(other.position_ids);
        self.document_ids.copy_from_slice(other.document_ids);
        self.modality_ids.copy_from_slice(other.modality_ids);
        self.loss_weights.copy_from_slice(other.loss_weights);
        Ok(())
    }
}

/// Memory for the arrays of a batch, whoever owns it.
pub trait BatchMemory: Send + 'static {
    /// The arrays in it.
    fn arrays(&mut self) -> BatchArrays<'_>;
}

/// Arrays in memory of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedArrays {
    /// See [`BatchArrays`], here and below.
    pub input_ids: Vec<i64>,
    #[expect(missing_docs, reason = "as above")]
    pub labels: Vec<i64>,
    #[expect(missing_docs, reason = "as above")]
    pub position_ids: Vec<i32>,
    #[expect(missing_docs, reason = "as above")]
    pub document_ids: Vec<i32>,
    #[expect(missing_docs, reason = "as above")]
    pub modality_ids: Vec<u8>,
    #[expect(missing_docs, reason = "as above")]
    pub loss_weights: Vec<f32>,
}

impl OwnedArrays {
    /// Arrays for so many tokens, of no particular content.
    pub fn new(size: usize) -> Self {
        Self {
            input_ids: vec![0; size],
            labels: vec![0; size],
            position_ids: vec![0; size],
            document_ids: vec![0; size],
            modality_ids: vec![0; size],
            loss_weights: vec![0.0; size],
        }
    }
}

impl BatchMemory for OwnedArrays {
    fn arrays(&mut self) -> BatchArrays<'_> {
        BatchArrays {
            input_ids: &mut self.input_ids,
            labels: &mut self.labels,
            position_ids: &mut self.position_ids,
            document_ids: &mut self.document_ids,
            modality_ids: &mut self.modality_ids,
            loss_weights: &mut self.loss_weights,
        }
    }
}

/// Arrays that nobody uses any more, kept for the batches to come.
#[derive(Debug)]
pub struct ArrayPool {
    free: Mutex<Vec<OwnedArrays>>,
    most: usize,
}

impl ArrayPool {
    /// A pool that keeps at most so many sets of arrays.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::default(),
            most,
        })
    }

    /// Arrays for so many tokens: those that were given back last, which caches still know best.
    pub fn take(&self, size: usize) -> OwnedArrays {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop()
            .filter(|arrays| arrays.input_ids.len() == size)
            .unwrap_or_else(|| OwnedArrays::new(size))
    }

    /// Gives arrays back.
    pub fn give_back(&self, arrays: OwnedArrays) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.most {
            free.push(arrays);
        }
    }
}
