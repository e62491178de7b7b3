//! Ways of packing against what they promise, and fast filling against slow, over random documents.

use std::collections::HashMap;

use proptest::prelude::*;

use super::testing::{Batch, *};
use super::*;
use crate::objective::{ImageNoise, Sequence, Transformed, is_atomic};

/// Documents of text and images; all ids of a corpus differ, so that each tells where it comes from.
fn corpus() -> impl Strategy<Value = Memory> {
    let segment = (
        0usize..30,
        prop_oneof![3 => Just(0u8), 2 => Just(1), 1 => Just(0x40)],
    );
    let document = prop::collection::vec(segment, 0..5);
    prop::collection::vec(document, 1..60).prop_map(|documents| {
        let mut next = 1_000;
        let documents: Vec<Vec<(Vec<i64>, u8)>> = documents
            .into_iter()
            .map(|segments| {
                let with_ids = |(length, mode)| {
                    let ids: Vec<i64> = (next..).take(length).collect();
                    next += i64::try_from(length).unwrap();
                    (ids, mode)
                };
                segments.into_iter().map(with_ids).collect()
            })
            .collect();
        Memory::new(&documents)
    })
}

fn ids_of(memory: &Memory, document: u64) -> Vec<i64> {
    let sequences = memory.document_sequences(document).unwrap();
    let lengths = sequences
        .clone()
        .map(|s| memory.sequence_length(s).unwrap() as usize);
    let mut ids = vec![0; lengths.sum()];
    memory.read_into(sequences, 0, &mut ids).unwrap();
    ids
}

fn objective(number: u8) -> Objective {
    let noise = || ImageNoise::new(0.5, vec![1_000..1_500, 1_500..100_000]).unwrap();
    match number {
        0 => Objective::next_token(None),
        1 => Objective::next_token(noise()),
        2 => cm3(),
        _ => Objective::cm3(masking(), noise()),
    }
}

/// The rows of bins in the plainest way: a document at a time through [`Transformed`].
fn slow_rows(stream: &Stream, plan: &WindowPlan, memory: &Memory, bins: Range<u64>) -> Batch {
    let tokens = stream.config().bin_tokens as usize;
    let mut arrays = OwnedArrays::new(0);
    let mut facts = BatchFacts::new(0, tokens);
    for bin in bins {
        let start = arrays.input_ids.len();
        let (mut ends, mut weight_sum) = (Vec::new(), 0.0);
        for (number, item) in (1..).zip(plan.bin(bin)) {
            let document = item.key.document();
            let sequences: Vec<Sequence> = memory
                .document_sequences(document)
                .unwrap()
                .map(|s| Sequence {
                    length: memory.sequence_length(s).unwrap(),
                    mode: memory.mode(s).unwrap(),
                })
                .collect();
            let part = window::part_of(&sequences, item.start, item.length.into());
            let from = usize::try_from(item.start).unwrap();
            let ids = &ids_of(memory, document)[from..from + item.length as usize];
            let mut output = Transformed::default();
            let most = u64::from(item.planned);
            stream
                .objective
                .transform(item.key, &part, ids, most, &mut output);
            let last = output.ids.len() - 1;
            arrays.input_ids.extend(&output.input_ids);
            arrays.labels.extend(&output.ids[1..]);
            arrays.labels.push(IGNORED_LABEL);
            arrays.loss_weights.extend(&output.weights[1..]);
            arrays.loss_weights.push(0.0);
            arrays.modality_ids.extend(&output.modalities);
            let length = i32::try_from(last).unwrap() + 1;
            arrays.position_ids.extend(0..length);
            arrays.document_ids.extend(vec![number; last + 1]);
            weight_sum += output.weights[1..]
                .iter()
                .map(|w| f64::from(*w))
                .sum::<f64>();
            ends.push(i32::try_from(arrays.input_ids.len() - start).unwrap());
        }
        let size = start + tokens;
        assert!(
            arrays.input_ids.len() <= size,
            "a row holds what is planned"
        );
        arrays.input_ids.resize(size, PAD);
        arrays.labels.resize(size, IGNORED_LABEL);
        arrays.position_ids.resize(size, 0);
        arrays.document_ids.resize(size, 0);
        arrays.modality_ids.resize(size, 0);
        arrays.loss_weights.resize(size, 0.0);
        let filled = super::row::RowFacts {
            ends,
            weight_sum,
            media: Vec::new(),
        };
        facts.add_row(facts.num_rows, filled);
        facts.num_rows += 1;
    }
    Batch::of(arrays, facts)
}

prop_compose! {
    fn any_config()(
        packing in prop_oneof![Just(Packing::BestFit), Just(Packing::Concat), Just(Packing::None)],
        cut_at in prop_oneof![Just(CutAt::Ids), Just(CutAt::Segments)],
        overlong in prop_oneof![Just(Overlong::Truncate), Just(Overlong::Split), Just(Overlong::Drop)],
        bin_tokens in 8u32..100,
        limit in prop::option::of(6u32..100),
        window_documents in 1u64..40,
        seed: u64,
    ) -> StreamConfig {
        StreamConfig {
            packing, cut_at, overlong, bin_tokens, max_document_tokens: limit, window_documents, seed,
            global_batch_bins: 1,
            ..config()
        }
    }
}

fn all_windows(stream: &Stream) -> Vec<WindowPlan> {
    (0..)
        .map_while(|window| stream.plan(window).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn rows_are_those_of_a_document_at_a_time(
        memory in corpus(), config in any_config(), number in 0u8..4, epochs in 1u64..3, group in 1u64..4,
    ) {
        let mut source = source(memory.clone(), Some(epochs));
        if config.packing != Packing::Concat && group > 1 {
            source.groups = Groups::OfSize(group);
        }
        let stream = stream(config, vec![source], objective(number));
        let mut feeder = Feeder::new(&stream, Cursor::default());
        for plan in all_windows(&stream) {
            for bin in 0..plan.num_bins() {
                let expected = slow_rows(&stream, &plan, &memory, bin..bin + 1);
                let found = fed(&stream, &mut feeder).unwrap().unwrap();
                let expected = Batch { cursor: found.cursor, counts: found.counts, ..expected };
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn no_packing_cuts_what_stays_whole_or_loses_ids_it_does_not_count(
        memory in corpus(), config in any_config(),
    ) {
        let cut_at = config.cut_at;
        let (overlong, packing) = (config.overlong, config.packing);
        let source = source(memory.clone(), Some(1));
        let stream = stream(config, vec![source], Objective::next_token(None));
        let mut pieces: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        let mut counts = PlanCounts::default();
        for plan in all_windows(&stream) {
            counts.add(plan.counts());
            for bin in 0..plan.num_bins() {
                prop_assert!(packing != Packing::None || plan.bin(bin).count() == 1);
                for item in plan.bin(bin) {
                    let piece = (item.start, item.start + u64::from(item.length));
                    pieces.entry(item.key.document()).or_default().push(piece);
                }
            }
        }
        let (mut lost, mut cut, mut empty) = (0, 0, 0);
        for document in 0..memory.num_documents() {
            let mut found = pieces.remove(&document).unwrap_or_default();
            found.sort_unstable();
            let mut position = 0;
            let mut borders = vec![(0, 0, false)];
            for sequence in memory.document_sequences(document).unwrap() {
                let end = position + u64::from(memory.sequence_length(sequence).unwrap());
                let divides = cut_at == CutAt::Ids && !is_atomic(memory.mode(sequence).unwrap());
                borders.push((position, end, divides));
                position = end;
            }
            let mut next = 0;
            for (start, end) in &found {
                prop_assert_eq!(*start, next, "pieces follow one another");
                next = *end;
                for (from, to, divides) in &borders {
                    prop_assert!(*divides || *end <= *from || *end >= *to, "{:?} {:?}", found, borders);
                }
            }
            empty += u64::from(position == 0);
            lost += u64::from(position > 0 && found.is_empty());
            cut += u64::from(next > 0 && next < position);
            prop_assert!(next == position || found.is_empty() || overlong == Overlong::Truncate);
        }
        prop_assert_eq!((counts.dropped, counts.truncated, counts.empty), (lost, cut, empty));
        prop_assert!(pieces.is_empty());
    }

    #[test]
    fn concatenated_text_fills_every_row_but_the_last_of_a_window(
        lengths in prop::collection::vec(0u32..40, 1..60), bin_tokens in 1u32..50, window in 1u64..80,
    ) {
        let documents: Vec<_> = lengths.iter().map(|length| document(&[(*length, 0)])).collect();
        let config = StreamConfig {
            packing: Packing::Concat, bin_tokens, window_documents: window, ..config()
        };
        let source = source(Memory::new(&documents), Some(1));
        let stream = stream(config, vec![source], Objective::next_token(None));
        for plan in all_windows(&stream) {
            let filled = |bin| plan.bin(bin).map(|item| item.length).sum::<u32>();
            let short = (0..plan.num_bins()).filter(|bin| filled(*bin) < bin_tokens).count();
            prop_assert!(short <= 1);
            prop_assert!((0..plan.num_bins()).all(|bin| filled(bin) > 0));
        }
    }

    #[test]
    fn a_group_that_fits_shares_a_row_and_keeps_its_order(
        memory in corpus(), config in any_config(), starts in prop::collection::btree_set(1u64..60, 0..20),
    ) {
        let num_documents = memory.num_documents();
        let mut starts: Vec<u64> = starts.into_iter().filter(|s| *s < num_documents).collect();
        starts.insert(0, 0);
        starts.push(num_documents);
        let config = StreamConfig {
            packing: match config.packing { Packing::Concat => Packing::BestFit, other => other },
            ..config
        };
        let capacity = u64::from(config.document_tokens());
        let source = StreamSource { groups: Groups::At(starts.clone().into()), ..source(memory.clone(), Some(1)) };
        let stream = stream(config, vec![source], Objective::next_token(None));
        let mut rows: Vec<Vec<u64>> = Vec::new();
        for plan in all_windows(&stream) {
            let documents = |bin| plan.bin(bin).map(|item| item.key.document()).collect();
            rows.extend((0..plan.num_bins()).map(documents));
        }
        for group in starts.windows(2) {
            let length = |document| ids_of(&memory, document).len() as u64;
            let members: Vec<u64> = (group[0]..group[1]).filter(|d| length(*d) > 0).collect();
            let is_whole = members.iter().map(|d| length(*d)).sum::<u64>() <= capacity;
            if is_whole && !members.is_empty() {
                let holds = |row: &&Vec<u64>| row.windows(members.len()).any(|run| run == members);
                prop_assert_eq!(rows.iter().filter(holds).count(), 1);
            }
        }
    }

    #[test]
    fn a_stream_without_packing_gives_documents_in_order_and_continues_at_once(
        memory in corpus(), seed: u64,
    ) {
        let config = StreamConfig { packing: Packing::None, seed, overlong: Overlong::Split, ..config() };
        let stream = stream(config, vec![source(memory.clone(), Some(2))], Objective::next_token(None));
        let mut position = 0;
        for batch in batches(&stream, Cursor::default(), usize::MAX) {
            for row in documents_by_row(&batch) {
                let Some((ids, _, _)) = row.first() else { continue };
                let expected = loop {
                    let at = stream.order.locate(position).unwrap();
                    position += 1;
                    let ids = ids_of(&memory, at.document);
                    if !ids.is_empty() { break ids; }
                };
                prop_assert_eq!(row.len(), 1);
                if expected.len() > 96 { // its other pieces come in the next rows
                    prop_assert_eq!(ids, &expected[..ids.len()]);
                    return Ok(());
                }
                prop_assert_eq!(ids, &expected);
            }
        }
    }
}

#[test]
fn groups_that_do_not_fit_are_refused_cut_or_left_out_and_counted() {
    let memory = || Memory::new(&vec![document(&[(10, 0)]); 5]);
    let rows = |overlong| {
        let config = StreamConfig {
            bin_tokens: 25,
            overlong,
            ..config()
        };
        let source = StreamSource {
            groups: Groups::At([0, 3, 5].into()),
            ..source(memory(), Some(1))
        };
        let stream = stream(config, vec![source], Objective::next_token(None));
        let plan = stream.plan(0)?.unwrap();
        let mut rows: Vec<Vec<u64>> = (0..plan.num_bins())
            .map(|bin| plan.bin(bin).map(|item| item.key.document()).collect())
            .collect();
        rows.sort();
        Ok::<_, Error>((rows, *plan.counts()))
    };
    let error = rows(Overlong::Error).unwrap_err().to_string();
    assert!(
        error.contains("group 0 of memory has 30 tokens and does not fit a row of 25"),
        "{error}"
    );
    let counts = PlanCounts {
        documents: 5,
        overlong_groups: 1,
        ..PlanCounts::default()
    };
    assert_eq!(
        rows(Overlong::Truncate).unwrap(),
        (
            vec![vec![0, 1], vec![3, 4]],
            PlanCounts {
                dropped: 1,
                ..counts
            }
        )
    );
    assert_eq!(
        rows(Overlong::Drop).unwrap(),
        (
            vec![vec![3, 4]],
            PlanCounts {
                dropped: 3,
                ..counts
            }
        )
    );
    assert_eq!(
        rows(Overlong::Split).unwrap(),
        (vec![vec![0, 1], vec![2], vec![3, 4]], counts)
    );
}

#[test]
fn groups_and_packings_that_exclude_each_other_are_refused() {
    let refused = |groups, packing| {
        let config = StreamConfig {
            packing,
            ..config()
        };
        let source = StreamSource {
            groups,
            ..source(captions(5), None)
        };
        Stream::new(config, vec![source], cm3())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    for (groups, text) in [
        (
            Groups::OfSize(0),
            "groups of memory: a group has at least 1 document",
        ),
        (
            Groups::At([0, 4].into()),
            "end with the number of documents, 5",
        ),
        (Groups::At([].into()), "begin with 0"),
        (Groups::At([0, 2, 2, 5].into()), "group 1 has no documents"),
    ] {
        let error = refused(groups, Packing::BestFit);
        assert!(error.contains(text), "{error}");
    }
    let error = refused(Groups::OfSize(2), Packing::Concat);
    assert!(error.contains("would part the groups of memory"), "{error}");
    for name in ["best_fit", "concat", "none"] {
        assert_eq!(Packing::from_name(name).unwrap().name(), name);
    }
    assert!(Packing::from_name("ffd").is_err());
}

#[test]
fn processes_that_take_turns_deliver_every_batch_between_them() {
    let stream = stream(config(), vec![source(captions(150), Some(3))], cm3());
    let alone = batches(&stream, Cursor::default(), usize::MAX);
    for count in 1..5 {
        for num_batches in [0, 2] {
            let mut found = Vec::new();
            for turn in 0..count {
                let mut prefetcher = Prefetcher::new(Arc::clone(&stream), num_batches);
                prefetcher.take_turns(turn, count).unwrap();
                let mut number = turn as usize;
                while let Some(batch) = next(&stream, &mut prefetcher) {
                    found.push((number, batch));
                    number += count as usize;
                    if number.is_multiple_of(5) {
                        prefetcher.stop(); // as after a fork
                    }
                }
            }
            found.sort_by_key(|(number, _)| *number);
            assert_eq!(found.len(), alone.len());
            for ((_, batch), expected) in found.iter().zip(&alone) {
                assert_eq!(
                    (&batch.input_ids, batch.cursor),
                    (&expected.input_ids, expected.cursor)
                );
            }
        }
    }
    assert!(
        Prefetcher::<OwnedArrays>::new(stream, 0)
            .take_turns(2, 2)
            .is_err()
    );
}

#[test]
fn arrays_of_another_size_are_refused_by_name() {
    let stream = stream(config(), vec![source(captions(50), None)], cm3());
    let mut arrays = soiled(&stream);
    arrays.labels.pop();
    let error = Feeder::new(&stream, Cursor::default())
        .next_batch(&mut arrays)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("labels has room for 671 tokens, and a batch has 672"),
        "{error}"
    );
}
