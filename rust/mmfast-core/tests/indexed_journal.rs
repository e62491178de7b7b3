//! A journaled writer loses nothing that it acknowledged, whatever ends it, and the next one goes on
//! from there to the very files that an unbroken one would have written.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![expect(
    clippy::disallowed_methods,
    reason = "the files are damaged on purpose"
)]

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use mmfast_core::indexed::{
    DatasetWriter, Dtype, IndexedDataset, Notes, Prefix, Tokens, Verify, Written,
};
use mmfast_core::vfs::faults::{Fault, FaultyDisk};
use mmfast_core::vfs::{Disk, Vfs};
use mmfast_core::{Error, Result};

/// More calls than any of the jobs below makes.
const MANY_CALLS: u64 = 300;
/// Every document the producer of these tests has, as sequences.
const DOCUMENTS: [&[&[i64]]; 6] = [
    &[&[1, 2], &[3]],
    &[],
    &[&[4]],
    &[&[], &[5, 6, 7]],
    &[&[8], &[9], &[10]],
    &[&[11, 12]],
];

/// A folder of its own, in memory where there is such a place: what syncs do is not tested here.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn prefix(folder: &Path, name: &str) -> Prefix {
    Prefix::new(folder.join(name)).unwrap()
}

fn notes(vocabulary: Option<&str>) -> Notes {
    Notes::new(vocabulary.map(str::to_string), None).unwrap()
}

fn resume(vfs: Arc<dyn Vfs>, at: &Prefix) -> Result<DatasetWriter> {
    DatasetWriter::resume_on(vfs, at, Dtype::I32, true, notes(None))
}

fn add(writer: &mut DatasetWriter, document: &[&[i64]]) -> Result<()> {
    for (mode, ids) in (1..).zip(document) {
        writer.add_sequence(Tokens::I64(ids), mode)?;
    }
    writer.end_document();
    Ok(())
}

/// Writes all documents that are not there yet and flushes after every second one.
fn produce(vfs: Arc<dyn Vfs>, at: &Prefix, acknowledged: &Cell<u64>) -> Result<()> {
    let mut writer = resume(vfs, at)?;
    acknowledged.set(writer.written().num_documents.max(acknowledged.get()));
    let first = usize::try_from(writer.written().num_documents).unwrap();
    for (number, document) in DOCUMENTS.iter().enumerate().skip(first) {
        add(&mut writer, document)?;
        if number % 2 == 1 {
            acknowledged.set(writer.flush()?.num_documents);
        }
    }
    writer.finish()?;
    Ok(())
}

fn file_bytes(at: &Prefix) -> [Vec<u8>; 3] {
    [at.bin(), at.idx(), at.sidecar()].map(|path| fs::read(path).unwrap())
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The files of a writer that was never interrupted.
fn unbroken() -> &'static [Vec<u8>; 3] {
    static FILES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = folder();
        let at = prefix(folder.path(), "a");
        let mut writer = DatasetWriter::create(&at, Dtype::I32, true).unwrap();
        for document in DOCUMENTS {
            add(&mut writer, document).unwrap();
        }
        writer.finish().unwrap();
        file_bytes(&at)
    })
}

/// Checks what a producer left behind: all that was acknowledged is there, and one that is run again
/// completes it.
fn require_nothing_lost(at: &Prefix, acknowledged: u64, context: &str) {
    // Opening puts a publication in place that was cut short; then nothing is left to go on with.
    if IndexedDataset::open(at).is_err() {
        let writer = resume(Arc::new(Disk), at).unwrap_or_else(|e| panic!("{context}: {e}"));
        let found = writer.written().num_documents;
        assert!(
            found >= acknowledged,
            "{context}: {found} of {acknowledged}"
        );
        assert_eq!(writer.durable(), writer.written());
        drop(writer);
        let all = Cell::new(0);
        produce(Arc::new(Disk), at, &all).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    assert_eq!(&file_bytes(at), unbroken(), "{context}");
    IndexedDataset::open_on(&Disk, at, Verify::Full).unwrap();
    assert_eq!(
        files(at.path().parent().unwrap()),
        ["a.bin", "a.idx", "a.mmf"],
        "{context}"
    );
}

#[test]
fn whatever_call_fails_acknowledged_documents_come_back() {
    for fault in Fault::ALL {
        let mut num_calls = 0;
        for n in 1..MANY_CALLS {
            let folder = folder();
            let at = prefix(folder.path(), "a");
            let acknowledged = Cell::new(0);
            let disk = Arc::new(FaultyDisk::new(fault, n));
            let done = produce(Arc::<FaultyDisk>::clone(&disk), &at, &acknowledged);
            assert_eq!(
                done.is_err(),
                disk.has_fired(),
                "{fault:?} at {n}: {done:?}"
            );
            require_nothing_lost(&at, acknowledged.get(), &format!("{fault:?} at {n}"));
            if done.is_ok() {
                num_calls = n - 1;
                break;
            }
        }
        assert!(num_calls > 30, "only {num_calls} calls were tried");
    }
}

#[test]
fn a_crash_while_resuming_from_a_crash_loses_nothing_either() {
    for n in (1..MANY_CALLS).step_by(7) {
        let folder = folder();
        let at = prefix(folder.path(), "a");
        let acknowledged = Cell::new(0);
        let first = produce(
            Arc::new(FaultyDisk::new(Fault::Crash, n)),
            &at,
            &acknowledged,
        );
        if first.is_ok() {
            return;
        }
        for m in (1..MANY_CALLS).step_by(2) {
            let disk = Arc::new(FaultyDisk::new(Fault::Crash, m));
            let done = produce(Arc::<FaultyDisk>::clone(&disk), &at, &acknowledged);
            if done.is_ok() || IndexedDataset::open(&at).is_ok() {
                break;
            }
            let writer = resume(Arc::new(Disk), &at).unwrap();
            assert!(
                writer.written().num_documents >= acknowledged.get(),
                "{n} {m}"
            );
        }
        require_nothing_lost(&at, acknowledged.get(), &format!("crash at {n}"));
    }
    panic!("the job never got through");
}

/// Leaves four acknowledged documents, in two records, and one that is not.
fn killed_after_four(at: &Prefix) {
    let mut writer = resume(Arc::new(Disk), at).unwrap();
    for (number, document) in DOCUMENTS[..5].iter().enumerate() {
        add(&mut writer, document).unwrap();
        if number == 1 || number == 3 {
            writer.flush().unwrap();
        }
    }
}

#[test]
fn any_damage_to_a_journal_is_refused_or_without_consequence() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    killed_after_four(&at);
    let (journal, bin) = (
        fs::read(at.journal()).unwrap(),
        fs::read(at.new_bin()).unwrap(),
    );
    let mut num_refused = 0;
    for place in 0..journal.len() {
        let mut damaged = journal.clone();
        damaged[place] ^= 1 << (place % 8);
        fs::write(at.journal(), &damaged).unwrap();
        fs::write(at.new_bin(), &bin).unwrap();
        match resume(Arc::new(Disk), &at) {
            Ok(writer) => assert_eq!(writer.written().num_documents, 4, "byte {place}"),
            Err(Error::Corrupt { .. }) => {
                assert_eq!(fs::read(at.journal()).unwrap(), damaged);
                num_refused += 1;
            }
            Err(error) => panic!("byte {place}: {error}"),
        }
    }
    // Nothing hangs on the last seal alone.
    assert_eq!(num_refused, journal.len() - 16);
}

#[test]
fn a_journal_cut_anywhere_gives_whole_records_or_is_refused() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    killed_after_four(&at);
    let (journal, bin) = (
        fs::read(at.journal()).unwrap(),
        fs::read(at.new_bin()).unwrap(),
    );
    let mut seen = [false; 3];
    for length in 0..journal.len() {
        fs::write(at.journal(), &journal[..length]).unwrap();
        fs::write(at.new_bin(), &bin).unwrap();
        match resume(Arc::new(Disk), &at) {
            Ok(writer) => {
                let found = usize::try_from(writer.written().num_documents).unwrap();
                assert!([0, 2, 4].contains(&found), "{length}: {found}");
                seen[found / 2] = true;
                drop(writer);
                if length % 8 == 0 {
                    // What was cut off is not in the way of what comes next.
                    produce(Arc::new(Disk), &at, &Cell::new(0)).unwrap();
                    assert_eq!(&file_bytes(&at), unbroken(), "{length}");
                }
            }
            Err(Error::Corrupt { .. }) => assert!(!seen[0], "{length}"),
            Err(error) => panic!("{length}: {error}"),
        }
    }
    assert_eq!(seen, [true; 3]);
}

#[test]
fn ids_that_were_acknowledged_and_are_gone_are_named() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    killed_after_four(&at);
    let bin = fs::read(at.new_bin()).unwrap();
    // What a killed writer had put behind them is of no consequence.
    fs::write(at.new_bin(), [&bin[..], &[1, 2, 3]].concat()).unwrap();
    assert_eq!(
        resume(Arc::new(Disk), &at).unwrap().written().num_documents,
        4
    );
    fs::write(at.new_bin(), &bin[..27]).unwrap();
    let error = resume(Arc::new(Disk), &at).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("27 bytes, but 28"), "{error}");
    fs::remove_file(at.new_bin()).unwrap();
    let error = resume(Arc::new(Disk), &at).unwrap_err();
    assert!(error.to_string().contains("28 bytes"), "{error}");
    assert!(at.journal().exists());
}

#[test]
fn a_journal_of_something_else_is_refused_and_kept() {
    let folder = folder();
    let (at, other) = (prefix(folder.path(), "a"), prefix(folder.path(), "b"));
    killed_after_four(&at);
    let open = |at: &Prefix, dtype, has_modes, vocabulary| {
        DatasetWriter::resume(at, dtype, has_modes, notes(vocabulary)).unwrap_err()
    };
    let error = open(&at, Dtype::U16, true, None);
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("int32 with modes, not for uint16"),
        "{error}"
    );
    let error = open(&at, Dtype::I32, false, None);
    assert!(error.to_string().contains("int32 without modes"), "{error}");
    let error = open(&at, Dtype::I32, true, Some("v1"));
    assert!(matches!(error, Error::VocabularyMismatch(_)), "{error}");
    for (from, to) in [
        (at.journal(), other.journal()),
        (at.new_bin(), other.new_bin()),
    ] {
        fs::copy(from, to).unwrap();
    }
    let error = open(&other, Dtype::I32, true, None);
    assert!(
        error.to_string().contains("prefix \"a\", not for \"b\""),
        "{error}"
    );
    assert!(other.journal().exists());
    assert_eq!(
        resume(Arc::new(Disk), &at).unwrap().written().num_documents,
        4
    );
}

#[test]
fn a_flush_acknowledges_whole_documents_only() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    let mut writer = resume(Arc::new(Disk), &at).unwrap();
    assert_eq!(writer.durable(), Written::default());
    add(&mut writer, DOCUMENTS[0]).unwrap();
    assert_eq!(writer.durable(), Written::default());
    writer.add_sequence(Tokens::I64(&[77, 78]), 3).unwrap();
    let durable = writer.flush().unwrap();
    let expected = Written {
        num_documents: 1,
        num_sequences: 2,
        num_tokens: 3,
    };
    assert_eq!((durable, writer.durable()), (expected, expected));
    assert_eq!(writer.written().num_sequences, 3);
    drop(writer);
    assert_eq!(resume(Arc::new(Disk), &at).unwrap().written(), expected);
    produce(Arc::new(Disk), &at, &Cell::new(0)).unwrap();
    assert_eq!(&file_bytes(&at), unbroken());
}

#[test]
fn a_writer_without_a_journal_cannot_flush_and_begins_anew() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    killed_after_four(&at);
    let mut writer = DatasetWriter::create(&at, Dtype::I32, true).unwrap();
    assert!(!at.journal().exists());
    assert_eq!(writer.written(), Written::default());
    let error = writer.flush().unwrap_err().to_string();
    assert!(error.contains("resume=True"), "{error}");
    drop(writer);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_dropped_writer_keeps_its_journal_and_a_discarded_one_does_not() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    killed_after_four(&at);
    assert_eq!(files(folder.path()), ["a.bin.tmp", "a.journal"]);
    resume(Arc::new(Disk), &at).unwrap().discard().unwrap();
    assert!(files(folder.path()).is_empty());
    assert_eq!(
        resume(Arc::new(Disk), &at).unwrap().written(),
        Written::default()
    );
}

#[test]
fn a_finished_dataset_is_written_anew_and_stays_until_then() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    produce(Arc::new(Disk), &at, &Cell::new(0)).unwrap();
    let writer = resume(Arc::new(Disk), &at).unwrap();
    assert_eq!(writer.written(), Written::default());
    drop(writer);
    assert_eq!(&file_bytes(&at), unbroken());
    produce(Arc::new(Disk), &at, &Cell::new(0)).unwrap();
    assert_eq!(&file_bytes(&at), unbroken());
}

#[test]
fn a_record_is_written_by_itself_after_64_mib_of_ids() {
    let folder = folder();
    let at = prefix(folder.path(), "a");
    let mut writer = DatasetWriter::resume(&at, Dtype::U8, false, notes(None)).unwrap();
    let ids = vec![5; 16 << 20];
    let mut durable = Vec::new();
    for _ in 0..9 {
        writer.add_sequence(Tokens::U8(&ids), 0).unwrap();
        writer.end_document();
        durable.push(writer.durable().num_documents);
    }
    assert_eq!(durable, [0, 0, 0, 0, 4, 4, 4, 4, 8]);
    drop(writer);
    let writer = DatasetWriter::resume(&at, Dtype::U8, false, notes(None)).unwrap();
    assert_eq!(writer.written().num_tokens, 8 * (16 << 20));
    assert_eq!(fs::metadata(at.new_bin()).unwrap().len(), 8 * (16 << 20));
    writer.finish().unwrap();
    IndexedDataset::open_on(&Disk, &at, Verify::Full).unwrap();
}

#[test]
fn datasets_that_were_appended_are_remembered_across_a_resume() {
    let folder = folder();
    let name = |name: &str| prefix(folder.path(), name);
    for (part, ids) in [("one", [1, 2, 3]), ("two", [4, 5, 6])] {
        let mut writer = DatasetWriter::create(&name(part), Dtype::I32, true).unwrap();
        writer.set_notes(notes(Some("v1")));
        writer.add_sequence(Tokens::I64(&ids), 1).unwrap();
        writer.end_document();
        writer.finish().unwrap();
    }
    let part = |part| IndexedDataset::open(&name(part)).unwrap();
    let mut unbroken = DatasetWriter::create(&name("whole"), Dtype::I32, true).unwrap();
    unbroken.add_dataset(&part("one")).unwrap();
    unbroken.add_dataset(&part("two")).unwrap();
    unbroken.finish().unwrap();

    let mut writer = resume(Arc::new(Disk), &name("a")).unwrap();
    writer.add_dataset(&part("one")).unwrap();
    writer.flush().unwrap();
    drop(writer);
    let mut writer = resume(Arc::new(Disk), &name("a")).unwrap();
    writer.add_dataset(&part("two")).unwrap();
    writer.finish().unwrap();
    assert_eq!(file_bytes(&name("a")), file_bytes(&name("whole")));
}
