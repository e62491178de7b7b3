//! Things a writer does that may be cut short anywhere, each with what must be found afterwards.

use std::path::Path;
use std::sync::Arc;

use mmfast_core::indexed::{
    DatasetWriter, Dtype, IndexedDataset, Notes, Prefix, Tokens, Verify, merge_on,
};
use mmfast_core::vfs::{Disk, Vfs};
use mmfast_core::{Error, Result};

pub(crate) type Sequences = Vec<Vec<i64>>;
/// Nothing, or what is wrong.
pub(crate) type Finding = std::result::Result<(), String>;

type Run = dyn Fn(Arc<dyn Vfs>, &Prefix, &dyn Fn(u64)) -> Result<()>;
type Check = dyn Fn(Arc<dyn Vfs>, &Prefix, u64) -> Finding;

/// One thing that a writer does.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    /// Puts the files there that the job starts from.
    pub(crate) prepare: Box<dyn Fn(&Prefix)>,
    /// Does it, telling its third argument whenever something is promised to be durable.
    pub(crate) run: Box<Run>,
    /// Opens what a run left, on the given file system, and says what is wrong with it, given what
    /// had been promised.
    pub(crate) check: Box<Check>,
}

/// As many ids in both, so that either index fits either `.bin`, but cut differently, so that a
/// mixed pair shows. Each id stands there `repeat` times.
fn old(repeat: usize) -> Sequences {
    repeated(&[&[1, 2], &[3]], repeat)
}

fn new(repeat: usize) -> Sequences {
    repeated(&[&[7], &[8, 9]], repeat)
}

fn repeated(sequences: &[&[i64]], repeat: usize) -> Sequences {
    let repeat_ids = |ids: &&[i64]| {
        ids.iter()
            .flat_map(|&id| std::iter::repeat_n(id, repeat))
            .collect()
    };
    sequences.iter().map(repeat_ids).collect()
}

pub(crate) fn write(vfs: Arc<dyn Vfs>, at: &Prefix, sequences: &Sequences) -> Result<()> {
    let mut writer = DatasetWriter::create_on(vfs, at, Dtype::I32, true)?;
    for ids in sequences {
        writer.add_sequence(Tokens::I64(ids), 1)?;
        writer.end_document();
    }
    writer.finish()?;
    Ok(())
}

/// Everything in a dataset, checked as far as can be; opening puts back what was left half done.
pub(crate) fn read(vfs: &dyn Vfs, at: &Prefix) -> Result<Sequences> {
    IndexedDataset::open_on(vfs, at, Verify::Index)?;
    let level = if at.sidecar().exists() {
        Verify::Full
    } else {
        Verify::Index
    };
    let dataset = IndexedDataset::open_on(vfs, at, level)?;
    let read = |sequence| dataset.ids(sequence..sequence + 1);
    (0..dataset.num_sequences()).map(read).collect()
}

pub(crate) fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// One of the datasets that may be there, by what has been promised.
fn require(found: &Sequences, old: &Sequences, new: &Sequences, promised: u64) -> Finding {
    match (found == old, found == new) {
        (_, true) => Ok(()),
        (true, _) if promised == 0 => Ok(()),
        (true, _) => Err("the old dataset is there, though the new one was promised".into()),
        _ => Err("there is a mixture".into()),
    }
}

fn hold(is_so: bool, else_wrong: &str) -> Finding {
    if is_so {
        Ok(())
    } else {
        Err(else_wrong.into())
    }
}

/// A dataset takes the place of another one.
pub(crate) fn replacement(repeat: usize) -> Job {
    Job {
        name: "a replacement",
        prepare: Box::new(move |at| write(Arc::new(Disk), at, &old(repeat)).unwrap()),
        run: Box::new(move |vfs, at, promise| {
            write(vfs, at, &new(repeat))?;
            promise(1);
            Ok(())
        }),
        check: Box::new(move |vfs, at, promised| {
            let found = read(&*vfs, at).map_err(|error| error.to_string())?;
            require(&found, &old(repeat), &new(repeat), promised)?;
            hold(at.sidecar().exists(), "the sidecar is gone")
        }),
    }
}

/// A dataset takes the place of one without a sidecar: that one must not be lent the new one's.
pub(crate) fn replacement_without_sidecar(repeat: usize) -> Job {
    Job {
        name: "a replacement without a sidecar",
        prepare: Box::new(move |at| {
            write(Arc::new(Disk), at, &old(repeat)).unwrap();
            Disk.remove(&at.sidecar()).unwrap();
        }),
        check: Box::new(move |vfs, at, promised| {
            let found = read(&*vfs, at).map_err(|error| error.to_string())?;
            require(&found, &old(repeat), &new(repeat), promised)?;
            let is_own = at.sidecar().exists() == (found == new(repeat));
            hold(is_own, "the sidecar is another dataset's")
        }),
        ..replacement(repeat)
    }
}

/// The first dataset of its name.
pub(crate) fn first_write(repeat: usize) -> Job {
    Job {
        name: "a first write",
        prepare: Box::new(|_| ()),
        check: Box::new(move |vfs, at, promised| match read(&*vfs, at) {
            Ok(found) if found == new(repeat) => Ok(()),
            Ok(_) => Err("there is something else".into()),
            Err(Error::Io { .. }) if promised == 0 && !at.idx().exists() => Ok(()),
            Err(error) => Err(error.to_string()),
        }),
        ..replacement(repeat)
    }
}

/// Two datasets become one under the name of the first.
pub(crate) fn merge_into_a_part(repeat: usize) -> Job {
    let other = |at: &Prefix| Prefix::new(at.path().with_file_name("b")).unwrap();
    Job {
        name: "a merge into one of its parts",
        prepare: Box::new(move |at| {
            write(Arc::new(Disk), at, &old(repeat)).unwrap();
            write(Arc::new(Disk), &other(at), &new(repeat)).unwrap();
        }),
        run: Box::new(move |vfs, at, promise| {
            merge_on(vfs, at, &[at.clone(), other(at)])?;
            promise(1);
            Ok(())
        }),
        check: Box::new(move |vfs, at, promised| {
            let merged = [old(repeat), new(repeat)].concat();
            let found = read(&*vfs, at).map_err(|error| error.to_string())?;
            require(&found, &old(repeat), &merged, promised)?;
            let beside = read(&*vfs, &other(at)).map_err(|error| error.to_string())?;
            hold(beside == new(repeat), "the other part has changed")
        }),
    }
}

/// A producer that resumes acknowledges its documents one by one, while an older dataset is there.
pub(crate) fn journaled(repeat: usize) -> Job {
    let documents = move || [new(repeat), old(repeat), new(repeat)].concat();
    let resume =
        |vfs, at: &Prefix| DatasetWriter::resume_on(vfs, at, Dtype::I32, true, Notes::default());
    let produce = move |vfs, at: &Prefix, promise: &dyn Fn(u64)| {
        let mut writer = resume(vfs, at)?;
        let num_written = writer.written().num_documents;
        promise(num_written);
        for ids in documents()
            .iter()
            .skip(usize::try_from(num_written).unwrap())
        {
            writer.add_sequence(Tokens::I64(ids), 1)?;
            writer.end_document();
            promise(writer.flush()?.num_documents);
        }
        writer.finish()?;
        Ok(())
    };
    Job {
        name: "a journaled replacement",
        prepare: Box::new(move |at| write(Arc::new(Disk), at, &old(repeat)).unwrap()),
        run: Box::new(produce),
        check: Box::new(move |vfs, at, promised| {
            let found = read(&*vfs, at).map_err(|error| error.to_string())?;
            if found == documents() {
                return hold(
                    !at.journal().exists(),
                    "there is a journal of what is finished",
                );
            }
            hold(found == old(repeat), "there is a mixture")?;
            let resumed = resume(Arc::clone(&vfs), at).map_err(|error| error.to_string())?;
            let found = resumed.written().num_documents;
            drop(resumed);
            hold(found >= promised, "acknowledged documents are lost")?;
            hold(
                found <= documents().len() as u64,
                "there are too many documents",
            )?;
            produce(Arc::clone(&vfs), at, &|_| ()).map_err(|error| error.to_string())?;
            let found = read(&*vfs, at).map_err(|error| error.to_string())?;
            hold(
                found == documents(),
                "the documents are others than those written",
            )
        }),
    }
}

/// The same, but it goes on after one that was killed.
pub(crate) fn resumed(repeat: usize) -> Job {
    let whole = journaled(repeat);
    Job {
        name: "a resumed replacement",
        prepare: Box::new(move |at| {
            write(Arc::new(Disk), at, &old(repeat)).unwrap();
            let mut writer = DatasetWriter::resume(at, Dtype::I32, true, Notes::default()).unwrap();
            for ids in new(repeat) {
                writer.add_sequence(Tokens::I64(&ids), 1).unwrap();
                writer.end_document();
                writer.flush().unwrap();
            }
            drop(writer);
            // Pieces of what would have come next.
            for file in [at.new_bin(), at.journal()] {
                let num_bytes = Disk.open(&file).unwrap().num_bytes().unwrap();
                let mut file = Disk.reopen(&file, num_bytes).unwrap();
                Disk.write(&mut file, &[9; 17]).unwrap();
            }
        }),
        ..whole
    }
}

/// One that does not resume begins anew where there is a journal.
pub(crate) fn replacement_with_journal(repeat: usize) -> Job {
    let whole = replacement(repeat);
    Job {
        name: "a replacement that discards a journal",
        prepare: resumed(repeat).prepare,
        check: Box::new(move |vfs, at, promised| {
            (whole.check)(Arc::clone(&vfs), at, promised)?;
            let resumed = DatasetWriter::resume_on(vfs, at, Dtype::I32, true, Notes::default());
            resumed.map(|_| ()).map_err(|error| error.to_string())
        }),
        ..replacement(repeat)
    }
}

pub(crate) fn all(repeat: usize) -> Vec<Job> {
    vec![
        first_write(repeat),
        replacement(repeat),
        replacement_without_sidecar(repeat),
        merge_into_a_part(repeat),
        journaled(repeat),
        resumed(repeat),
        replacement_with_journal(repeat),
    ]
}
