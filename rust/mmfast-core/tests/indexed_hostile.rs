//! Files that are not what they claim to be: each is refused, none is read wrongly, nothing panics.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use mmfast_core::Error;
use mmfast_core::indexed::{
    DatasetWriter, DocumentSource, Dtype, IndexedDataset, Prefix, Tokens, scan,
};
use mmfast_core::vfs::{Disk, Vfs};

/// Three documents, one of them empty, of five sequences, one of them empty; without a sidecar, so
/// that what is found out is found out from the pair alone.
fn write(folder: &Path, dtype: Dtype, has_modes: bool) -> Prefix {
    let at = Prefix::new(folder.join("a")).unwrap();
    let mut writer = DatasetWriter::create(&at, dtype, has_modes).unwrap();
    writer
        .add_documents(
            Tokens::I64(&[1, 2, 3, 4, 5, 6, 7, 8]),
            &[2, 3, 0, 2, 1],
            &[2, 0, 3],
            None,
        )
        .unwrap();
    writer.finish().unwrap();
    Disk.remove(&at.sidecar()).unwrap();
    at
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = Disk.create(path).unwrap();
    Disk.write(&mut file, bytes).unwrap();
}

fn read_everything(dataset: &IndexedDataset) {
    let found = scan(dataset, 0..dataset.num_sequences(), None).unwrap();
    assert_eq!(
        found.tokens_by_modality.iter().sum::<u64>(),
        dataset.num_tokens()
    );
    for document in 0..dataset.num_documents() {
        for sequence in dataset.document_sequences(document).unwrap() {
            dataset.sequence(sequence).unwrap();
            dataset.mode(sequence).unwrap();
        }
    }
    dataset.fingerprint();
}

#[test]
fn every_truncation_and_extension_is_refused() {
    for (dtype, has_modes) in [(Dtype::I32, true), (Dtype::U16, false), (Dtype::U8, true)] {
        let folder = tempfile::tempdir().unwrap();
        let at = write(folder.path(), dtype, has_modes);
        for path in [at.idx(), at.bin()] {
            let whole = std::fs::read(&path).unwrap();
            for len in (0..whole.len()).chain([whole.len() + 1, whole.len() + 8]) {
                let mut bytes = whole.clone();
                bytes.resize(len, 0);
                overwrite(&path, &bytes);
                let opened = IndexedDataset::open(&at);
                // Cutting off exactly the modes leaves a valid file without modes: the format has no
                // flag that says they should be there.
                if path == at.idx() && has_modes && len + 5 == whole.len() {
                    assert!(!opened.unwrap().has_modes());
                } else {
                    assert!(
                        matches!(opened, Err(Error::Corrupt { .. })),
                        "{path:?} {len}: {opened:?}"
                    );
                }
            }
            overwrite(&path, &whole);
        }
        read_everything(&IndexedDataset::open(&at).unwrap());
    }
}

#[test]
fn every_flipped_bit_of_an_index_is_refused_or_read_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::U16, true);
    let whole = std::fs::read(at.idx()).unwrap();
    let mut num_accepted = 0;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        overwrite(&at.idx(), &bytes);
        match IndexedDataset::open(&at) {
            Ok(dataset) => {
                read_everything(&dataset);
                num_accepted += 1;
            }
            Err(Error::Corrupt { .. } | Error::UnsupportedFormat { .. }) => {}
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
    // What may pass: the 40 bits of the modes, and boundaries that move between documents.
    assert!(num_accepted < 50, "{num_accepted} were accepted");
}

/// Offsets in the index of `write`: 5 sequences, 4 document indices.
const LENGTHS: usize = 34;
const POINTERS: usize = LENGTHS + 5 * 4;
const DOCUMENTS: usize = POINTERS + 5 * 8;

#[test]
fn the_error_names_the_entry_that_is_wrong() {
    let patches: [(usize, &[u8], &str); 10] = [
        (0, b"X", "magic"),
        (9, &[2], "version 2"),
        (17, &[9], "dtype code 9"),
        (17, &[4], "sequence 1 is said to begin at byte 4"),
        (LENGTHS + 4, &[0xff; 4], "sequence 1 has the length -1"),
        (LENGTHS + 16, &[2], "its .idx announces 9 ids of uint16"),
        (POINTERS + 8, &[0xff; 8], "begin at byte -1 of .bin"),
        (
            DOCUMENTS,
            &[1],
            "document 0 is said to begin at sequence 1, not 0",
        ),
        (
            DOCUMENTS + 8,
            &[3],
            "document 1 is said to end at sequence 2, before",
        ),
        (DOCUMENTS + 24, &[6], "the documents end at sequence 6 of 5"),
    ];
    for (offset, bytes, expected) in patches {
        let folder = tempfile::tempdir().unwrap();
        let at = write(folder.path(), Dtype::U16, false);
        let mut idx = std::fs::read(at.idx()).unwrap();
        idx[offset..offset + bytes.len()].copy_from_slice(bytes);
        overwrite(&at.idx(), &idx);
        let text = IndexedDataset::open(&at).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn indices_past_the_end_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I16, true);
    let dataset = IndexedDataset::open(&at).unwrap();
    for sequence in [5, u64::MAX] {
        assert!(dataset.sequence_length(sequence).is_err());
        assert!(dataset.sequence(sequence).is_err());
        assert!(dataset.mode(sequence).is_err());
        assert!(dataset.ids(5..sequence.saturating_add(1)).is_err());
        let run = sequence..sequence.saturating_add(1);
        assert!(dataset.read_into(run, 0, &mut [0; 2]).is_err());
    }
    for document in [3, u64::MAX] {
        let found = dataset.document_sequences(document);
        assert!(
            matches!(found, Err(Error::IndexOutOfRange { len: 3, .. })),
            "{found:?}"
        );
    }
}

#[test]
fn an_empty_dataset_opens() {
    let folder = tempfile::tempdir().unwrap();
    let at = Prefix::new(folder.path().join("a")).unwrap();
    let writer = DatasetWriter::create(&at, Dtype::I32, true).unwrap();
    writer.finish().unwrap();
    let dataset = IndexedDataset::open(&at).unwrap();
    assert_eq!(
        (
            dataset.num_documents(),
            dataset.num_sequences(),
            dataset.num_tokens()
        ),
        (0, 0, 0)
    );
    assert!(dataset.tokens().unwrap().is_empty());
    read_everything(&dataset);
}
