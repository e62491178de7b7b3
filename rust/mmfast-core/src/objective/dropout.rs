//! Captions left out of some documents, so that a model learns to draw without one: what guidance compares
//! with (classifier-free guidance, Ho and Salimans 2022).
//!
//! A caption is the text from a document's begin to its first image, video or end marker, such as the id
//! that begins an image. Its special ids stay, so `eos a red fox break [image] eos` becomes
//! `eos break [image] eos`, the prompt that asks for any image.

use super::{IMAGE, MODALITY_BITS, Sequence, TEXT, VIDEO, is_media};
use crate::error::Result;
use crate::random::{Chance, DocumentDraws};

/// With a given probability a document loses its caption.
#[derive(Debug, Clone)]
pub struct CaptionDropout {
    chance: Chance,
    special: Vec<i64>,
    ends: Vec<i64>,
}

impl CaptionDropout {
    /// Dropout of a probability; `None` for probability 0.
    ///
    /// `special` are ids that are never left out, `ends` those of them that end a caption.
    pub fn new(probability: f64, special: Vec<i64>, ends: Vec<i64>) -> Result<Option<Self>> {
        let chance = Chance::new("caption_dropout", probability)?;
        Ok(chance.is_possible().then_some(Self {
            chance,
            special,
            ends,
        }))
    }

    /// Text for a fingerprint.
    pub(crate) fn description(&self) -> String {
        format!(
            "caption dropout 1: {:?} {:?} {:?}",
            self.chance, self.special, self.ends
        )
    }

    /// The document without its caption, `None` if it keeps it or has none.
    pub(crate) fn without_caption(
        &self,
        draws: &DocumentDraws,
        sequences: &[Sequence],
        ids: &[i64],
    ) -> Option<(Vec<Sequence>, Vec<i64>)> {
        let is_picture = |s: &Sequence| matches!(s.mode & MODALITY_BITS, IMAGE | VIDEO);
        if !self.chance.happens(draws.pair(0).0) || !sequences.iter().any(is_picture) {
            return None;
        }
        let mut kept_sequences = Vec::with_capacity(sequences.len());
        let mut kept_ids = Vec::with_capacity(ids.len());
        let mut in_caption = true;
        let mut offset = 0;
        for sequence in sequences {
            let next = offset + sequence.length as usize;
            let run = ids.get(offset..next).unwrap_or_default();
            offset = next;
            in_caption &= !is_picture(sequence);
            let before = kept_ids.len();
            if in_caption && sequence.mode & MODALITY_BITS == TEXT && !is_media(sequence.mode) {
                for id in run {
                    in_caption &= !self.ends.contains(id);
                    if !in_caption || self.special.contains(id) {
                        kept_ids.push(*id);
                    }
                }
            } else {
                kept_ids.extend_from_slice(run);
            }
            kept_sequences.push(Sequence {
                length: u32::try_from(kept_ids.len() - before).unwrap_or(sequence.length),
                mode: sequence.mode,
            });
        }
        (kept_ids.len() < ids.len()).then_some((kept_sequences, kept_ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{DocumentKey, Generator, Purpose};

    fn without(sequences: &[(u32, u8)], ids: &[i64]) -> Option<(Vec<Sequence>, Vec<i64>)> {
        let dropout = CaptionDropout::new(1.0, vec![1, 2, 3], vec![2, 3])
            .unwrap()
            .unwrap();
        let key = DocumentKey::new(0, 0, 0, 0).unwrap();
        let draws = Generator::new(0, Purpose::CaptionDropout).document(key);
        let sequences: Vec<Sequence> = sequences
            .iter()
            .map(|(length, mode)| Sequence {
                length: *length,
                mode: *mode,
            })
            .collect();
        dropout.without_caption(&draws, &sequences, ids)
    }

    #[test]
    fn special_ids_stay_and_the_caption_goes() {
        let (sequences, ids) = without(
            &[(4, 0), (2, 0x40), (2, 1), (2, 0)],
            &[1, 10, 11, 12, 13, 2, 50, 51, 14, 1],
        )
        .unwrap();
        assert_eq!(ids, [1, 2, 50, 51, 14, 1]);
        let lengths: Vec<u32> = sequences.iter().map(|s| s.length).collect();
        assert_eq!(lengths, [1, 1, 2, 2]);
        assert_eq!(sequences[1].mode, 0x40);
    }

    #[test]
    fn text_behind_an_end_marker_is_no_caption() {
        let (_, ids) = without(&[(5, 0), (2, 1)], &[1, 10, 3, 20, 21, 50, 51]).unwrap();
        assert_eq!(ids, [1, 3, 20, 21, 50, 51]);
    }

    #[test]
    fn documents_without_pictures_or_captions_are_left_alone() {
        assert_eq!(without(&[(3, 0)], &[1, 10, 1]), None);
        assert_eq!(without(&[(2, 0), (1, 1)], &[1, 2, 50]), None);
        assert_eq!(without(&[(1, 1), (3, 0)], &[50, 10, 11, 1]), None);
        assert_eq!(without(&[(2, 0x20), (1, 1)], &[10, 11, 50]), None);
    }
}
