//! Files whose bytes were changed at random are refused, or read within their bounds: without a
//! panic, and without more memory than the size of the file explains.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use mmfast_core::Error;
use mmfast_core::indexed::{
    Access, DatasetView, DatasetWriter, DocumentSource, Dtype, Gather, IndexedDataset, Notes,
    Prefix, Tokens, Verify, scan,
};
use mmfast_core::vfs::{Disk, Vfs};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::allocations::peak_bytes;
use crate::draws::Draws;
use crate::{NUM_THREADS, figures, folder, in_threads};

const SEED: u32 = 31;
/// Bytes that opening and reading may hold for each byte of the file, and beyond them.
const HELD_PER_BYTE: usize = 16;
const HELD_ANYHOW: usize = 16 << 10;
/// Both kinds of file have their counts before this offset.
const NUM_FIRST: usize = 104;

/// Documents of sequences with these lengths, and what the ids are stored as.
struct Shape {
    dtype: Dtype,
    has_modes: bool,
    documents: &'static [&'static [u32]],
}

const SHAPES: [Shape; 4] = [
    Shape {
        dtype: Dtype::U16,
        has_modes: true,
        documents: &[&[2, 0], &[], &[3]],
    },
    Shape {
        dtype: Dtype::I32,
        has_modes: false,
        documents: &[&[1], &[1], &[7], &[1], &[4, 4, 4, 4], &[9], &[1], &[30]],
    },
    Shape {
        dtype: Dtype::U8,
        has_modes: true,
        documents: &[],
    },
    // More than one block of checksums.
    Shape {
        dtype: Dtype::I64,
        has_modes: true,
        documents: &[&[100_000], &[40_000]],
    },
];

impl Shape {
    fn write(&self, at: &Prefix) {
        let mut writer = DatasetWriter::create(at, self.dtype, self.has_modes).unwrap();
        let provenance = r#"{"from": ["here", {"n": 3}], "share": 0.5}"#;
        writer.set_notes(Notes::new(Some("abc".into()), Some(provenance)).unwrap());
        for document in self.documents {
            self.add(&mut writer, document);
        }
        writer.finish().unwrap();
    }

    fn add(&self, writer: &mut DatasetWriter, document: &[u32]) {
        for &length in document {
            let ids = vec![7; length as usize];
            let mode = u8::from(self.has_modes);
            writer.add_sequence(Tokens::I64(&ids), mode).unwrap();
        }
        writer.end_document();
    }
}

/// Changes bytes, half of the time among the first, where the counts are.
fn mutate(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..=draws.below(3) {
        if bytes.is_empty() {
            break;
        }
        let end = match draws.below(2) {
            0 => bytes.len().min(NUM_FIRST),
            _ => bytes.len(),
        };
        let here = draws.below(end);
        match draws.below(5) {
            0 => bytes[here] ^= 1 << draws.below(8),
            1 => bytes[here] = draws.next() as u8,
            2 => {
                let end = bytes.len().min(here + 1 + draws.below(8));
                bytes[here..end].fill(draws.one_of(&[0, 1, 0x7f, 0x80, 0xff]));
            }
            // A number that overflows something when it is multiplied or added.
            3 => {
                let number = draws.one_of(&[1 << 31, 1 << 60, 1 << 61, 1 << 62, 1 << 63, u64::MAX]);
                let number = number.wrapping_sub(draws.below(3) as u64).to_le_bytes();
                let end = bytes.len().min(here + 8);
                bytes[here..end].copy_from_slice(&number[..end - here]);
            }
            // Bytes from elsewhere in the file.
            _ => {
                let length = (1 + draws.below(16)).min(bytes.len() - here);
                let from = draws.below(bytes.len() - length + 1);
                bytes.copy_within(from..from + length, here);
            }
        }
    }
    match draws.below(16) {
        0 => bytes.truncate(draws.below(bytes.len() + 1)),
        1 => bytes.extend((0..=draws.below(40)).map(|i| i as u8)),
        _ => {}
    }
}

/// Asks an accepted dataset for everything; what it answers lies within what it said it holds.
fn read_everything(dataset: &Arc<IndexedDataset>, is_checked: bool) -> Result<(), Error> {
    let num_sequences = dataset.num_sequences();
    let mut next = 0;
    for document in 0..dataset.num_documents() {
        let sequences = dataset.document_sequences(document);
        if is_checked {
            assert_eq!(sequences.as_ref().unwrap().start, next);
        }
        for sequence in sequences? {
            dataset.mode(sequence)?;
            dataset.token_range(sequence)?;
            match dataset.ids(sequence..sequence + 1) {
                Ok(ids) => assert_eq!(ids.len(), dataset.sequence_length(sequence)? as usize),
                // A dtype of the same width may hold no ids.
                Err(Error::InvalidArgument(_)) => {}
                Err(error) => return Err(error),
            }
            next = sequence + 1;
        }
    }
    assert!(
        !is_checked || next == num_sequences,
        "{next} of {num_sequences}"
    );
    let documents: Vec<_> = (0..dataset.num_documents()).collect();
    let view = DatasetView::of(Arc::clone(dataset))?;
    let gathered = Gather::documents(&view, documents.into_iter().map(Ok))?;
    assert!(!is_checked || gathered.num_tokens() as u64 == dataset.num_tokens());
    dataset.fingerprint();
    if dataset.dtype().id_range().is_some() {
        scan(dataset, 0..num_sequences, None)?;
    }
    Ok(())
}

/// Mutates the file at `path` and opens the dataset `at`, for each number in `attempts`; `finish`
/// may repair checksums, `read` looks at what is accepted. Returns how many were accepted.
fn attempt_all(
    path: &Path,
    attempts: impl Iterator<Item = u64>,
    finish: impl Fn(&mut Vec<u8>, &mut Draws),
    open_and_read: impl Fn(&mut Draws) -> Result<(), Error>,
) -> u64 {
    let whole = std::fs::read(path).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let name = path.display();
    let mut num_accepted = 0;
    for attempt in attempts {
        let mut draws = Draws::new(SEED, attempt);
        let mut bytes = whole.clone();
        mutate(&mut bytes, &mut draws);
        finish(&mut bytes, &mut draws);
        // Nothing is mapped between two attempts, so the file may be written in place.
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let job = AssertUnwindSafe(|| peak_bytes(|| open_and_read(&mut draws)));
        let Ok((result, held)) = catch_unwind(job) else {
            panic!("mutation {attempt} of {name}: a panic");
        };
        let allowed = HELD_ANYHOW + HELD_PER_BYTE * bytes.len();
        assert!(
            held <= allowed,
            "mutation {attempt} of {name}: {held} bytes held"
        );
        match result {
            Ok(()) => num_accepted += 1,
            Err(Error::Corrupt { .. } | Error::UnsupportedFormat { .. }) => {}
            Err(error) => panic!("mutation {attempt} of {name}: {error}"),
        }
    }
    file.set_len(whole.len() as u64).unwrap();
    file.write_all_at(&whole, 0).unwrap();
    num_accepted
}

/// Spreads attempts over threads and shapes; returns how many were accepted.
fn for_each_shape(
    shapes: &[Shape],
    num_attempts: u64,
    job: impl Fn(&Shape, &Prefix, &mut dyn Iterator<Item = u64>) -> u64 + Sync,
) -> u64 {
    in_threads(|thread| {
        let folder = folder();
        let num_shapes = shapes.len() as u64;
        let run = |(i, shape): (usize, &Shape)| {
            let at = Prefix::new(folder.path().join(i.to_string())).unwrap();
            shape.write(&at);
            let mine = |attempt: &u64| {
                attempt % num_shapes == i as u64
                    && attempt / num_shapes % NUM_THREADS as u64 == thread as u64
            };
            job(shape, &at, &mut (0..num_attempts).filter(mine))
        };
        shapes.iter().enumerate().map(run).sum()
    })
}

#[test]
fn a_mutated_index_is_refused_or_read_within_its_bounds() {
    let num_attempts = figures::scaled(100_000, 5_000_000);
    let disk: Arc<dyn Vfs> = Arc::new(Disk);
    let num_accepted = for_each_shape(&SHAPES[..3], num_attempts, |_, at, attempts| {
        Disk.remove(&at.sidecar()).unwrap();
        let unchanged = |_: &mut Vec<u8>, _: &mut Draws| ();
        attempt_all(&at.idx(), attempts, unchanged, |draws| {
            let level = draws.one_of(&[Verify::None, Verify::Index, Verify::Index]);
            let access = draws.one_of(&[Access::Mmap, Access::Pread]);
            let dataset = Arc::new(IndexedDataset::open_with(&disk, at, level, access)?);
            read_everything(&dataset, level == Verify::Index)
        })
    });
    report(num_attempts, num_accepted);
}

/// With a checksum that fits, mostly, so that mutations reach the fields behind it.
#[test]
fn a_mutated_sidecar_is_refused_or_fits_its_pair() {
    let num_attempts = figures::scaled(50_000, 2_500_000);
    let num_accepted = for_each_shape(&SHAPES, num_attempts, |_, at, attempts| {
        let fit = |bytes: &mut Vec<u8>, draws: &mut Draws| {
            if draws.below(8) > 0 && bytes.len() > 8 {
                bytes.truncate(bytes.len() - 8);
                bytes.extend(xxh3_64(bytes).to_le_bytes());
            }
        };
        attempt_all(&at.sidecar(), attempts, fit, |_| {
            let dataset = IndexedDataset::open_on(&Disk, at, Verify::Index)?;
            let sidecar = dataset.sidecar().unwrap();
            assert!(sidecar.num_blocks() <= 2);
            // Changed sums are damage of the ids, as far as can be known.
            dataset.damaged_blocks(0..usize::MAX)?;
            Ok(())
        })
    });
    report(num_attempts, num_accepted);
}

/// With checksums and seals that fit, mostly, as for sidecars.
#[test]
fn a_mutated_journal_is_refused_or_fits_its_ids() {
    let num_attempts = figures::scaled(50_000, 2_500_000);
    let num_accepted = for_each_shape(&SHAPES[..3], num_attempts, |shape, at, attempts| {
        Disk.remove(&at.idx()).unwrap();
        let resume = || DatasetWriter::resume(at, shape.dtype, shape.has_modes, Notes::default());
        let mut writer = resume().unwrap();
        for document in shape.documents {
            shape.add(&mut writer, document);
            writer.flush().unwrap();
        }
        drop(writer);
        let bin_bytes = std::fs::metadata(at.new_bin()).unwrap().len();
        let bin = OpenOptions::new().write(true).open(at.new_bin()).unwrap();
        let fit = |bytes: &mut Vec<u8>, draws: &mut Draws| {
            if draws.below(8) > 0 {
                fit_journal(bytes);
            }
        };
        attempt_all(&at.journal(), attempts, fit, |_| {
            // What was not acknowledged is cut off.
            bin.set_len(bin_bytes).unwrap();
            match resume() {
                Ok(writer) => {
                    let held = writer.written().num_tokens * shape.dtype.item_bytes() as u64;
                    assert!(held <= bin_bytes, "{held} of {bin_bytes}");
                    Ok(())
                }
                // It says that it was begun for something else.
                Err(Error::InvalidArgument(detail) | Error::VocabularyMismatch(detail)) => {
                    Err(Error::corrupt(at.path(), detail))
                }
                Err(error) => Err(error),
            }
        })
    });
    report(num_attempts, num_accepted);
}

/// Computes the checksums of a journal anew, as far as its sizes make sense.
fn fit_journal(bytes: &mut [u8]) {
    let number = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u64::from_le_bytes(*field)).ok()
    };
    let header_bytes = number(bytes, 16).and_then(|notes| notes.checked_add(24));
    let (mut begin, mut end, mut seed) = (0, header_bytes, 0);
    while let Some(content_end) = end.filter(|end| end + 8 <= bytes.len()) {
        seed = xxh3_64_with_seed(&bytes[begin..content_end], seed);
        bytes[content_end..content_end + 8].copy_from_slice(&seed.to_le_bytes());
        begin = content_end + 8;
        if bytes[begin..].starts_with(b"ENDOFREC") && begin + 16 <= bytes.len() {
            let seal = xxh3_64_with_seed(b"ENDOFREC", begin as u64);
            bytes[begin + 8..begin + 16].copy_from_slice(&seal.to_le_bytes());
            begin += 16;
        }
        end = number(bytes, begin).and_then(|len| len.checked_add(begin + 8));
        end = end.filter(|&end| end < usize::MAX - 8);
    }
}

fn report(num_attempts: u64, num_accepted: u64) {
    assert!(
        num_accepted < num_attempts / 2,
        "{num_accepted} were accepted"
    );
    assert!(
        num_accepted > num_attempts / 100,
        "{num_accepted} were accepted"
    );
    let result = format!(
        "0 panics, memory at most {HELD_PER_BYTE} bytes per byte of the file + {} KiB",
        HELD_ANYHOW >> 10
    );
    figures::report(num_attempts, "mutations", Some(SEED), result);
}
