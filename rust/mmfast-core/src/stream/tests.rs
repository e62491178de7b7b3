//! What a stream promises, over documents in memory.

use std::collections::HashMap;

use super::testing::{Batch, *};
use super::*;
use crate::objective::{ImageNoise, Sequence, restore};
use crate::random::DocumentKey;

fn caption_stream(config: StreamConfig) -> Arc<Stream> {
    stream(config, vec![source(captions(150), None)], cm3())
}

/// A batch without what depends on where the stream was started.
fn content(batch: Batch) -> Batch {
    Batch {
        counts: PlanCounts::default(),
        ..batch
    }
}

#[test]
fn one_epoch_gives_every_document_once_and_restorable() {
    let memory = captions(500);
    let documents = memory.clone();
    let stream = stream(config(), vec![source(memory, Some(1))], cm3());
    let mut seen = HashMap::new();
    for batch in batches(&stream, Cursor::default(), usize::MAX) {
        for (ids, _, _) in documents_by_row(&batch).concat() {
            let restored = restore(&ids, &[3, 4, 5, 6], 7).unwrap();
            let number = u64::try_from(restored[1] - 1_000).unwrap();
            let mut expected = vec![0; restored.len()];
            let sequences = documents.document_sequences(number).unwrap();
            documents.read_into(sequences, 0, &mut expected).unwrap();
            assert_eq!(restored, expected);
            *seen.entry(number).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 500);
    assert!(seen.values().all(|times| *times == 1));
}

#[test]
fn rows_keep_the_contract_of_a_batch() {
    let stream = caption_stream(config());
    for batch in batches(&stream, Cursor::default(), 20) {
        let mut weight_sum = 0.0;
        let mut num_tokens = 0;
        let mut num_documents = 0;
        let mut ends = vec![0];
        for row in 0..batch.num_rows {
            let mut position = row * batch.row_tokens;
            let documents = documents_by_row(&batch);
            for (number, (ids, labels, weights)) in (1..).zip(&documents[row]) {
                let range = position..position + ids.len();
                assert!(
                    batch.document_ids[range.clone()]
                        .iter()
                        .all(|d| *d == number),
                    "one run"
                );
                assert!(
                    batch.position_ids[range]
                        .iter()
                        .copied()
                        .eq(0..i32::try_from(ids.len()).unwrap())
                );
                let (last, before) = labels.split_last().unwrap();
                assert_eq!(before, &ids[1..], "labels are the ids one ahead");
                assert_eq!((*last, *weights.last().unwrap()), (IGNORED_LABEL, 0.0));
                for (label, weight) in before.iter().zip(weights) {
                    let expected = if (3..=6).contains(label) { 0.0 } else { 1.0 };
                    assert_eq!(weight.to_bits(), f32::to_bits(expected), "label {label}");
                }
                weight_sum += weights.iter().map(|w| f64::from(*w)).sum::<f64>();
                num_tokens += ids.len() as u64;
                num_documents += 1;
                position += ids.len();
                ends.push(position);
            }
            let end = (row + 1) * batch.row_tokens;
            for i in position..end {
                let padding = (batch.input_ids[i], batch.labels[i], batch.loss_weights[i]);
                assert_eq!(padding, (PAD, IGNORED_LABEL, 0.0));
                assert_eq!(
                    (
                        batch.document_ids[i],
                        batch.position_ids[i],
                        batch.modality_ids[i]
                    ),
                    (0, 0, 0)
                );
            }
            if position < end {
                ends.push(end);
            }
        }
        for (id, modality) in batch.input_ids.iter().zip(&batch.modality_ids) {
            assert_eq!(*modality, u8::from((500..564).contains(id)));
        }
        let ends: Vec<i32> = ends
            .into_iter()
            .map(|end| i32::try_from(end).unwrap())
            .collect();
        assert_eq!(batch.cu_seqlens, ends);
        assert_eq!(
            Some(batch.max_seqlen),
            ends.windows(2).map(|w| w[1] - w[0]).max()
        );
        assert_eq!(
            (batch.weight_sum, batch.num_tokens, batch.num_documents),
            (weight_sum, num_tokens, num_documents)
        );
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_global_rows() {
    let alone = batches(&caption_stream(config()), Cursor::default(), 25);
    for world_size in [2, 3, 4, 6, 8] {
        let ranks: Vec<Vec<Batch>> = (0..world_size)
            .map(|rank| {
                let config = StreamConfig {
                    rank,
                    world_size,
                    ..config()
                };
                batches(&caption_stream(config), Cursor::default(), 25)
            })
            .collect();
        for (step, whole) in alone.iter().enumerate() {
            let expected = documents_by_row(whole);
            let mut tokens = 0;
            for (rank, steps) in ranks.iter().enumerate() {
                let part = &steps[step];
                assert_eq!(part.num_rows, 7usize.div_ceil(world_size as usize));
                assert_eq!(part.cursor, whole.cursor);
                for (row, documents) in documents_by_row(part).into_iter().enumerate() {
                    let bin = rank + row * world_size as usize;
                    let whole = expected.get(bin).cloned().unwrap_or_default();
                    assert_eq!(
                        documents, whole,
                        "{world_size} ranks, step {step}, bin {bin}"
                    );
                }
                assert_eq!(
                    usize::try_from(*part.cu_seqlens.last().unwrap()).unwrap(),
                    part.num_rows * part.row_tokens
                );
                tokens += part.num_tokens;
            }
            assert_eq!(tokens, whole.num_tokens);
        }
    }
}

#[test]
fn a_stream_continued_at_any_step_is_the_unbroken_stream() {
    let stream = caption_stream(config());
    let unbroken = batches(&stream, Cursor::default(), 30);
    assert!(
        unbroken.last().unwrap().cursor.window > 5,
        "several windows are crossed"
    );
    for step in 0..29 {
        let state = stream.state_at(unbroken[step].cursor);
        let again = caption_stream(config());
        let mut feeder = Feeder::new(&again, again.cursor_of(&state).unwrap());
        for expected in &unbroken[step + 1..(step + 4).min(30)] {
            let batch = fed(&again, &mut feeder).unwrap().unwrap();
            assert_eq!(
                content(batch),
                content(expected.clone()),
                "continued after step {step}"
            );
        }
    }
}

#[test]
fn prefetching_threads_deliver_the_same_batches_and_positions() {
    let stream = caption_stream(config());
    let expected = batches(&stream, Cursor::default(), 40);
    for num_batches in [0, 1, 3, 16] {
        let mut prefetcher = Prefetcher::new(Arc::clone(&stream), num_batches);
        for expected in &expected {
            assert_eq!(&next(&stream, &mut prefetcher).unwrap(), expected);
            assert_eq!(prefetcher.delivered(), expected.cursor);
        }
        prefetcher.seek(expected[4].cursor);
        assert_eq!(
            content(next(&stream, &mut prefetcher).unwrap()),
            content(expected[5].clone())
        );
    }
}

#[test]
fn a_finite_stream_ends_after_a_padded_batch_and_stays_ended() {
    let stream = stream(config(), vec![source(captions(100), Some(2))], cm3());
    assert_eq!(stream.dry_point().unwrap().0.num_documents, 200);
    let all = batches(&stream, Cursor::default(), usize::MAX);
    assert_eq!(all.iter().map(|b| b.num_documents).sum::<u64>(), 200);
    let last = all.last().unwrap();
    let rows = documents_by_row(last);
    assert!(
        !rows[0].is_empty() && rows[6].is_empty(),
        "the last batch is short"
    );
    assert_eq!(last.counts.documents, 200);
    assert!(batches(&stream, last.cursor, 1).is_empty());
    assert!(stream.cursor_of(&stream.state_at(last.cursor)).is_ok());
    let beyond = Cursor {
        window: last.cursor.window + 2,
        bin: 0,
    };
    let error = stream.cursor_of(&stream.state_at(beyond)).unwrap_err();
    assert!(error.to_string().contains("past the end"), "{error}");
    let mut prefetcher = Prefetcher::new(Arc::clone(&stream), 2);
    assert_eq!(
        std::iter::from_fn(|| next(&stream, &mut prefetcher)).count(),
        all.len()
    );
    assert!(next(&stream, &mut prefetcher).is_none());
}

#[test]
fn a_panic_in_a_thread_reaches_the_caller() {
    let mut memory = captions(100);
    memory.panics = true;
    let stream = stream(config(), vec![source(memory, None)], cm3());
    let mut prefetcher = Prefetcher::new(Arc::clone(&stream), 2);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        next(&stream, &mut prefetcher)
    }));
    assert!(result.is_err());
}

#[test]
fn seeds_windows_and_epochs_are_shuffled_differently() {
    let first = batches(&caption_stream(config()), Cursor::default(), 3);
    let other_seed = StreamConfig {
        seed: 18,
        ..config()
    };
    let other = batches(&caption_stream(other_seed), Cursor::default(), 3);
    assert!(
        first
            .iter()
            .zip(&other)
            .all(|(a, b)| a.input_ids != b.input_ids)
    );
}

#[test]
fn a_state_of_another_stream_is_refused_and_says_what_differs() {
    let stream = caption_stream(config());
    let state = stream.state_at(Cursor { window: 1, bin: 2 });
    assert_eq!(
        stream.cursor_of(&state).unwrap(),
        Cursor { window: 1, bin: 2 }
    );
    let refused = |stream: &Stream| stream.cursor_of(&state).unwrap_err().to_string();
    let window = StreamConfig {
        window_documents: 65,
        ..config()
    };
    assert!(refused(&caption_stream(window)).contains("packing (packing, window_documents"));
    let seed = StreamConfig {
        seed: 1,
        ..config()
    };
    assert!(refused(&caption_stream(seed)).contains("seed 17"));
    let objective = super::testing::stream(
        config(),
        vec![source(captions(150), None)],
        Objective::next_token(None),
    );
    assert!(refused(&objective).contains("another objective"));
    let data = super::testing::stream(config(), vec![source(captions(151), Some(1))], cm3());
    let text = refused(&data);
    assert!(
        text.contains("blend (weights") && text.contains("data (the documents"),
        "{text}"
    );
    // The batch size and the number of ranks may change.
    let batch = StreamConfig {
        global_batch_bins: 3,
        rank: 1,
        world_size: 2,
        ..config()
    };
    caption_stream(batch).cursor_of(&state).unwrap();
    let past = Cursor {
        window: 0,
        bin: 1_000,
    };
    let errors = [
        stream.cursor_of(&stream.state_at(past)).unwrap_err(),
        fed(&stream, &mut Feeder::new(&stream, past)).unwrap_err(),
    ];
    for error in errors {
        assert!(
            error.to_string().contains("bin 1000 of window 0"),
            "{error}"
        );
    }
}

fn planned(
    parts: &[(u32, u8)],
    overlong: Overlong,
    bin_tokens: u32,
) -> (Vec<Vec<i64>>, PlanCounts) {
    let memory = Memory::new(&[document(parts), document(&[(4, 0)])]);
    let config = StreamConfig {
        bin_tokens,
        overlong,
        ..config()
    };
    let stream = stream(
        config,
        vec![source(memory, Some(1))],
        Objective::next_token(None),
    );
    let all = batches(&stream, Cursor::default(), usize::MAX);
    let mut documents: Vec<Vec<i64>> = all
        .iter()
        .flat_map(|batch| documents_by_row(batch).concat())
        .map(|(ids, _, _)| ids)
        .filter(|ids| ids != &[10, 11, 12, 13])
        .collect();
    documents.sort();
    (documents, all.last().unwrap().counts)
}

#[test]
fn overlong_documents_are_cut_split_or_left_out_by_the_rule() {
    let pair = [(10, 0), (16, 1), (3, 0)];
    let counts = PlanCounts {
        documents: 2,
        ..PlanCounts::default()
    };
    let ids = |start: i64, end: i64| (start..end).collect::<Vec<i64>>();
    // Cut in the closing text, and before the image.
    let truncated = PlanCounts {
        truncated: 1,
        ..counts
    };
    assert_eq!(
        planned(&pair, Overlong::Truncate, 27),
        (vec![ids(10, 37)], truncated)
    );
    assert_eq!(
        planned(&pair, Overlong::Truncate, 25),
        (vec![ids(10, 20)], truncated)
    );
    let split = PlanCounts { split: 1, ..counts };
    assert_eq!(
        planned(&pair, Overlong::Split, 25),
        (vec![ids(10, 20), ids(20, 39)], split)
    );
    assert_eq!(
        planned(&pair, Overlong::Split, 17),
        (vec![ids(10, 20), ids(20, 37), ids(37, 39)], split)
    );
    let dropped = PlanCounts {
        dropped: 1,
        ..counts
    };
    assert_eq!(planned(&pair, Overlong::Drop, 25), (vec![], dropped));
    // An image that fits no row takes its document with it, and truncation keeps what is before it.
    assert_eq!(planned(&pair, Overlong::Split, 15), (vec![], dropped));
    assert_eq!(
        planned(&pair, Overlong::Truncate, 15),
        (vec![ids(10, 20)], truncated)
    );
    assert_eq!(
        planned(&[(16, 1), (3, 0)], Overlong::Truncate, 15),
        (vec![], dropped)
    );
    // What fits is left alone.
    assert_eq!(
        planned(&pair, Overlong::Error, 29),
        (vec![ids(10, 39)], counts)
    );
    let (documents, found) = planned(&[], Overlong::Error, 29);
    assert_eq!(
        (documents, found),
        (vec![], PlanCounts { empty: 1, ..counts })
    );
}

#[test]
fn an_overlong_document_is_an_error_that_names_it_and_its_source() {
    let memory = Memory::new(&[document(&[(30, 0)])]);
    let config = StreamConfig {
        bin_tokens: 25,
        ..config()
    };
    let stream = stream(config, vec![source(memory, None)], cm3());
    let error = stream.plan(0).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("document 0 of memory has 30 ids") && error.contains("row of 25"),
        "{error}"
    );
}

#[test]
fn a_limit_below_the_row_bounds_documents_with_their_spans() {
    let limited = |overlong, most| StreamConfig {
        bin_tokens: 400,
        max_document_tokens: Some(most),
        overlong,
        ..config()
    };
    let long = || {
        let memory = Memory::new(&[document(&[(100, 0)]), document(&[(40, 0), (20, 0)])]);
        vec![source(memory, Some(20))]
    };
    for overlong in [Overlong::Truncate, Overlong::Split, Overlong::Drop] {
        let stream = stream(limited(overlong, 64), long(), cm3());
        let lengths: Vec<Vec<usize>> = batches(&stream, Cursor::default(), usize::MAX)
            .iter()
            .flat_map(documents_by_row)
            .map(|row| row.iter().map(|(ids, _, _)| ids.len()).collect())
            .collect();
        let longest = lengths.concat().into_iter().max().unwrap();
        assert!(longest > 60 && longest <= 64, "{overlong:?}: {longest}");
        assert!(lengths.iter().any(|row| row.len() > 4), "rows stay long");
    }
    let stream = stream(limited(Overlong::Error, 64), long(), cm3());
    let error = stream.plan(0).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("has 100 ids and does not fit max_document_tokens 64; raise it"),
        "{error}"
    );
}

#[test]
fn a_limit_is_part_of_the_packing_only_where_it_binds() {
    let limited = |most| {
        caption_stream(StreamConfig {
            max_document_tokens: most,
            ..config()
        })
    };
    let state = limited(None).state_at(Cursor::default());
    limited(Some(96)).cursor_of(&state).unwrap();
    limited(Some(4_096)).cursor_of(&state).unwrap();
    let error = limited(Some(64)).cursor_of(&state).unwrap_err();
    assert!(error.to_string().contains("max_document_tokens"), "{error}");
}

#[test]
fn a_stream_of_nothing_that_fits_is_an_error_and_not_an_endless_search() {
    let memory = Memory::new(&[document(&[(30, 1)]), document(&[])]);
    let config = StreamConfig {
        bin_tokens: 25,
        overlong: Overlong::Drop,
        window_documents: 3,
        ..config()
    };
    let stream = stream(config, vec![source(memory, None)], cm3());
    let mut feeder = Feeder::new(&stream, Cursor::default());
    let error = fed(&stream, &mut feeder).unwrap_err();
    assert!(error.to_string().contains("fits a row of 25"), "{error}");
}

#[test]
fn split_pieces_are_masked_within_the_row_and_restore_to_the_document() {
    let memory = Memory::new(&[document(&[(1_000, 0)])]);
    let config = StreamConfig {
        overlong: Overlong::Split,
        ..config()
    };
    let stream = stream(config, vec![source(memory, Some(5))], cm3());
    let mut pieces: Vec<Vec<i64>> = batches(&stream, Cursor::default(), usize::MAX)
        .iter()
        .flat_map(|batch| documents_by_row(batch).concat())
        .map(|(ids, _, _)| restore(&ids, &[3, 4, 5, 6], 7).unwrap())
        .collect();
    pieces.sort();
    let mut all = pieces.concat();
    all.sort_unstable();
    assert!(all.into_iter().eq((10..1_010).flat_map(|id| [id; 5])));
    assert!(pieces.len() > 50 && pieces.iter().all(|piece| piece.len() <= 96));
}

#[test]
fn ids_outside_the_vocabulary_name_the_document() {
    let config = StreamConfig {
        vocabulary_size: Some(1_100),
        ..config()
    };
    let stream = stream(config, vec![source(captions(150), Some(1))], cm3());
    let mut feeder = Feeder::new(&stream, Cursor::default());
    let error = loop {
        match fed(&stream, &mut feeder) {
            Ok(batch) => assert!(batch.is_some()),
            Err(error) => break error,
        }
    };
    let text = error.to_string();
    assert!(matches!(error, Error::VocabularyMismatch(_)), "{text}");
    assert!(
        text.contains("of memory has id 11") && text.contains("at position 1,"),
        "{text}"
    );
}

#[test]
fn noise_does_not_reach_labels() {
    let noise = ImageNoise::new(1.0, vec![500..532, 532..564]).unwrap();
    let noisy = stream(
        config(),
        vec![source(captions(150), None)],
        Objective::next_token(noise),
    );
    let clean = stream(
        config(),
        vec![source(captions(150), None)],
        Objective::next_token(None),
    );
    let (noisy, clean) = (
        batches(&noisy, Cursor::default(), 3),
        batches(&clean, Cursor::default(), 3),
    );
    for (noisy, clean) in noisy.iter().zip(&clean) {
        assert_eq!(noisy.labels, clean.labels);
        assert_ne!(noisy.input_ids, clean.input_ids);
    }
}

#[test]
fn unusable_configurations_are_refused() {
    let refused = |config: StreamConfig| {
        let sources = vec![source(captions(5), None)];
        Stream::new(config, sources, cm3())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused(StreamConfig {
            window_documents: 0,
            ..config()
        })
        .contains("window_documents")
    );
    assert!(
        refused(StreamConfig {
            bin_tokens: 0,
            ..config()
        })
        .contains("bin_tokens")
    );
    assert!(
        refused(StreamConfig {
            global_batch_bins: 0,
            ..config()
        })
        .contains("global_batch_bins")
    );
    assert!(
        refused(StreamConfig {
            rank: 2,
            world_size: 2,
            ..config()
        })
        .contains("rank 2")
    );
    let huge = StreamConfig {
        bin_tokens: 1 << 20,
        global_batch_bins: 1 << 12,
        ..config()
    };
    assert!(refused(huge).contains("2^31"));
    let empty = Stream::new(config(), vec![source(captions(0), None)], cm3());
    assert!(
        empty
            .map(|_| ())
            .unwrap_err()
            .to_string()
            .contains("memory")
    );
}

#[test]
fn parts_of_sequences_keep_modes_and_drop_what_lies_outside() {
    let sequences: Vec<Sequence> = [(5, 0), (0, 3), (16, 1), (4, 0x40)]
        .map(|(length, mode)| Sequence { length, mode })
        .to_vec();
    let part = |start, length| lengths(&window::part_of(&sequences, start, length));
    assert_eq!(part(0, 25), [(5, 0), (16, 1), (4, 0x40)]);
    assert_eq!(part(3, 2), [(2, 0)]);
    assert_eq!(part(5, 17), [(16, 1), (1, 0x40)]);
    assert_eq!(part(24, 1), [(1, 0x40)]);
}

#[test]
fn planned_lengths_bound_what_is_written() {
    let stream = caption_stream(config());
    for batch in batches(&stream, Cursor::default(), 10) {
        assert_eq!(batch.input_ids.len(), 7 * 96);
    }
    // Shortening a document never raises its number of spans, on which cuts rely.
    let objective = cm3().seeded(3);
    for number in 0..2_000 {
        let key = DocumentKey::new(0, 0, number, 0).unwrap();
        let whole: Vec<Sequence> = [(3, 0), (4, 1), (2, 0x40)]
            .map(|(length, mode)| Sequence { length, mode })
            .to_vec();
        let most = objective.num_spans_at_most(key, &whole);
        for length in 0..9 {
            let part = window::part_of(&whole, 0, length);
            assert!(objective.num_spans_at_most(key, &part) <= most);
        }
    }
}
