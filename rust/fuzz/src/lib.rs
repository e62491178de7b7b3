//! What the targets share: a folder in memory, files that are written anew for each input, and a look
//! at everything that is accepted.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use mmfast_core::Error;
use mmfast_core::indexed::{DatasetWriter, DocumentSource, Dtype, IndexedDataset, Prefix, Tokens};

/// Where a target works. The folder stays until the process ends.
pub fn prefix() -> Prefix {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder").keep();
    Prefix::new(folder.join("a")).expect("a prefix")
}

/// A small dataset with all there may be: empty sequences, empty documents, modes.
pub fn write(at: &Prefix, dtype: Dtype, has_modes: bool) {
    let mut writer = DatasetWriter::create(at, dtype, has_modes).expect("a writer");
    let ids = [1, 2, 3, 4, 5, 6, 7, 8];
    let added = writer.add_documents(Tokens::I64(&ids), &[2, 3, 0, 2, 1], &[2, 0, 3], None);
    added.expect("documents");
    writer.finish().expect("a dataset");
}

/// Replaces a file's content in place; nothing has it mapped.
pub fn overwrite(path: &Path, bytes: &[u8]) {
    let file = open(path);
    file.set_len(bytes.len() as u64).expect("room");
    file.write_all_at(bytes, 0).expect("room");
}

/// Gives a file a size.
pub fn resize(path: &Path, num_bytes: u64) {
    open(path).set_len(num_bytes).expect("room");
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path);
    file.expect("a file")
}

/// Asks for everything; an error is an answer, a panic is not.
pub fn read_everything(dataset: &IndexedDataset) -> Result<(), Error> {
    for document in 0..dataset.num_documents() {
        for sequence in dataset.document_sequences(document)? {
            dataset.mode(sequence)?;
            if dataset.dtype().id_range().is_some() {
                dataset.ids(sequence..sequence + 1)?;
            }
        }
    }
    dataset.fingerprint();
    Ok(())
}
