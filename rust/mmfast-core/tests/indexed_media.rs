//! Media references on their way through writers, journals, merges and views.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may stop at the first surprise, and looks at files itself"
)]

use std::path::Path;

use mmfast_core::Error;
use mmfast_core::indexed::{
    DatasetView, DatasetWriter, DocumentSource, Dtype, IndexedDataset, MEDIA_BIT, Notes, Prefix,
    Tokens, ViewOptions, merge,
};

const PLACEHOLDER: u8 = MEDIA_BIT | 2;

fn prefix(folder: &Path, name: &str) -> Prefix {
    Prefix::new(folder.join(name)).unwrap()
}

/// Documents of a caption and of what it is about, the odd ones with a reference.
fn add_documents(writer: &mut DatasetWriter, numbers: std::ops::Range<i64>) {
    for number in numbers {
        writer.add_sequence(Tokens::I64(&[number, 1]), 0).unwrap();
        let reference = (number % 2 == 1).then(|| format!("video-{number}.mp4"));
        let mode = if reference.is_some() { PLACEHOLDER } else { 2 };
        writer
            .add_referring_sequence(Tokens::I64(&[9, 9, 9]), mode, reference.as_deref())
            .unwrap();
        writer.end_document();
    }
}

fn create(prefix: &Prefix) -> DatasetWriter {
    DatasetWriter::create(prefix, Dtype::I32, true).unwrap()
}

fn references(source: &dyn DocumentSource) -> Vec<Option<String>> {
    (0..source.num_documents())
        .flat_map(|document| source.document_sequences(document).unwrap())
        .map(|sequence| source.media(sequence).unwrap())
        .collect()
}

fn expected(numbers: std::ops::Range<i64>) -> Vec<Option<String>> {
    numbers
        .flat_map(|number| {
            [
                None,
                (number % 2 == 1).then(|| format!("video-{number}.mp4")),
            ]
        })
        .collect()
}

#[test]
fn references_come_back_from_datasets_merges_and_views() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c, joined, appended] =
        ["a", "b", "c", "joined", "appended"].map(|name| prefix(folder.path(), name));
    for (prefix, numbers) in [(&a, 0..3), (&b, 3..3), (&c, 3..8)] {
        let mut writer = create(prefix);
        add_documents(&mut writer, numbers);
        writer.finish().unwrap();
    }
    assert_eq!(
        references(&IndexedDataset::open(&a).unwrap()),
        expected(0..3)
    );
    assert!(
        !b.media().exists(),
        "a dataset without references has no file for them"
    );

    merge(&joined, &[a.clone(), b.clone(), c.clone()]).unwrap();
    assert_eq!(
        references(&IndexedDataset::open(&joined).unwrap()),
        expected(0..8)
    );

    let mut writer = create(&appended);
    for part in [&a, &b, &c] {
        writer
            .add_dataset(&IndexedDataset::open(part).unwrap())
            .unwrap();
    }
    writer.finish().unwrap();
    for (one, other) in [
        (joined.media(), appended.media()),
        (joined.idx(), appended.idx()),
    ] {
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    }

    let view = DatasetView::open(&[a, b, c], ViewOptions::default()).unwrap();
    assert_eq!(references(&view), expected(0..8));
    assert_eq!(references(&view.slice(2..5).unwrap()), expected(2..5));
}

#[test]
fn a_resumed_writer_keeps_the_references_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let [resumed, whole] = ["resumed", "whole"].map(|name| prefix(folder.path(), name));
    let resume = || DatasetWriter::resume(&resumed, Dtype::I32, true, Notes::default()).unwrap();
    for numbers in [0..5, 5..6, 6..6] {
        let mut writer = resume();
        assert_eq!(
            i64::try_from(writer.written().num_documents).unwrap(),
            numbers.start
        );
        add_documents(&mut writer, numbers.clone());
        writer.flush().unwrap();
        add_documents(&mut writer, numbers.end..numbers.end + 1);
        // Dropped without a flush, the last document is not acknowledged.
    }
    let mut writer = resume();
    add_documents(&mut writer, 6..9);
    writer.finish().unwrap();
    let mut writer = create(&whole);
    add_documents(&mut writer, 0..9);
    writer.finish().unwrap();
    for (one, other) in [
        (resumed.media(), whole.media()),
        (resumed.idx(), whole.idx()),
    ] {
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    }
}

#[test]
fn a_replaced_dataset_keeps_no_reference_of_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = prefix(folder.path(), "a");
    let mut writer = create(&prefix);
    add_documents(&mut writer, 0..4);
    writer.finish().unwrap();
    assert!(prefix.media().exists());
    let mut writer = create(&prefix);
    writer.add_sequence(Tokens::I64(&[1]), 0).unwrap();
    writer.end_document();
    writer.finish().unwrap();
    assert!(!prefix.media().exists());
    assert_eq!(references(&IndexedDataset::open(&prefix).unwrap()), [None]);
}

#[test]
fn references_without_their_index_or_damaged_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| prefix(folder.path(), name));
    for (prefix, numbers) in [(&a, 0..4), (&b, 2..8)] {
        let mut writer = create(prefix);
        add_documents(&mut writer, numbers);
        writer.finish().unwrap();
    }
    let own = std::fs::read(a.media()).unwrap();
    std::fs::copy(b.media(), a.media()).unwrap();
    let error = IndexedDataset::open(&a).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");
    std::fs::write(a.media(), &own[..own.len() - 1]).unwrap();
    assert!(matches!(
        IndexedDataset::open(&a),
        Err(Error::Corrupt { .. })
    ));
    std::fs::remove_file(a.media()).unwrap();
    let dataset = IndexedDataset::open(&a).unwrap();
    assert_eq!(
        references(&dataset),
        vec![None; 8],
        "the ids are there all the same"
    );
}

#[test]
fn a_reference_needs_its_bit_its_order_and_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = create(&prefix(folder.path(), "a"));
    let ids = Tokens::I64(&[1, 2]);
    for (mode, text) in [(2, "x"), (PLACEHOLDER, "")] {
        let refused = writer.add_referring_sequence(ids, mode, Some(text));
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{mode} {text:?}"
        );
    }
    let modes = [PLACEHOLDER, 0];
    for references in [vec![(1, "x")], vec![(2, "x")], vec![(0, "x"), (0, "y")]] {
        let refused = writer.add_referring_documents(ids, &[1, 1], &[2], Some(&modes), &references);
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{references:?}"
        );
    }
    assert_eq!(
        writer.written().num_sequences,
        0,
        "a refused call adds nothing"
    );
    writer
        .add_referring_documents(ids, &[1, 1], &[2], Some(&modes), &[(0, "x")])
        .unwrap();
}
