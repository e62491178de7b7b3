//! Files as NeMo's older writer leaves them: read as they were meant, with a sentence on what was found.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use mmfast_core::Error;
use mmfast_core::indexed::{
    DocumentSource, Dtype, Header, IndexedDataset, Prefix, Tokens, Verify, merge,
};
use mmfast_core::vfs::{Disk, Vfs};

struct Pair<'a> {
    dtype: Dtype,
    lengths: &'a [i32],
    pointers: &'a [i64],
    boundaries: &'a [i64],
    bin: &'a [u8],
}

impl Pair<'_> {
    fn write(&self, at: &Prefix) {
        let header = Header {
            dtype: self.dtype,
            num_sequences: self.lengths.len() as u64,
            num_document_indices: self.boundaries.len() as u64,
        };
        let mut idx = header.encode();
        idx.extend(self.lengths.iter().flat_map(|v| v.to_le_bytes()));
        idx.extend(self.pointers.iter().flat_map(|v| v.to_le_bytes()));
        idx.extend(self.boundaries.iter().flat_map(|v| v.to_le_bytes()));
        overwrite(&at.idx(), &idx);
        overwrite(&at.bin(), self.bin);
    }
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = Disk.create(path).unwrap();
    Disk.write(&mut file, bytes).unwrap();
}

/// Opened with and without a look at every entry: both must read the same.
fn open(at: &Prefix) -> IndexedDataset {
    let quick = IndexedDataset::open_on(&Disk, at, Verify::None).unwrap();
    let whole = IndexedDataset::open(at).unwrap();
    assert_eq!(quick.findings(), whole.findings());
    assert_eq!(quick.dtype(), whole.dtype());
    assert_eq!(quick.num_tokens(), whole.num_tokens());
    quick.verify(Verify::Index).unwrap();
    whole
}

fn prefix(folder: &tempfile::TempDir) -> Prefix {
    Prefix::new(folder.path().join("a")).unwrap()
}

#[test]
fn code_7_is_float64_where_pointers_and_size_say_so() {
    let values = [1.5_f64, -2.0, 3.25];
    let bin: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for (lengths, pointers) in [
        (&[2, 1][..], &[0, 16][..]),
        // One sequence alone has no second pointer to tell by.
        (&[3], &[0]),
        (&[0, 3], &[0, 0]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = prefix(&folder);
        let boundaries = [0, i64::try_from(lengths.len()).unwrap()];
        let dtype = Dtype::F32;
        let pair = Pair {
            dtype,
            lengths,
            pointers,
            boundaries: &boundaries,
            bin: &bin,
        };
        pair.write(&at);
        let dataset = open(&at);
        assert_eq!(dataset.tokens().unwrap(), Tokens::F64(&values));
        let findings = dataset.findings();
        assert!(
            findings[0].contains("dtype code 7 means float64"),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 1);
    }
}

#[test]
fn code_7_stays_float32_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(&folder);
    let values = [1.5_f32, -2.0, 3.25];
    let bin: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let pair = Pair {
        dtype: Dtype::F32,
        lengths: &[2, 1],
        pointers: &[0, 8],
        boundaries: &[0, 1, 2],
        bin: &bin,
    };
    pair.write(&at);
    let dataset = open(&at);
    assert_eq!(dataset.tokens().unwrap(), Tokens::F32(&values));
    assert!(dataset.findings().is_empty());
    // Pointers of the one and a size of the other are neither.
    overwrite(&at.bin(), &[bin.as_slice(), &bin].concat());
    let refused = IndexedDataset::open(&at).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
}

#[test]
fn sequences_past_the_last_boundary_are_documents_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(&folder);
    let bin: Vec<u8> = (1..=6_u16).flat_map(u16::to_le_bytes).collect();
    for (boundaries, documents) in [
        (&[0][..], &[0..1, 1..2, 2..3, 3..4][..]),
        (&[0, 2], &[0..2, 2..3, 3..4]),
        (&[0, 0, 3], &[0..0, 0..3, 3..4]),
    ] {
        let pair = Pair {
            dtype: Dtype::U16,
            lengths: &[2, 1, 0, 3],
            pointers: &[0, 4, 6, 6],
            boundaries,
            bin: &bin,
        };
        pair.write(&at);
        let dataset = open(&at);
        let found = (0..dataset.num_documents()).map(|k| dataset.document_sequences(k).unwrap());
        assert_eq!(found.collect::<Vec<_>>(), documents);
        let past = dataset.document_sequences(documents.len() as u64);
        assert!(matches!(past, Err(Error::IndexOutOfRange { .. })));
        for (document, sequences) in (0..).zip(documents) {
            for sequence in sequences.clone() {
                assert_eq!(dataset.document_of(sequence), document);
            }
        }
        let ends = dataset.document_indices().skip(1).collect::<Vec<_>>();
        assert_eq!(
            ends,
            documents.iter().map(|range| range.end).collect::<Vec<_>>()
        );
        let findings = dataset.findings();
        assert!(findings[0].contains("merge_file_"), "{findings:?}");

        // Merged, it is a file as megatron-core writes them.
        let output = Prefix::new(folder.path().join("b")).unwrap();
        merge(&output, std::slice::from_ref(&at)).unwrap();
        let merged = IndexedDataset::open(&output).unwrap();
        assert!(merged.findings().is_empty());
        assert_eq!(merged.num_documents(), documents.len() as u64);
    }
}

#[test]
fn pointers_that_wrapped_at_32_bits_are_derived_from_the_lengths() {
    // 2^29 ids of 8 bytes are 2^32 bytes; the file is sparse.
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(&folder);
    let long = 1 << 28;
    let pair = Pair {
        dtype: Dtype::I64,
        lengths: &[long, 1, long, 2, 3],
        pointers: &[0, -(1 << 31), -(1 << 31) + 8, 8, 24],
        boundaries: &[0, 5],
        bin: &[],
    };
    pair.write(&at);
    let num_tokens = 2 * (1_u64 << 28) + 6;
    let bin = Disk.create(&at.bin()).unwrap();
    for (token, id) in [(1 << 28, 7_i64), (num_tokens - 5, 8), (num_tokens - 1, 9)] {
        Disk.write_at(&bin, token * 8, &id.to_le_bytes()).unwrap();
    }
    let dataset = open(&at);
    assert_eq!(dataset.num_tokens(), num_tokens);
    assert_eq!(dataset.sequence(1).unwrap(), Tokens::I64(&[7]));
    assert_eq!(dataset.sequence(3).unwrap(), Tokens::I64(&[8, 0]));
    assert_eq!(dataset.sequence(4).unwrap(), Tokens::I64(&[0, 0, 9]));
    let findings = dataset.findings();
    assert!(
        findings[0].contains("wrapped 1 times at 32 bits"),
        "{findings:?}"
    );
    // Without the agreement of the sizes the pointers are simply wrong.
    Disk.write_at(&bin, num_tokens * 8, &[0; 8]).unwrap();
    let refused = IndexedDataset::open(&at).unwrap_err().to_string();
    assert!(refused.contains("do not go together here"), "{refused}");
}

#[test]
fn what_megatron_core_writes_has_no_findings() {
    let folder = tempfile::tempdir().unwrap();
    let at = prefix(&folder);
    let pair = Pair {
        dtype: Dtype::I32,
        lengths: &[2, 0],
        pointers: &[0, 8],
        boundaries: &[0, 2, 2],
        bin: &[0; 8],
    };
    pair.write(&at);
    assert!(open(&at).findings().is_empty());
}
