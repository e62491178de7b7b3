//! Checksums: damage is named with its place; merges keep them; what is not asked for is not checked.
//! That every changed byte is found is tested in `reliability/corruption.rs`.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::ops::Range;
use std::path::Path;

use mmfast_core::indexed::{
    BLOCK_BYTES, DatasetWriter, DocumentSource, Dtype, IndexedDataset, Notes, Prefix, Tokens,
    Verify, merge,
};
use mmfast_core::vfs::{Disk, Vfs};
use mmfast_core::{Error, Result};

const IDS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / 4;

fn prefix(folder: &Path, name: &str) -> Prefix {
    Prefix::new(folder.join(name)).unwrap()
}

/// Documents of one sequence of `length` ids each, counting up from `first`.
fn write(at: &Prefix, first: i64, lengths: &[u32], notes: Notes) {
    let num_tokens: u32 = lengths.iter().sum();
    let ids: Vec<_> = (first..first + i64::from(num_tokens)).collect();
    let mut writer = DatasetWriter::create(at, Dtype::I32, true).unwrap();
    writer.set_notes(notes);
    let counts = vec![1; lengths.len()];
    writer
        .add_documents(Tokens::I64(&ids), lengths, &counts, None)
        .unwrap();
    writer.finish().unwrap();
}

fn open(at: &Prefix, level: Verify) -> Result<IndexedDataset> {
    IndexedDataset::open_on(&Disk, at, level)
}

fn corrupt_text(result: Result<impl Sized>) -> String {
    match result {
        Err(error @ Error::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("not corrupt: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

/// Changes one byte in place, and back when dropped.
struct Flipped {
    path: std::path::PathBuf,
    at: usize,
    before: u8,
}

impl Flipped {
    fn new(path: &Path, at: usize, change: u8) -> Self {
        let mut byte = [0];
        let file = Disk.open(path).unwrap();
        Disk.read_at(&file, at as u64, &mut byte).unwrap();
        let flipped = Self {
            path: path.to_path_buf(),
            at,
            before: byte[0],
        };
        flipped.overwrite(byte[0] ^ change);
        flipped
    }

    fn overwrite(&self, byte: u8) {
        let mut file = std::fs::OpenOptions::new();
        let file = file.write(true).open(&self.path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte], self.at as u64).unwrap();
    }
}

impl Drop for Flipped {
    fn drop(&mut self) {
        self.overwrite(self.before);
    }
}

#[test]
fn a_damaged_block_is_named_with_the_documents_it_hits_and_spares_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    // Blocks of 2^18 ids: documents 0-2 | 2-4 | 4-5, 1000 ids into the third.
    let half = u32::try_from(IDS_PER_BLOCK / 2).unwrap();
    write(&at, 0, &[half, 5, half, half, half, 995], Notes::default());
    let len = usize::try_from(BLOCK_BYTES).unwrap();
    let expected: [(usize, u64, Range<u64>, Range<u64>); 4] = [
        (0, 0, 0..1 << 20, 0..3),
        (len - 1, 0, 0..1 << 20, 0..3),
        (len, 1, 1 << 20..2 << 20, 2..5),
        (2 * len + 3_999, 2, 2 << 20..(2 << 20) + 4_000, 4..6),
    ];
    for (byte, block, bytes, documents) in expected {
        let _flipped = Flipped::new(&at.bin(), byte, 4);
        let dataset = open(&at, Verify::Index).unwrap();
        let damaged = dataset.damaged_blocks(0..usize::MAX).unwrap();
        assert_eq!(damaged.len(), 1);
        assert_eq!(
            (damaged[0].block, &damaged[0].bytes, &damaged[0].documents),
            (block, &bytes, &documents)
        );
        assert!(corrupt_text(dataset.verify(Verify::Full)).contains(&format!("block {block} ")));
        dataset.verify(Verify::Index).unwrap();

        let lazy = open(&at, Verify::Lazy).unwrap();
        for document in 0..lazy.num_documents() {
            let read = lazy.sequence(document);
            assert_eq!(
                read.is_err(),
                documents.contains(&document),
                "{document}: {read:?}"
            );
            // Damage is reported every time, not only at the first touch.
            assert_eq!(lazy.sequence(document).is_err(), read.is_err());
        }
        assert!(corrupt_text(lazy.tokens()).contains(&format!("block {block} ")));
    }
    let lazy = open(&at, Verify::Lazy).unwrap();
    lazy.tokens().unwrap();
}

#[test]
fn a_pair_without_sidecar_is_read_but_not_said_to_be_verified() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    write(&at, 0, &[3, 4], Notes::default());
    Disk.remove(&at.sidecar()).unwrap();
    for level in [Verify::None, Verify::Index] {
        let dataset = open(&at, level).unwrap();
        assert!(dataset.sidecar().is_none());
        assert_eq!(dataset.num_tokens(), 7);
    }
    for level in [Verify::Lazy, Verify::Full] {
        let error = open(&at, level).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
    // As the error advises.
    merge(&at, std::slice::from_ref(&at)).unwrap();
    open(&at, Verify::Full).unwrap();
}

#[test]
fn a_sidecar_of_other_files_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (prefix(folder.path(), "a"), prefix(folder.path(), "b"));
    write(&a, 0, &[3, 4], Notes::default());
    for lengths in [&[4, 3][..], &[3], &[3, 4, 0]] {
        write(&b, 0, lengths, Notes::default());
        std::fs::copy(b.sidecar(), a.sidecar()).unwrap();
        let text = corrupt_text(open(&a, Verify::Index));
        assert!(text.contains("does not belong"), "{text}");
        open(&a, Verify::None).unwrap();
    }
}

#[test]
fn without_verification_a_wrong_index_is_an_error_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(folder.path(), "a");
    write(&at, 0, &[3, 4, 5], Notes::default());
    let idx = std::fs::read(at.idx()).unwrap();
    for byte in 34..idx.len() {
        for change in [1, 0x80, 0xff] {
            let _flipped = Flipped::new(&at.idx(), byte, change);
            let Ok(dataset) = open(&at, Verify::None) else {
                continue;
            };
            for i in 0..3 {
                let _ = (dataset.sequence(i).is_ok(), dataset.token_range(i).is_ok());
                if let Ok(sequences) = dataset.document_sequences(i) {
                    assert!(sequences.start <= sequences.end && sequences.end <= 3);
                }
            }
        }
    }
}

#[test]
fn a_merge_keeps_the_checksums_of_its_parts_without_reading_them() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| prefix(folder.path(), name);
    // Parts that end inside, on and beyond a block.
    let block = u32::try_from(IDS_PER_BLOCK).unwrap();
    let lengths = [&[100, 200][..], &[block], &[block + 7, 1], &[50]];
    let mut first = 0;
    for (i, lengths) in lengths.iter().enumerate() {
        write(&name(&i.to_string()), first, lengths, Notes::default());
        first += lengths.iter().map(|&n| i64::from(n)).sum::<i64>();
    }
    write(&name("whole"), 0, &lengths.concat(), Notes::default());
    let parts = [0, 1, 2, 3].map(|i| name(&i.to_string()));
    merge(&name("merged"), &parts).unwrap();
    merge(&name("left"), &parts[..2]).unwrap();
    merge(&name("right"), &parts[2..]).unwrap();
    merge(&name("nested"), &[name("left"), name("right")]).unwrap();
    let mut writer = DatasetWriter::create(&name("added"), Dtype::I32, true).unwrap();
    for part in &parts {
        writer
            .add_dataset(&open(part, Verify::Index).unwrap())
            .unwrap();
    }
    writer.finish().unwrap();
    let fingerprint = |of: &str| {
        let dataset = open(&name(of), Verify::Full).unwrap();
        dataset.sidecar().unwrap().fingerprint
    };
    for of in ["merged", "nested", "added"] {
        assert_eq!(fingerprint(of), fingerprint("whole"), "{of}");
    }
    let notes = |of: &str| {
        open(&name(of), Verify::Index)
            .unwrap()
            .sidecar()
            .unwrap()
            .notes
            .clone()
    };
    assert_eq!(notes("nested"), notes("merged"));
    assert_eq!(notes("nested").provenance["merged"][3]["name"], "3");

    // Damage in a part is damage in what was merged from it: the sum was not made to fit.
    let _flipped = Flipped::new(&parts[1].bin(), 12_345, 1);
    merge(&name("damaged"), &parts).unwrap();
    let text = corrupt_text(open(&name("damaged"), Verify::Full));
    assert!(text.contains("document 2"), "{text}");
}

#[test]
fn parts_of_different_vocabularies_are_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| prefix(folder.path(), name);
    let of = |vocabulary: &str| Notes::new(Some(vocabulary.into()), None).unwrap();
    write(&name("a"), 0, &[3], of("x"));
    write(&name("b"), 0, &[3], of("x"));
    write(&name("c"), 0, &[3], of("y"));
    write(&name("unknown"), 0, &[3], Notes::default());
    let fingerprint_of_merge = |parts: &[&str]| {
        let parts: Vec<_> = parts.iter().map(|part| name(part)).collect();
        merge(&name("out"), &parts)?;
        let merged = open(&name("out"), Verify::Full)?;
        Ok(merged
            .sidecar()
            .unwrap()
            .notes
            .vocabulary_fingerprint
            .clone())
    };
    assert_eq!(
        fingerprint_of_merge(&["a", "b"]).unwrap().as_deref(),
        Some("x")
    );
    assert_eq!(fingerprint_of_merge(&["a", "unknown"]).unwrap(), None);
    let refused = fingerprint_of_merge(&["a", "c"]);
    assert!(
        matches!(refused, Err(Error::VocabularyMismatch(_))),
        "{refused:?}"
    );
}
