//! Datasets reached by reads: the same ids as through a map, and a file that shrinks is an error.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;
use std::sync::Arc;

use mmfast_core::Error;
use mmfast_core::indexed::{
    Access, BLOCK_BYTES, DatasetWriter, DocumentSource, Dtype, IndexedDataset, Prefix, Tokens,
    Verify, scan,
};
use mmfast_core::vfs::faults::{Fault, FaultyDisk};
use mmfast_core::vfs::{Disk, Vfs};

fn write(
    folder: &Path,
    dtype: Dtype,
    ids: &[i64],
    lengths: &[u32],
    per_document: &[u64],
) -> Prefix {
    let at = Prefix::new(folder.join("a")).unwrap();
    let mut writer = DatasetWriter::create(&at, dtype, false).unwrap();
    writer
        .add_documents(Tokens::I64(ids), lengths, per_document, None)
        .unwrap();
    writer.finish().unwrap();
    at
}

fn open(at: &Prefix, level: Verify) -> mmfast_core::Result<IndexedDataset> {
    let disk: Arc<dyn Vfs> = Arc::new(Disk);
    IndexedDataset::open_with(&disk, at, level, Access::Pread)
}

#[test]
fn what_is_read_is_what_is_mapped() {
    let ids = [1, 2, 3, 4, 5, 6, 7, 8];
    for dtype in Dtype::ALL
        .into_iter()
        .filter(|dtype| dtype.id_range().is_some())
    {
        let folder = tempfile::tempdir().unwrap();
        let at = write(folder.path(), dtype, &ids, &[2, 3, 0, 2, 1], &[2, 0, 3]);
        let (mapped, read) = (
            IndexedDataset::open(&at).unwrap(),
            open(&at, Verify::Index).unwrap(),
        );
        assert!(mapped.access().is_mapped && !read.access().is_mapped);
        assert_eq!(mapped.fingerprint(), read.fingerprint());
        let everything = 0..mapped.num_sequences();
        assert_eq!(read.ids(everything.clone()).unwrap(), ids);
        assert_eq!(
            scan(&read, everything.clone(), None).unwrap(),
            scan(&mapped, everything, None).unwrap()
        );
        let mut out = [0_i64; 3];
        read.read_into(0..2, 1, &mut out).unwrap();
        assert_eq!(out, [2, 3, 4]);
        let mut narrow = [0_u8; 3];
        let mut wide = [0_i64; 3];
        for dataset in [&mapped, &read] {
            dataset.read(4, &mut narrow).unwrap();
            dataset.read(5, &mut wide).unwrap();
            assert_eq!((narrow, wide), ([5, 6, 7], [6, 7, 8]));
            assert!(dataset.read(6, &mut narrow).is_err());
        }
        // There is no place in memory to look at.
        assert!(matches!(read.tokens(), Err(Error::InvalidArgument(_))));
        assert!(matches!(read.sequence(0), Err(Error::InvalidArgument(_))));
        read.verify(Verify::Full).unwrap();
    }
}

#[test]
fn an_id_that_does_not_fit_the_asked_type_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I32, &[1, 70_000], &[2], &[1]);
    let mut out = [0_u16; 2];
    let error = open(&at, Verify::Index)
        .unwrap()
        .read(0, &mut out)
        .unwrap_err();
    assert!(error.to_string().contains("not read as uint16"), "{error}");
    let mut floats = [0_f32; 2];
    assert!(
        open(&at, Verify::Index)
            .unwrap()
            .read(0, &mut floats)
            .is_err()
    );
}

/// megatron-core's reader without a map gives uninitialised memory here.
#[test]
fn a_short_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I32, &[1, 2, 3, 4], &[2, 2], &[1, 1]);
    let dataset = open(&at, Verify::Index).unwrap();
    // The index was read as a whole; the ids are read when they are asked for.
    Disk.remove(&at.idx()).unwrap();
    let bin = std::fs::read(at.bin()).unwrap();
    let mut file = Disk.create(&at.bin()).unwrap();
    Disk.write(&mut file, &bin[..10]).unwrap();
    assert_eq!(dataset.ids(0..1).unwrap(), [1, 2]);
    let error = dataset.ids(1..2).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("cut short"), "{error}");
}

#[test]
fn a_read_that_fails_is_an_error_and_the_next_one_may_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I32, &[1, 2, 3, 4], &[2, 2], &[1, 1]);
    let mut has_failed_while_reading = false;
    for fail_at in 1.. {
        let disk = Arc::new(FaultyDisk::new(Fault::Error, fail_at));
        let vfs: Arc<dyn Vfs> = Arc::clone(&disk) as Arc<dyn Vfs>;
        if let Ok(dataset) = IndexedDataset::open_with(&vfs, &at, Verify::Index, Access::Pread) {
            let (first, second) = (dataset.ids(0..1), dataset.ids(1..2));
            if first.is_err() {
                has_failed_while_reading = true;
                assert_eq!(second.unwrap(), [3, 4]);
            }
        }
        if !disk.has_fired() {
            break;
        }
    }
    assert!(has_failed_while_reading);
}

#[test]
fn blocks_are_verified_when_they_are_read() {
    let block_ids = BLOCK_BYTES / 4;
    let ids: Vec<i64> = (0..i64::from(block_ids) + 10).collect();
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I32, &ids, &[block_ids, 10], &[1, 1]);
    let mut bytes = std::fs::read(at.bin()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let mut file = Disk.create(&at.bin()).unwrap();
    Disk.write(&mut file, &bytes).unwrap();
    let dataset = open(&at, Verify::Lazy).unwrap();
    assert_eq!(dataset.ids(0..1).unwrap().len(), block_ids as usize);
    let error = dataset.ids(1..2).unwrap_err().to_string();
    assert!(error.contains("block 1"), "{error}");
    assert!(dataset.read(block_ids as usize, &mut [0_i32; 1]).is_err());
    assert_eq!(dataset.damaged_blocks(0..usize::MAX).unwrap().len(), 1);
    assert!(open(&at, Verify::Full).is_err());
}

#[test]
fn an_empty_dataset_is_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = write(folder.path(), Dtype::I32, &[], &[], &[]);
    let dataset = open(&at, Verify::Full).unwrap();
    assert_eq!(dataset.ids(0..0).unwrap(), [0_i64; 0]);
    assert_eq!(dataset.num_documents(), 0);
}
