//! A row's function, compiled for each instruction set; the widest that the processor has is called.
//!
//! The source is one and uses no fused operations, so all of them give the same bits.

use super::logits::Format;
use super::mix::Streams;
use super::row::{RowDraw, RowParameters, Scratch, draw_row};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn draw_avx512<F: Format>(
    streams: &Streams<'_, F>,
    mask: Option<&[bool]>,
    parameters: RowParameters,
    scratch: &mut Scratch,
) -> RowDraw {
    draw_row(streams, mask, parameters, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn draw_avx2<F: Format>(
    streams: &Streams<'_, F>,
    mask: Option<&[bool]>,
    parameters: RowParameters,
    scratch: &mut Scratch,
) -> RowDraw {
    draw_row(streams, mask, parameters, scratch)
}

/// Draws from one row.
pub(super) fn draw_widest<F: Format>(
    streams: &Streams<'_, F>,
    mask: Option<&[bool]>,
    parameters: RowParameters,
    scratch: &mut Scratch,
) -> RowDraw {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            #[expect(unsafe_code, reason = "a function for instructions that were detected")]
            // SAFETY: the processor has every feature that the function is compiled with.
            return unsafe { draw_avx512(streams, mask, parameters, scratch) };
        }
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "a function for instructions that were detected")]
            // SAFETY: the processor has every feature that the function is compiled with.
            return unsafe { draw_avx2(streams, mask, parameters, scratch) };
        }
    }
    // Elsewhere the target's base instructions are wide enough (NEON).
    draw_row(streams, mask, parameters, scratch)
}

#[cfg(test)]
mod tests {
    use super::super::logits::F32;
    use super::super::weight::PROBABILITY_BITS;
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_draw() {
        let noise = |seed: u64| -> Vec<f32> {
            (1..=3_000_u64)
                .map(|i| (i * seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48)
                .map(|bits| f32::from(u16::try_from(bits).unwrap()) / 9_000.0)
                .collect()
        };
        let (cond, uncond) = (noise(3), noise(5));
        let mask: Vec<bool> = (0..3_000).map(|id| id % 7 != 3).collect();
        for (top_k, top_p) in [(0, 1.0), (0, 0.7), (40, 1.0), (200, 0.9)] {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most 2^31"
            )]
            let top_p = (top_p * f64::from(1_u32 << PROBABILITY_BITS)) as u64;
            let parameters = RowParameters {
                bits_per_logit: 1.3,
                greedy: false,
                top_k,
                top_p,
                min_p: 1 << 20,
                keep_ties: top_k == 40,
                min_p_first: false,
                random: 0x0123_4567_89AB_CDEF,
            };
            let streams = Streams::<F32>::new([(2.5, cond.as_slice())].into_iter(), Some(&uncond));
            let mut scratch = Scratch::default();
            let plain = draw_row(&streams, Some(&mask), parameters, &mut scratch);
            let widest = draw_widest(&streams, Some(&mask), parameters, &mut scratch);
            assert_eq!(plain, widest);
            assert!(plain.num_kept > 1);
        }
    }
}
