//! What is written is read back, for every dtype, and merging is the same as writing in a row.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "reliability/figures.rs"]
mod figures;

use std::path::Path;

use mmfast_core::Error;
use mmfast_core::indexed::{
    DatasetWriter, DocumentSource, Dtype, IndexedDataset, Notes, Prefix, Tokens, merge, scan,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// Documents made of (ids, mode) sequences.
type Documents = Vec<Vec<(Vec<i64>, u8)>>;

const ID_DTYPES: [Dtype; 6] = [
    Dtype::U8,
    Dtype::I8,
    Dtype::I16,
    Dtype::I32,
    Dtype::I64,
    Dtype::U16,
];

fn prefix(folder: &Path, name: &str) -> Prefix {
    Prefix::new(folder.join(name)).unwrap()
}

fn write(at: &Prefix, dtype: Dtype, has_modes: bool, documents: &Documents) {
    let mut writer = DatasetWriter::create(at, dtype, has_modes).unwrap();
    for document in documents {
        add(&mut writer, document, has_modes);
    }
    writer.finish().unwrap();
}

fn add(writer: &mut DatasetWriter, document: &[(Vec<i64>, u8)], has_modes: bool) {
    for (ids, mode) in document {
        let mode = if has_modes { *mode } else { 0 };
        writer.add_sequence(Tokens::I64(ids), mode).unwrap();
    }
    writer.end_document();
}

/// In memory where the system has a place for that: nothing here needs to be durable.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn read(at: &Prefix) -> Documents {
    let dataset = IndexedDataset::open(at).unwrap();
    let mut documents = Documents::new();
    for document in 0..dataset.num_documents() {
        let mut sequences = Vec::new();
        for sequence in dataset.document_sequences(document).unwrap() {
            let ids = dataset.ids(sequence..sequence + 1).unwrap();
            assert_eq!(
                dataset.sequence_length(sequence).unwrap() as usize,
                ids.len()
            );
            assert_eq!(dataset.document_of(sequence), document);
            sequences.push((ids, dataset.mode(sequence).unwrap()));
        }
        documents.push(sequences);
    }
    documents
}

fn file_bytes(at: &Prefix) -> (Vec<u8>, Vec<u8>) {
    (
        std::fs::read(at.bin()).unwrap(),
        std::fs::read(at.idx()).unwrap(),
    )
}

/// The files as the format's description says, written in the plainest way.
fn described_bytes(dtype: Dtype, has_modes: bool, documents: &Documents) -> (Vec<u8>, Vec<u8>) {
    let item_bytes = dtype.item_bytes();
    let sequences: Vec<_> = documents.iter().flatten().collect();
    let mut bin = Vec::new();
    let mut idx = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0".to_vec();
    idx.push(dtype as u8);
    idx.extend((sequences.len() as u64).to_le_bytes());
    idx.extend((documents.len() as u64 + 1).to_le_bytes());
    for (ids, _) in &sequences {
        idx.extend(i32::try_from(ids.len()).unwrap().to_le_bytes());
    }
    for (ids, _) in &sequences {
        idx.extend((bin.len() as u64).to_le_bytes());
        for id in ids {
            bin.extend(id.to_le_bytes().iter().take(item_bytes));
        }
    }
    let mut boundary = 0_u64;
    idx.extend(boundary.to_le_bytes());
    for document in documents {
        boundary += document.len() as u64;
        idx.extend(boundary.to_le_bytes());
    }
    if has_modes {
        idx.extend(sequences.iter().map(|(_, mode)| *mode));
    }
    (bin, idx)
}

fn arbitrary_documents(dtype: Dtype) -> impl Strategy<Value = Documents> {
    let range = dtype.id_range().unwrap();
    let edge = prop_oneof![Just(*range.start()), Just(*range.end()), range.clone()];
    let sequence = (proptest::collection::vec(edge, 0..9), any::<u8>());
    let document = proptest::collection::vec(sequence, 0..4);
    proptest::collection::vec(document, 0..8)
}

fn arbitrary_dataset() -> impl Strategy<Value = (Dtype, bool, Documents)> {
    (proptest::sample::select(&ID_DTYPES[..]), any::<bool>()).prop_flat_map(|(dtype, has_modes)| {
        (
            Just(dtype),
            Just(has_modes),
            arbitrary_documents(dtype).prop_map(move |mut documents| {
                if !has_modes {
                    for (_, mode) in documents.iter_mut().flatten() {
                        *mode = 0;
                    }
                }
                documents
            }),
        )
    })
}

/// Tries a property on many random datasets, the same ones every time.
fn for_all<S: Strategy>(strategy: &S, property: impl Fn(S::Value)) {
    let num_cases = figures::scaled(48, 10_000);
    let config = ProptestConfig {
        cases: u32::try_from(num_cases).unwrap(),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let draws = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, draws);
    let run = runner.run(strategy, |value| {
        property(value);
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    figures::report(num_cases, "random datasets", None, "no exception");
}

#[test]
fn what_is_written_is_read_back() {
    for_all(&arbitrary_dataset(), |(dtype, has_modes, documents)| {
        let folder = folder();
        let (one, batch) = (prefix(folder.path(), "one"), prefix(folder.path(), "batch"));
        write(&one, dtype, has_modes, &documents);
        assert_eq!(
            file_bytes(&one),
            described_bytes(dtype, has_modes, &documents)
        );
        assert_eq!(read(&one), documents);

        // All at once, the same.
        let sequences: Vec<_> = documents.iter().flatten().cloned().collect();
        let ids: Vec<i64> = sequences.iter().flat_map(|(ids, _)| ids.clone()).collect();
        let length = |(ids, _): &(Vec<i64>, u8)| u32::try_from(ids.len()).unwrap();
        let lengths: Vec<u32> = sequences.iter().map(length).collect();
        let counts: Vec<u64> = documents.iter().map(|d| d.len() as u64).collect();
        let modes: Vec<u8> = sequences.iter().map(|(_, mode)| *mode).collect();
        let mut writer = DatasetWriter::create(&batch, dtype, has_modes).unwrap();
        writer
            .add_documents(Tokens::I64(&ids), &lengths, &counts, Some(&modes))
            .unwrap();
        writer.finish().unwrap();
        assert_eq!(file_bytes(&batch), file_bytes(&one));
    });
}

#[test]
fn merging_is_associative_and_equals_writing_in_a_row() {
    let strategy = (arbitrary_documents(Dtype::U16), 0..9_usize, 0..9_usize);
    for_all(&strategy, |(documents, a, b)| {
        let folder = folder();
        let name = |name: &str| prefix(folder.path(), name);
        let (a, b) = (a.min(b).min(documents.len()), a.max(b).min(documents.len()));
        let whole = name("whole");
        write(&whole, Dtype::U16, true, &documents);
        for (part, range) in [("p", 0..a), ("q", a..b), ("r", b..documents.len())] {
            write(&name(part), Dtype::U16, true, &documents[range].to_vec());
        }
        merge(&name("pq"), &[name("p"), name("q")]).unwrap();
        merge(&name("pq+r"), &[name("pq"), name("r")]).unwrap();
        merge(&name("qr"), &[name("q"), name("r")]).unwrap();
        merge(&name("p+qr"), &[name("p"), name("qr")]).unwrap();
        merge(&name("pqr"), &[name("p"), name("q"), name("r")]).unwrap();
        // A merge all of whose parts are empty cannot know that they were multimodal: same bytes.
        for merged in ["pq+r", "p+qr", "pqr"] {
            assert_eq!(file_bytes(&name(merged)), file_bytes(&whole));
        }
        let mut writer = DatasetWriter::create(&name("added"), Dtype::U16, true).unwrap();
        for part in ["p", "q", "r"] {
            let part = IndexedDataset::open(&name(part)).unwrap();
            writer.add_dataset(&part).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(file_bytes(&name("added")), file_bytes(&whole));
    });
}

/// A writer that is given up and gone on with wherever it is, flushed or not before.
#[test]
fn a_dataset_written_with_interruptions_equals_one_written_in_a_row() {
    let interruptions = proptest::collection::vec((0..9_usize, any::<bool>()), 0..5);
    let strategy = (arbitrary_dataset(), interruptions);
    for_all(
        &strategy,
        |((dtype, has_modes, documents), interruptions)| {
            let folder = folder();
            let (whole, broken) = (prefix(folder.path(), "a"), prefix(folder.path(), "b"));
            write(&whole, dtype, has_modes, &documents);
            let resume =
                || DatasetWriter::resume(&broken, dtype, has_modes, Notes::default()).unwrap();
            let mut acknowledged = 0;
            for (num_added, is_flushed) in interruptions {
                let mut writer = resume();
                let first = usize::try_from(writer.written().num_documents).unwrap();
                assert_eq!(first, acknowledged);
                for document in documents.iter().skip(first).take(num_added) {
                    add(&mut writer, document, has_modes);
                }
                if is_flushed {
                    acknowledged = usize::try_from(writer.flush().unwrap().num_documents).unwrap();
                }
            }
            let mut writer = resume();
            for document in documents.iter().skip(acknowledged) {
                add(&mut writer, document, has_modes);
            }
            writer.finish().unwrap();
            assert_eq!(file_bytes(&broken), file_bytes(&whole));
            let sidecar = |at: &Prefix| std::fs::read(at.sidecar()).unwrap();
            assert_eq!(sidecar(&broken), sidecar(&whole));
        },
    );
}

#[test]
fn float_datasets_keep_their_bits() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "f");
    let values = [1.5_f32, -0.0, f32::NAN, f32::INFINITY];
    let mut writer = DatasetWriter::create(&at, Dtype::F32, false).unwrap();
    writer.add_sequence(Tokens::F32(&values), 0).unwrap();
    writer.end_document();
    assert!(writer.add_sequence(Tokens::I64(&[1]), 0).is_err());
    assert!(writer.add_sequence(Tokens::F64(&[1.0]), 0).is_err());
    writer.finish().unwrap();
    let dataset = IndexedDataset::open(&at).unwrap();
    let Tokens::F32(found) = dataset.sequence(0).unwrap() else {
        panic!("not float32");
    };
    assert!(
        found
            .iter()
            .zip(&values)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    let as_ids = dataset.ids(0..1).unwrap_err();
    assert!(
        as_ids.to_string().contains("float32 values, not token ids"),
        "{as_ids}"
    );
}

#[test]
fn an_id_outside_the_dtype_is_named_and_nothing_of_its_call_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    let mut writer = DatasetWriter::create(&at, Dtype::U16, false).unwrap();
    writer.add_sequence(Tokens::I64(&[1, 2, 3]), 0).unwrap();
    let error = writer
        .add_sequence(Tokens::I64(&[4, 65_536]), 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TokenOutOfRange {
                token: 65_536,
                document: 0,
                position: 4,
                dtype: "uint16"
            }
        ),
        "{error}"
    );
    writer.end_document();
    // Documents of 2, 0 and 2 sequences; the bad id is the second of the last sequence.
    let error = writer
        .add_documents(
            Tokens::I64(&[5, 6, 7, 8, 9, -1]),
            &[1, 1, 2, 2],
            &[2, 0, 2],
            None,
        )
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TokenOutOfRange {
                token: -1,
                document: 3,
                position: 3,
                ..
            }
        ),
        "{error}"
    );
    writer.finish().unwrap();
    assert_eq!(read(&at), [[(vec![1, 2, 3], 0)]]);
}

#[test]
fn calls_that_do_not_add_up_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    let mut writer = DatasetWriter::create(&at, Dtype::I32, false).unwrap();
    for (lengths, counts, modes) in [
        (&[2_u32][..], &[1_u64][..], None),
        (&[3], &[2], None),
        (&[1, 2], &[u64::MAX, 3], None),
        (&[1, 2], &[2], Some(&[0_u8][..])),
        (&[1, 2], &[2], Some(&[0, 1])),
        (&[u32::MAX], &[1], None),
    ] {
        let refused = writer.add_documents(Tokens::I32(&[1, 2, 3]), lengths, counts, modes);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{lengths:?}"
        );
    }
    writer.add_sequence(Tokens::I32(&[1]), 0).unwrap();
    let unfinished = writer.finish().unwrap_err();
    assert!(
        unfinished.to_string().contains("end_document"),
        "{unfinished}"
    );
    assert!(!at.bin().exists() && !at.new_bin().exists() && !at.lock().exists());
}

#[test]
fn datasets_that_differ_in_kind_are_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| prefix(folder.path(), name);
    let documents = vec![vec![(vec![1], 0)]];
    write(&name("narrow"), Dtype::U16, false, &documents);
    write(&name("wide"), Dtype::I32, false, &documents);
    write(&name("modes"), Dtype::U16, true, &documents);
    write(&name("empty"), Dtype::U16, true, &vec![]);
    for other in ["wide", "modes"] {
        let refused = merge(&name("out"), &[name("narrow"), name(other)]);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{refused:?}"
        );
    }
    assert!(merge(&name("out"), &[]).is_err());
    assert!(!name("out").idx().exists());
    for other in ["narrow", "modes"] {
        merge(&name("out"), &[name("empty"), name(other)]).unwrap();
        assert_eq!(file_bytes(&name("out")), file_bytes(&name(other)));
    }
}

#[test]
fn a_dataset_may_be_merged_into_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (prefix(folder.path(), "a"), prefix(folder.path(), "b"));
    let documents = vec![vec![(vec![1, 2], 0)], vec![(vec![3], 0)]];
    write(&a, Dtype::I32, false, &documents);
    write(&b, Dtype::I32, false, &documents);
    merge(&a, &[a.clone(), b]).unwrap();
    assert_eq!(read(&a), [documents.clone(), documents].concat());
}

#[test]
fn two_writers_never_share_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    let first = DatasetWriter::create(&at, Dtype::I32, false).unwrap();
    let second = DatasetWriter::create(&at, Dtype::I32, false);
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    drop(first);
    DatasetWriter::create(&at, Dtype::I32, false).unwrap();
}

#[test]
fn a_scan_counts_by_modality_and_names_an_id_that_is_not_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    let documents = vec![vec![(vec![3, 9], 0), (vec![100, 101, 102], 0x41)], vec![]];
    write(&at, Dtype::I32, true, &documents);
    let dataset = IndexedDataset::open(&at).unwrap();
    let found = scan(&dataset, 0..2, Some(&(0..103))).unwrap();
    assert_eq!(found.id_range, Some((3, 102)));
    assert_eq!(found.sequences_by_modality[..3], [1, 1, 0]);
    assert_eq!(found.tokens_by_modality[..3], [2, 3, 0]);
    let error = scan(&dataset, 0..2, Some(&(0..102)))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("id 102 at position 2 of sequence 1 (document 0)"),
        "{error}"
    );
}

#[test]
fn fingerprints_tell_datasets_apart() {
    let folder = tempfile::tempdir().unwrap();
    let fingerprint = |name: &str, documents: &Documents| {
        let at = prefix(folder.path(), name);
        write(&at, Dtype::I32, false, documents);
        IndexedDataset::open(&at).unwrap().fingerprint()
    };
    let first = fingerprint("a", &vec![vec![(vec![1, 2], 0)]]);
    assert_eq!(first, fingerprint("b", &vec![vec![(vec![1, 2], 0)]]));
    assert_ne!(first, fingerprint("c", &vec![vec![(vec![1, 3], 0)]]));
    assert_ne!(
        first,
        fingerprint("d", &vec![vec![(vec![1], 0), (vec![2], 0)]])
    );
    let long = |last| vec![vec![(vec![7; 200_000], 0), (vec![last], 0)]];
    assert_ne!(fingerprint("e", &long(1)), fingerprint("f", &long(2)));
}

#[test]
fn a_run_of_ids_begins_and_ends_anywhere_in_a_range_of_sequences() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in ID_DTYPES {
        let at = prefix(folder.path(), dtype.name());
        let sequences = [vec![3, 4, 5], vec![], vec![6, 7], vec![8]];
        let document = sequences.iter().map(|ids| (ids.clone(), 0)).collect();
        write(&at, dtype, false, &vec![document]);
        let dataset = IndexedDataset::open(&at).unwrap();
        for (first, end) in (0..=4).flat_map(|end| (0..=end).map(move |first| (first, end))) {
            let all = sequences[first..end].concat();
            let run = first as u64..end as u64;
            assert_eq!(dataset.ids(run.clone()).unwrap(), all);
            for skip in 0..=all.len() {
                for num_ids in 0..=all.len() - skip {
                    let mut out = vec![-1; num_ids];
                    dataset
                        .read_into(run.clone(), skip as u64, &mut out)
                        .unwrap();
                    assert_eq!(out, all[skip..skip + num_ids]);
                }
                let mut out = vec![-1; all.len() - skip + 1];
                for skip in [skip as u64, u64::MAX] {
                    let error = dataset.read_into(run.clone(), skip, &mut out).unwrap_err();
                    let text = format!("hold {} ids; {}", all.len(), out.len());
                    assert!(error.to_string().contains(&text), "{error}");
                }
            }
        }
    }
}
