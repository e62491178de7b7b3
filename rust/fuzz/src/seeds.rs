//! `seeds <folder>` writes a small corpus to start from: `<folder>/<target>/…`.

use std::path::{Path, PathBuf};

use mmfast_core::indexed::{DatasetWriter, Dtype, Notes, Tokens};
use mmfast_fuzz::{prefix, write};

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("usage: seeds <folder>"));
    for dtype in Dtype::ALL
        .into_iter()
        .filter(|dtype| dtype.id_range().is_some())
    {
        for has_modes in [false, true] {
            let at = prefix();
            write(&at, dtype, has_modes);
            let name = format!("{}-{has_modes}", dtype.name());
            let read = |path: &Path| std::fs::read(path).expect("a file");
            save(&folder.join("index").join(&name), &read(&at.idx()));
            let sidecar = read(&at.sidecar());
            save(
                &folder.join("sidecar").join(&name),
                &sidecar[..sidecar.len() - 8],
            );
        }
    }
    save(&folder.join("journal").join("three-records"), &journal());
}

fn journal() -> Vec<u8> {
    let at = prefix();
    let writer = DatasetWriter::resume(&at, Dtype::U16, true, Notes::default());
    let mut writer = writer.expect("a writer");
    for lengths in [&[2_u32, 0][..], &[], &[3]] {
        let ids = vec![7; lengths.iter().sum::<u32>() as usize];
        let added = writer.add_documents(Tokens::I64(&ids), lengths, &[lengths.len() as u64], None);
        added.expect("a document");
        writer.flush().expect("a record");
    }
    std::fs::read(at.journal()).expect("a journal")
}

fn save(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, bytes).expect("a file");
}
