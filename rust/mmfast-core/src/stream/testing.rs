//! Documents in memory, and streams over them, for the tests of this module.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::objective::{Cm3, Sequence, SpanCount};
use crate::random::{Chance, Generator, PoissonTable, Purpose, below};

/// A document source that holds everything in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    sequences: Vec<(Vec<i64>, u8)>,
    /// First sequence of each document, and the end.
    documents: Vec<u64>,
    /// Makes every read fail with a panic, to test what becomes of one.
    pub(super) panics: bool,
}

impl Memory {
    pub(super) fn new(documents: &[Vec<(Vec<i64>, u8)>]) -> Self {
        let mut memory = Self {
            documents: vec![0],
            ..Self::default()
        };
        for document in documents {
            memory.sequences.extend(document.iter().cloned());
            memory.documents.push(memory.sequences.len() as u64);
        }
        memory
    }

    fn sequence(&self, index: u64) -> Result<&(Vec<i64>, u8)> {
        let found = usize::try_from(index)
            .ok()
            .and_then(|i| self.sequences.get(i));
        found.ok_or(Error::IndexOutOfRange {
            what: "sequence",
            index: i64::try_from(index).unwrap(),
            len: self.sequences.len() as u64,
        })
    }
}

impl DocumentSource for Memory {
    fn num_documents(&self) -> u64 {
        self.documents.len() as u64 - 1
    }
    fn document_sequences(&self, document: u64) -> Result<Range<u64>> {
        assert!(!self.panics, "a panic on purpose");
        let index = usize::try_from(document).unwrap();
        Ok(self.documents[index]..self.documents[index + 1])
    }
    fn sequence_length(&self, sequence: u64) -> Result<u32> {
        Ok(u32::try_from(self.sequence(sequence)?.0.len()).unwrap())
    }
    fn mode(&self, sequence: u64) -> Result<u8> {
        Ok(self.sequence(sequence)?.1)
    }
    fn read_into(&self, sequences: Range<u64>, skip: u64, out: &mut [i64]) -> Result<()> {
        let mut ids = Vec::new();
        for sequence in sequences {
            ids.extend(&self.sequence(sequence)?.0);
        }
        let skip = usize::try_from(skip).unwrap();
        out.copy_from_slice(&ids[skip..skip + out.len()]);
        Ok(())
    }
    fn fingerprint(&self) -> u64 {
        self.sequences.iter().fold(0, |hash, (ids, mode)| {
            let next = ids
                .iter()
                .fold(hash, |hash, id| hash.wrapping_mul(31) ^ id.unsigned_abs());
            next.wrapping_mul(31) ^ u64::from(*mode)
        })
    }
}

pub(super) const EOS: i64 = 1;
pub(super) const BREAK: i64 = 2;
pub(super) const PAD: i64 = 0;

/// Caption-image documents: `eos caption break | 16 image ids | eos`. Each caption starts with the
/// document's number + 1,000, so that rows can be traced to documents.
pub(super) fn captions(num_documents: u64) -> Memory {
    let generator = Generator::new(1, Purpose::Spans);
    let documents: Vec<_> = (0..num_documents)
        .map(|document| {
            let counter = u32::try_from(document).unwrap();
            let (a, b) = generator.pair([counter, 0, 0, 0]);
            let mut caption = vec![EOS, 1_000 + i64::from(counter)];
            caption.extend((0..below(12, a)).map(|i| 10 + i64::try_from(i).unwrap()));
            caption.push(BREAK);
            let image = (0..16).map(|i| 500 + i64::try_from((b >> i) % 64).unwrap());
            vec![(caption, 0), (image.collect(), 1), (vec![EOS], 0)]
        })
        .collect();
    Memory::new(&documents)
}

pub(super) fn config() -> StreamConfig {
    StreamConfig {
        seed: 17,
        window_documents: 64,
        packing: Packing::BestFit,
        cut_at: CutAt::Ids,
        bin_tokens: 96,
        max_document_tokens: None,
        global_batch_bins: 7,
        overlong: Overlong::Error,
        rank: 0,
        world_size: 1,
        pad_id: PAD,
        vocabulary_size: None,
    }
}

pub(super) fn cm3() -> Objective {
    Objective::cm3(masking(), None)
}

pub(super) fn masking() -> Cm3 {
    let masking = Cm3 {
        count: SpanCount::Poisson(PoissonTable::new("span_rate", 1.0).unwrap()),
        min_spans: 0,
        max_spans: 4,
        whole_segment: Chance::new("whole_segment_prob", 0.3).unwrap(),
        whole_segment_modality: None,
        sentinel_loss_weight: 0.0,
        sentinels: vec![3, 4, 5, 6],
        eoss: 7,
        separators: vec![EOS, BREAK],
    };
    masking.checked().unwrap()
}

pub(super) fn source(documents: Memory, max_epochs: Option<u64>) -> StreamSource {
    StreamSource {
        name: "memory".to_string(),
        documents: Arc::new(documents),
        groups: Groups::Single,
        weight: 1.0,
        max_epochs,
    }
}

pub(super) fn stream(
    config: StreamConfig,
    sources: Vec<StreamSource>,
    objective: Objective,
) -> Arc<Stream> {
    Arc::new(Stream::new(config, sources, objective).unwrap())
}

/// A batch with its arrays, as one value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    pub(super) num_rows: usize,
    pub(super) row_tokens: usize,
    pub(super) input_ids: Vec<i64>,
    pub(super) labels: Vec<i64>,
    pub(super) position_ids: Vec<i32>,
    pub(super) document_ids: Vec<i32>,
    pub(super) modality_ids: Vec<u8>,
    pub(super) loss_weights: Vec<f32>,
    pub(super) cu_seqlens: Vec<i32>,
    pub(super) max_seqlen: i32,
    pub(super) weight_sum: f64,
    pub(super) num_tokens: u64,
    pub(super) num_documents: u64,
    pub(super) cursor: Cursor,
    pub(super) counts: PlanCounts,
}

impl Batch {
    pub(super) fn of(arrays: OwnedArrays, facts: BatchFacts) -> Self {
        Self {
            num_rows: facts.num_rows,
            row_tokens: facts.row_tokens,
            input_ids: arrays.input_ids,
            labels: arrays.labels,
            position_ids: arrays.position_ids,
            document_ids: arrays.document_ids,
            modality_ids: arrays.modality_ids,
            loss_weights: arrays.loss_weights,
            cu_seqlens: facts.cu_seqlens,
            max_seqlen: facts.max_seqlen,
            weight_sum: facts.weight_sum,
            num_tokens: facts.num_tokens,
            num_documents: facts.num_documents,
            cursor: facts.cursor,
            counts: facts.counts,
        }
    }
}

/// Arrays that hold what no batch does, so that whatever is not written shows.
pub(super) fn soiled(stream: &Stream) -> OwnedArrays {
    let config = stream.config();
    let size = config.rows() as usize * config.bin_tokens as usize;
    OwnedArrays {
        input_ids: vec![-7; size],
        labels: vec![-7; size],
        position_ids: vec![-7; size],
        document_ids: vec![-7; size],
        modality_ids: vec![77; size],
        loss_weights: vec![f32::NAN; size],
    }
}

/// The next batch of a feeder.
pub(super) fn fed(stream: &Stream, feeder: &mut Feeder) -> Result<Option<Batch>> {
    let mut arrays = soiled(stream);
    let facts = feeder.next_batch(&mut arrays)?;
    Ok(facts.map(|facts| Batch::of(arrays, facts)))
}

/// The next batches from a position, without threads.
pub(super) fn batches(stream: &Arc<Stream>, cursor: Cursor, num_batches: usize) -> Vec<Batch> {
    let mut feeder = Feeder::new(stream, cursor);
    (0..num_batches)
        .map_while(|_| fed(stream, &mut feeder).unwrap())
        .collect()
}

/// The next batch of a prefetcher, with as much memory as it wants.
pub(super) fn next(stream: &Stream, prefetcher: &mut Prefetcher<OwnedArrays>) -> Option<Batch> {
    loop {
        for _ in 0..prefetcher.num_wanted() {
            prefetcher.lend(soiled(stream));
        }
        match prefetcher.poll(Duration::from_secs(5)).unwrap() {
            Poll::Batch(batch) => return Some(Batch::of(batch.memory, batch.facts)),
            Poll::End => return None,
            Poll::Pending => {}
        }
    }
}

/// A document as a row holds it: input ids, labels, weights.
pub(super) type Packed = (Vec<i64>, Vec<i64>, Vec<f32>);

/// The documents of each row.
pub(super) fn documents_by_row(batch: &Batch) -> Vec<Vec<Packed>> {
    (0..batch.num_rows)
        .map(|row| {
            let range = row * batch.row_tokens..(row + 1) * batch.row_tokens;
            let numbers = &batch.document_ids[range.clone()];
            let most = *numbers.iter().max().unwrap();
            (1..=most)
                .map(|number| {
                    let at: Vec<usize> = range
                        .clone()
                        .filter(|position| batch.document_ids[*position] == number)
                        .collect();
                    (
                        at.iter().map(|i| batch.input_ids[*i]).collect(),
                        at.iter().map(|i| batch.labels[*i]).collect(),
                        at.iter().map(|i| batch.loss_weights[*i]).collect(),
                    )
                })
                .collect()
        })
        .collect()
}

/// Plain sequences for planning tests.
pub(super) fn document(parts: &[(u32, u8)]) -> Vec<(Vec<i64>, u8)> {
    let mut next = 10;
    parts
        .iter()
        .map(|(length, mode)| {
            let ids = (0..*length).map(|i| next + i64::from(i)).collect();
            next += i64::from(*length);
            (ids, *mode)
        })
        .collect()
}

/// Lengths and modes, for comparison with a planned part.
pub(super) fn lengths(sequences: &[Sequence]) -> Vec<(u32, u8)> {
    sequences.iter().map(|s| (s.length, s.mode)).collect()
}
