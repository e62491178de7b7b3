//! CM3 against its golden vectors, its invariants on random documents and its published statistics.

use super::*;
use crate::objective::{ImageNoise, Objective, SeededObjective, Transformed, total_length};
use crate::random::DocumentKey;
use proptest::prelude::*;

const EOS: i64 = 1;
const BREAK: i64 = 2;
const EOSS: i64 = 99;
const IMAGE_CODES: [std::ops::Range<i64>; 2] = [2_000..2_032, 2_032..2_064];

fn cm3() -> Cm3 {
    Cm3 {
        count: SpanCount::Poisson(PoissonTable::new("span_rate", 1.0).unwrap()),
        min_spans: 0,
        max_spans: 16,
        whole_segment: Chance::new("whole_segment_prob", 0.0).unwrap(),
        whole_segment_modality: None,
        sentinel_loss_weight: 0.0,
        sentinels: (100..116).collect(),
        eoss: EOSS,
        separators: vec![EOS, BREAK],
    }
}

fn key(document: u64) -> DocumentKey {
    DocumentKey::new(2, 3, document, 0).unwrap()
}

fn text(ids: &[i64]) -> Vec<Sequence> {
    vec![Sequence {
        length: u32::try_from(ids.len()).unwrap(),
        mode: 0,
    }]
}

fn transform(
    objective: &SeededObjective,
    document: u64,
    sequences: &[Sequence],
    ids: &[i64],
) -> Transformed {
    let mut output = Transformed::default();
    objective.transform(key(document), sequences, ids, u64::MAX, &mut output);
    output
}

fn written(spans: &[(usize, usize)], ids: &[i64]) -> Vec<i64> {
    let spans: Vec<Span> = spans
        .iter()
        .map(|(start, end)| Span {
            start: *start,
            end: *end,
        })
        .collect();
    let mut output = Transformed::default();
    let original = Original {
        sequences: &text(ids),
        ids,
        noise: None,
    };
    cm3().write(&spans, &original, &mut output);
    output.ids
}

#[test]
fn golden_vectors() {
    let document: Vec<i64> = (10..20).collect();
    assert_eq!(
        written(&[(2, 5)], &document),
        [10, 11, 100, 15, 16, 17, 18, 19, 100, 12, 13, 14, 99]
    );
    assert_eq!(
        written(&[(1, 3), (6, 8)], &document),
        [
            10, 100, 13, 14, 15, 101, 18, 19, 100, 11, 12, 99, 101, 16, 17, 99
        ]
    );
    assert_eq!(written(&[], &document), document);
}

#[test]
fn poisson_shares_are_those_of_the_clamped_distribution() {
    let ids: Vec<i64> = (1_000..2_000).collect();
    let documents = 40_000;
    for (min_spans, expected) in [
        (1, [0.0, 0.7358, 0.1839, 0.0613]),
        (0, [0.3679, 0.3679, 0.1839, 0.0613]),
    ] {
        let objective = Objective::cm3(Cm3 { min_spans, ..cm3() }, None).seeded(11);
        let mut shares = [0.0; 17];
        for document in 0..documents {
            let output = transform(&objective, document, &text(&ids), &ids);
            shares[output.num_spans] += 1.0 / documents as f64;
        }
        for (count, share) in expected.into_iter().enumerate() {
            assert!(
                (shares[count] - share).abs() < 0.01,
                "clamp({min_spans}, 16): {shares:?}"
            );
        }
    }
}

/// `eos caption break | image | eos`, caption of 10 ids, image of 64.
fn pair() -> (Vec<Sequence>, Vec<i64>) {
    let mut ids = vec![EOS];
    ids.extend(1_000..1_010);
    ids.push(BREAK);
    ids.extend(2_000..2_064);
    ids.push(EOS);
    let sequences = [(12, 0), (64, 1), (1, 0)].map(|(length, mode)| Sequence { length, mode });
    (sequences.to_vec(), ids)
}

#[test]
fn whole_segments_have_the_configured_share_and_modality() {
    let (sequences, ids) = pair();
    let documents = 100_000;
    for modality in [None, Some(0), Some(1)] {
        let objective = Objective::cm3(
            Cm3 {
                count: SpanCount::Fixed(0),
                whole_segment: Chance::new("p", 0.3).unwrap(),
                whole_segment_modality: modality,
                ..cm3()
            },
            None,
        )
        .seeded(5);
        let (mut hits, mut captions, mut images) = (0u32, 0u32, 0u32);
        for document in 0..documents {
            let output = transform(&objective, document, &sequences, &ids);
            hits += u32::from(output.num_spans == 1);
            captions += u32::from(output.ids.starts_with(&[EOS, 100, BREAK]));
            images += u32::from(output.ids[..13].ends_with(&[BREAK, 100]));
        }
        let share = f64::from(hits) / documents as f64;
        assert!((share - 0.3).abs() < 0.005, "{share}");
        assert_eq!(captions + images, hits);
        match modality {
            Some(0) => assert_eq!(images, 0),
            Some(_) => assert_eq!(captions, 0),
            None => assert!((f64::from(captions) / f64::from(hits) - 0.5).abs() < 0.02),
        }
    }
}

#[test]
fn a_document_without_the_wanted_segment_is_masked_like_any_other() {
    let ids: Vec<i64> = (1_000..1_100).collect();
    let config = |whole: f64| {
        Objective::cm3(
            Cm3 {
                whole_segment: Chance::new("p", whole).unwrap(),
                whole_segment_modality: Some(1),
                ..cm3()
            },
            None,
        )
        .seeded(5)
    };
    for document in 0..200 {
        assert_eq!(
            transform(&config(1.0), document, &text(&ids), &ids),
            transform(&config(0.0), document, &text(&ids), &ids)
        );
    }
}

#[test]
fn sentinels_weigh_what_was_asked_and_context_weighs_nothing() {
    let (mut sequences, ids) = pair();
    sequences[0].mode = 0x40;
    let objective = Objective::cm3(
        Cm3 {
            count: SpanCount::Fixed(1),
            sentinel_loss_weight: 0.25,
            ..cm3()
        },
        None,
    )
    .seeded(1);
    for document in 0..100 {
        let output = transform(&objective, document, &sequences, &ids);
        assert_eq!(output.num_spans, 1);
        for ((id, weight), modality) in output
            .ids
            .iter()
            .zip(&output.weights)
            .zip(&output.modalities)
        {
            let (expected_weight, expected_modality) = match id {
                100 => (0.25, 0),
                2_000..2_064 => (1.0, 1),
                1_000..1_010 | &BREAK => (0.0, 0),
                &EOSS => (1.0, 0),
                _ => continue, // eos stands in a sequence with loss and in one without
            };
            assert_eq!(
                (*weight, *modality),
                (expected_weight, expected_modality),
                "id {id}"
            );
        }
    }
}

#[test]
fn a_document_that_fills_its_row_gets_only_the_spans_that_fit() {
    let ids: Vec<i64> = (1_000..1_100).collect();
    let objective = Objective::cm3(
        Cm3 {
            count: SpanCount::Fixed(4),
            ..cm3()
        },
        None,
    )
    .seeded(1);
    for (max_tokens, spans) in [(100, 0), (102, 0), (103, 1), (109, 3), (112, 4), (200, 4)] {
        let mut output = Transformed::default();
        objective.transform(key(0), &text(&ids), &ids, max_tokens, &mut output);
        assert_eq!(output.num_spans, spans, "{max_tokens}");
        assert_eq!(output.ids.len(), 100 + 3 * spans);
    }
}

#[test]
fn noise_changes_inputs_and_nothing_else() {
    let (sequences, ids) = pair();
    let noise = ImageNoise::new(0.5, IMAGE_CODES.to_vec()).unwrap();
    let noisy = Objective::cm3(cm3(), noise).seeded(1);
    let clean = Objective::cm3(cm3(), None).seeded(1);
    let mut changed = 0;
    for document in 0..100 {
        let noisy = transform(&noisy, document, &sequences, &ids);
        let clean = transform(&clean, document, &sequences, &ids);
        changed += noisy
            .input_ids
            .iter()
            .zip(&noisy.ids)
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(
            clean,
            Transformed {
                input_ids: clean.ids.clone(),
                ..noisy
            }
        );
    }
    assert!(
        (2_900..3_400).contains(&changed),
        "{changed} of 6,400 image ids"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for bad in [
        Cm3 {
            max_spans: 17,
            ..cm3()
        },
        Cm3 {
            min_spans: 5,
            max_spans: 4,
            ..cm3()
        },
        Cm3 {
            sentinel_loss_weight: f32::NAN,
            ..cm3()
        },
        Cm3 {
            sentinels: Vec::new(),
            max_spans: 0,
            whole_segment: Chance::new("p", 0.1).unwrap(),
            ..cm3()
        },
    ] {
        assert!(bad.checked().is_err());
    }
    assert!(cm3().checked().is_ok());
}

#[test]
fn broken_documents_are_not_restored() {
    for bad in [
        &[100, 5][..],
        &[100, 5, 100, 7],
        &[100, 5, 100, 7, 99, 100],
        &[101, 5, 100, 6, 100, 7, 99, 101, 8, 99],
    ] {
        assert!(restore(bad, &[100, 101], EOSS).is_err(), "{bad:?}");
    }
}

fn documents() -> impl Strategy<Value = (Vec<Sequence>, Vec<i64>)> {
    let id = prop_oneof![1 => Just(EOS), 1 => Just(BREAK), 8 => 1_000i64..2_000];
    let mode = prop_oneof![Just(0u8), Just(1), Just(2), Just(0x40), Just(0x41)];
    prop::collection::vec((prop::collection::vec(id, 0..40), mode), 0..6).prop_map(|sequences| {
        let lengths = sequences.iter().map(|(ids, mode)| Sequence {
            length: u32::try_from(ids.len()).unwrap(),
            mode: *mode,
        });
        (
            lengths.collect(),
            sequences.iter().flat_map(|(ids, _)| ids.clone()).collect(),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn every_transform_keeps_the_promises(
        (sequences, ids) in documents(),
        document in 0u64..1 << 40,
        whole in prop_oneof![Just(0.0), Just(0.5), Just(1.0)],
        count in prop_oneof![Just(None), (0u64..5).prop_map(Some)],
        room in 0u64..20,
    ) {
        let cm3 = Cm3 {
            count: count.map_or(cm3().count, SpanCount::Fixed),
            whole_segment: Chance::new("p", whole).unwrap(),
            ..cm3()
        };
        let objective = Objective::cm3(cm3, None).seeded(8);
        let mut output = Transformed::default();
        let max_tokens = ids.len() as u64 + room;
        objective.transform(key(document), &sequences, &ids, max_tokens, &mut output);

        prop_assert_eq!(total_length(&sequences), ids.len() as u64);
        prop_assert_eq!(output.ids.len(), ids.len() + 3 * output.num_spans);
        prop_assert!(output.ids.len() as u64 <= max_tokens);
        prop_assert!(output.num_spans as u64 <= objective.num_spans_at_most(key(document), &sequences));
        prop_assert_eq!(output.modalities.len(), output.ids.len());
        prop_assert_eq!(output.weights.len(), output.ids.len());
        for sentinel in 100..116 {
            let times = output.ids.iter().filter(|id| **id == sentinel).count();
            let used = usize::try_from(sentinel - 100).unwrap() < output.num_spans;
            prop_assert_eq!(times, if used { 2 } else { 0 });
        }
        let sentinels: Vec<i64> = (100..116).collect();
        prop_assert_eq!(&restore(&output.ids, &sentinels, EOSS).unwrap(), &ids);
        // What was moved: never empty, no separator.
        if output.num_spans > 0 {
            let tail = output.ids.iter().rposition(|id| *id == 100).unwrap();
            for span in output.ids[tail..].split(|id| *id == EOSS).filter(|span| !span.is_empty()) {
                prop_assert!(span.len() > 1, "an empty span was moved");
                prop_assert!(!span.contains(&EOS) && !span.contains(&BREAK));
            }
        }
    }
}
