//! Several datasets read as one, parts of them, and the few that are held open.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;
use std::sync::Arc;

use mmfast_core::Error;
use mmfast_core::indexed::{
    Access, DatasetView, DatasetWriter, DocumentSource, Dtype, Gather, IndexedDataset, Notes,
    Prefix, Tokens, Verify, ViewOptions, merge, scan,
};
use mmfast_core::vfs::{Disk, Vfs};

type Document = Vec<(Vec<i64>, u8)>;

fn write(folder: &Path, name: &str, dtype: Dtype, documents: &[Document]) -> Prefix {
    let at = Prefix::new(folder.join(name)).unwrap();
    let mut writer = DatasetWriter::create(&at, dtype, true).unwrap();
    for document in documents {
        for (ids, mode) in document {
            writer.add_sequence(Tokens::I64(ids), *mode).unwrap();
        }
        writer.end_document();
    }
    writer.finish().unwrap();
    at
}

/// A few shards of documents of 0 to 2 sequences; the second shard is empty.
fn shards(folder: &Path, dtypes: [Dtype; 4]) -> (Vec<Prefix>, Vec<Document>) {
    let documents = |first: i64, num: i64| -> Vec<Document> {
        (first..first + num)
            .map(|k| {
                (0..k % 3)
                    .map(|s| ((0..=(k + s) % 4).collect(), u8::try_from(s).unwrap()))
                    .collect()
            })
            .collect()
    };
    let parts = [documents(0, 5), vec![], documents(5, 1), documents(6, 7)];
    let names = ["a", "b", "c", "d"];
    let prefixes = names
        .iter()
        .zip(dtypes)
        .zip(&parts)
        .map(|((name, dtype), part)| write(folder, name, dtype, part));
    (prefixes.collect(), parts.concat())
}

fn ids_of(source: &dyn DocumentSource, document: u64) -> Document {
    let sequences = source.document_sequences(document).unwrap();
    let read = |sequence| {
        let mut ids = vec![0; source.sequence_length(sequence).unwrap() as usize];
        source
            .read_into(sequence..sequence + 1, 0, &mut ids)
            .unwrap();
        (ids, source.mode(sequence).unwrap())
    };
    sequences.map(read).collect()
}

fn documents_of(source: &dyn DocumentSource) -> Vec<Document> {
    (0..source.num_documents())
        .map(|document| ids_of(source, document))
        .collect()
}

fn options(max_open: usize, access: Access) -> ViewOptions {
    ViewOptions {
        max_open,
        access,
        ..ViewOptions::default()
    }
}

/// Everything that a view tells about sequences, against its documents.
fn require_consistent(view: &DatasetView, expected: &[Document]) {
    assert_eq!(documents_of(view), expected);
    let sequences: Vec<_> = expected.iter().flatten().cloned().collect();
    assert_eq!(view.num_sequences().unwrap(), sequences.len() as u64);
    let lengths: Vec<_> = sequences
        .iter()
        .map(|(ids, _)| u32::try_from(ids.len()).unwrap())
        .collect();
    assert_eq!(view.sequence_lengths().unwrap(), lengths);
    let modes: Vec<_> = sequences.iter().map(|(_, mode)| *mode).collect();
    assert_eq!(view.sequence_modes().unwrap().unwrap_or_default(), modes);
    let tokens: Vec<_> = sequences.iter().flat_map(|(ids, _)| ids.clone()).collect();
    assert_eq!(view.num_tokens().unwrap(), tokens.len() as u64);
    let mut end = 0;
    let ends = expected.iter().map(|document| {
        end += document.len() as u64;
        end
    });
    assert_eq!(
        view.document_indices().unwrap().get(1..).unwrap(),
        ends.collect::<Vec<_>>()
    );
    for (nth, (ids, mode)) in (0..).zip(&sequences) {
        let number = view.nth_sequence(nth).unwrap();
        assert_eq!(view.mode(number).unwrap(), *mode);
        let mut out = vec![0_i64; ids.len()];
        view.read(number, 0, &mut out).unwrap();
        assert_eq!(&out, ids);
        assert!(view.read(number, 1, &mut out).is_err());
        let (dataset, local) = view.locate(number).unwrap();
        assert_eq!(dataset.ids(local..local + 1).unwrap(), *ids);
    }
    assert!(view.nth_sequence(sequences.len() as u64).is_err());
    assert!(view.document_sequences(expected.len() as u64).is_err());

    let backwards = (0..expected.len() as u64).rev().map(Ok).collect::<Vec<_>>();
    let plan = Gather::documents(view, backwards.into_iter()).unwrap();
    let reversed: Vec<_> = expected
        .iter()
        .rev()
        .flatten()
        .flat_map(|(ids, _)| ids.clone())
        .collect();
    assert_eq!(plan.collect::<i64>(view).unwrap(), reversed);
    let mut out = vec![-1_i64; reversed.len() + 1];
    assert_eq!(plan.copy_to(view, &mut out).unwrap(), reversed.len());
    assert_eq!(out.get(..reversed.len()).unwrap(), reversed);
    let all = (0..sequences.len() as u64).map(Ok).collect::<Vec<_>>();
    let plan = Gather::sequences(view, all.into_iter()).unwrap();
    assert_eq!(plan.collect::<i64>(view).unwrap(), tokens);

    let runs = view.runs(0..sequences.len() as u64).unwrap();
    let scanned = runs
        .iter()
        .map(|(dataset, run)| scan(dataset, run.clone(), None).unwrap());
    let total: u64 = scanned
        .map(|found| found.tokens_by_modality.iter().sum::<u64>())
        .sum();
    assert_eq!(total, tokens.len() as u64);
}

#[test]
fn a_view_is_its_datasets_one_after_the_other_however_they_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, documents) = shards(folder.path(), [Dtype::I32; 4]);
    for access in [Access::Auto, Access::Mmap, Access::Pread] {
        for max_open in [1, 2, 4, 100] {
            let view = DatasetView::open(&prefixes, options(max_open, access)).unwrap();
            require_consistent(&view, &documents);
            let num_shards: usize = view.access().iter().map(|(_, num_shards)| num_shards).sum();
            assert_eq!(num_shards, 4);
        }
    }
    let merged = Prefix::new(folder.path().join("merged")).unwrap();
    merge(&merged, &prefixes).unwrap();
    assert_eq!(
        documents_of(&IndexedDataset::open(&merged).unwrap()),
        documents
    );
}

#[test]
fn slices_of_slices_are_views_of_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, documents) = shards(folder.path(), [Dtype::I32; 4]);
    let view = DatasetView::open(&prefixes, options(2, Access::Auto)).unwrap();
    for start in 0..=documents.len() {
        for end in start..=documents.len() {
            let slice = view.slice(start as u64..end as u64).unwrap();
            require_consistent(&slice, &documents[start..end]);
        }
    }
    let inner = view.slice(2..12).unwrap().slice(3..8).unwrap();
    require_consistent(&inner, &documents[5..10]);
    assert!(matches!(view.slice(3..14), Err(Error::InvalidArgument(_))));
    #[expect(clippy::reversed_empty_ranges, reason = "it is refused")]
    let reversed = view.slice(3..2);
    assert!(matches!(reversed, Err(Error::InvalidArgument(_))));
}

#[test]
fn a_shuffled_view_has_each_document_once_and_its_parts_share_none() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, documents) = shards(folder.path(), [Dtype::I32; 4]);
    let view = DatasetView::open(&prefixes, ViewOptions::default()).unwrap();
    let shuffled = view.shuffled(7);
    let found = documents_of(&shuffled);
    assert_ne!(found, documents);
    let sorted = |mut documents: Vec<Document>| {
        documents.sort();
        documents
    };
    assert_eq!(sorted(found.clone()), sorted(documents));
    require_consistent(&shuffled, &found);
    let (front, back) = (
        shuffled.slice(0..9).unwrap(),
        shuffled.slice(9..13).unwrap(),
    );
    require_consistent(&front, &found[..9]);
    require_consistent(&back, &found[9..]);
    // A split of a split.
    let again = back.shuffled(8);
    assert_eq!(sorted(documents_of(&again)), sorted(found[9..].to_vec()));
    require_consistent(&again, &documents_of(&again));
    // Seed and number of documents decide, not how they are cut into files.
    let merged = Prefix::new(folder.path().join("merged")).unwrap();
    merge(&merged, &prefixes).unwrap();
    let one = DatasetView::open(&[merged], ViewOptions::default()).unwrap();
    assert_eq!(documents_of(&one.shuffled(7)), found);
}

#[test]
fn shards_of_different_dtypes_are_read_in_one_that_holds_all() {
    for (dtypes, expected) in [
        ([Dtype::U16, Dtype::U16, Dtype::U8, Dtype::U16], Dtype::U16),
        ([Dtype::U16, Dtype::U8, Dtype::I32, Dtype::U16], Dtype::I32),
        ([Dtype::U16, Dtype::U8, Dtype::I8, Dtype::U8], Dtype::I32),
        ([Dtype::U8, Dtype::U8, Dtype::I8, Dtype::U8], Dtype::I16),
        ([Dtype::I64, Dtype::U8, Dtype::I8, Dtype::U16], Dtype::I64),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (prefixes, documents) = shards(folder.path(), dtypes);
        let view = DatasetView::open(&prefixes, ViewOptions::default()).unwrap();
        assert_eq!(view.dtype(), expected);
        require_consistent(&view, &documents);
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, _) = shards(folder.path(), [Dtype::I32; 4]);
    let plain = Prefix::new(folder.path().join("plain")).unwrap();
    let mut writer = DatasetWriter::create(&plain, Dtype::I32, false).unwrap();
    writer.add_sequence(Tokens::I64(&[1]), 0).unwrap();
    writer.end_document();
    writer.finish().unwrap();
    let floats = Prefix::new(folder.path().join("floats")).unwrap();
    let mut writer = DatasetWriter::create(&floats, Dtype::F32, true).unwrap();
    writer.add_sequence(Tokens::F32(&[1.0]), 0).unwrap();
    writer.end_document();
    writer.finish().unwrap();
    for (other, sentence) in [(&plain, "has modes and"), (&floats, "holds int32 and")] {
        let error = DatasetView::open(
            &[prefixes[0].clone(), other.clone()],
            ViewOptions::default(),
        );
        let text = error.unwrap_err().to_string();
        for part in [sentence, &other.path().display().to_string(), "/a "] {
            assert!(text.contains(part), "{text}");
        }
    }
    let mut with_vocabulary = Vec::new();
    for name in ["x", "y"] {
        let at = Prefix::new(folder.path().join(name)).unwrap();
        let mut writer = DatasetWriter::create(&at, Dtype::I32, false).unwrap();
        writer.set_notes(Notes::new(Some(name.repeat(4)), None).unwrap());
        writer.finish().unwrap();
        with_vocabulary.push(at);
    }
    let error = DatasetView::open(&with_vocabulary, ViewOptions::default()).unwrap_err();
    assert!(matches!(error, Error::VocabularyMismatch(_)), "{error}");
    assert!(
        error.to_string().contains("xxxx") && error.to_string().contains("yyyy"),
        "{error}"
    );
    assert!(DatasetView::open(&[], ViewOptions::default()).is_err());
    let none_open = DatasetView::open(&prefixes, options(0, Access::Auto));
    assert!(none_open.unwrap_err().to_string().contains("at least one"));
}

#[test]
fn a_shard_that_was_replaced_meanwhile_is_refused_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, documents) = shards(folder.path(), [Dtype::I32; 4]);
    let view = DatasetView::open(&prefixes, options(1, Access::Auto)).unwrap();
    assert_eq!(ids_of(&view, 0), documents[0]);
    let kept = view.dataset(0).unwrap();
    assert_eq!(ids_of(&view, 12), documents[12]);
    write(folder.path(), "a", Dtype::I32, &documents[..5]);
    let error = view.document_sequences(0).unwrap_err().to_string();
    assert!(
        error.contains("was replaced after this view was opened"),
        "{error}"
    );
    // What was handed out is what it was.
    assert_eq!(ids_of(kept.as_ref(), 2), documents[2]);
}

#[test]
fn a_damaged_block_is_noticed_in_a_shard_that_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, _) = shards(folder.path(), [Dtype::I32; 4]);
    let lazily = ViewOptions {
        verify: Verify::Lazy,
        max_open: 1,
        access: Access::Auto,
    };
    let view = DatasetView::open(&prefixes, lazily).unwrap();
    let bin = std::fs::read(prefixes[3].bin()).unwrap();
    let flipped: Vec<u8> = bin.iter().map(|byte| byte ^ 1).collect();
    let mut file = Disk.create(&prefixes[3].bin()).unwrap();
    Disk.write(&mut file, &flipped).unwrap();
    ids_of(&view, 4);
    for _ in 0..2 {
        let sequence = view.document_sequences(8).unwrap().start;
        let error = view
            .read_into(sequence..sequence + 1, 0, &mut [0])
            .unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        ids_of(&view, 4);
    }
}

#[test]
fn fingerprints_tell_views_apart_and_leave_datasets_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, _) = shards(folder.path(), [Dtype::I32; 4]);
    let open = |prefixes: &[Prefix]| DatasetView::open(prefixes, ViewOptions::default()).unwrap();
    let one = open(&prefixes[..1]);
    let dataset = IndexedDataset::open(&prefixes[0]).unwrap();
    assert_eq!(one.fingerprint(), dataset.fingerprint());
    let all = open(&prefixes);
    let reversed: Vec<_> = prefixes.iter().rev().cloned().collect();
    let views = [
        one.clone(),
        one.slice(0..4).unwrap(),
        one.slice(1..5).unwrap(),
        one.shuffled(1),
        one.shuffled(2),
        all.clone(),
        all.slice(1..13).unwrap(),
        open(&reversed),
    ];
    let mut found: Vec<_> = views.iter().map(DatasetView::fingerprint).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), views.len());
    let bounded = DatasetView::open(&prefixes, options(1, Access::Pread)).unwrap();
    assert_eq!(bounded.fingerprint(), all.fingerprint());
}

#[test]
fn many_threads_share_a_view_that_holds_few_open() {
    let folder = tempfile::tempdir().unwrap();
    let (prefixes, documents) = shards(folder.path(), [Dtype::I32; 4]);
    let view = Arc::new(DatasetView::open(&prefixes, options(2, Access::Pread)).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (view, documents) = (Arc::clone(&view), &documents);
            scope.spawn(move || {
                for round in 0..200 {
                    let document = (thread * 5 + round * 7) % documents.len();
                    assert_eq!(ids_of(&*view, document as u64), documents[document]);
                }
            });
        }
    });
}
