//! Loops over ids, compiled for each instruction set; the widest that the processor has is called.
//!
//! The source is one and uses no fused operations, so all of them give the same bits.

use super::load::{self, Loaded, RowInputs};
use super::logits::Format;
use super::masses;
use super::penalty::Penalty;
use super::select::{self, Buckets, Entry, Ranked};
use super::weight::Scale;

macro_rules! on_widest {
    ($(
        $(#[$doc:meta])*
        fn $name:ident $(<$generic:ident: $bound:path>)? (
            $($argument:ident: $kind:ty),* $(,)?
        ) $(-> $out:ty)? = $plain:path;
    )*) => {$(
        $(#[$doc])*
        pub(super) fn $name $(<$generic: $bound>)? ($($argument: $kind),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn on_avx512 $(<$generic: $bound>)? ($($argument: $kind),*) $(-> $out)? {
                    $plain($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn on_avx2 $(<$generic: $bound>)? ($($argument: $kind),*) $(-> $out)? {
                    $plain($($argument),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    #[expect(unsafe_code, reason = "a function for instructions that were detected")]
                    // SAFETY: the processor has every feature that the function is compiled with.
                    return unsafe { on_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    #[expect(unsafe_code, reason = "a function for instructions that were detected")]
                    // SAFETY: the processor has every feature that the function is compiled with.
                    return unsafe { on_avx2($($argument),*) };
                }
            }
            // Elsewhere the target's base instructions are wide enough (NEON).
            $plain($($argument),*)
        }
    )*};
}

on_widest! {
    /// [`load::load`]
    fn load<F: Format>(
        inputs: &RowInputs<'_, F>, start: usize, keys: &mut [u32], loaded: &mut Loaded,
    ) = load::load;
    /// [`load::load_experts`]
    fn load_experts<F: Format>(
        inputs: &RowInputs<'_, F>, start: usize, keys: (&mut [u32], &mut [u32]), loaded: &mut Loaded,
    ) = load::load_experts;
    /// [`load::cut_experts`]
    fn cut_experts(
        penalty: Option<Penalty<'_>>, start: usize, keys: (&mut [u32], &[u32]), threshold: u32,
        loaded: &mut Loaded,
    ) = load::cut_experts;
    /// [`masses::weigh`]
    fn weigh(keys: &[u32], bound: u32, scale: Scale, masses: &mut Vec<u64>) -> usize = masses::weigh;
    /// [`masses::weigh_each`]
    fn weigh_each(
        entries: &[Ranked], bound: Ranked, scale: Scale, weights: &mut Vec<u64>,
    ) -> u64 = masses::weigh_each;
    /// [`masses::cut_weights`]
    fn cut_weights(
        entries: &[Ranked], bound: Ranked, weights: &mut [u64],
    ) -> (u64, usize) = masses::cut_weights;
    /// [`masses::place_of`]
    fn place_of(weights: &[u64], target: u64) -> Option<usize> = masses::place_of;
    /// [`select::collect`]
    fn collect(keys: &[u32], first_id: usize, bound: u32, found: &mut Vec<Ranked>) = select::collect;
    /// [`select::kth_highest`]
    fn kth_highest<E: Entry>(
        entries: &[E], k: usize, buckets: &mut Buckets, edge: &mut Vec<E>,
    ) -> Option<E> = select::kth_highest;
    /// [`select::last_of_nucleus`]
    fn last_of_nucleus(
        weighed: (&[Ranked], &[u64]), bound: Ranked, scale: Scale, needed: u64, buckets: &mut Buckets,
        edge: &mut Vec<Ranked>,
    ) -> Ranked = select::last_of_nucleus;
}

#[cfg(test)]
mod tests {
    use super::super::logits::{F32, logit_of};
    use super::super::mix::Streams;
    use super::super::support::{Bits, Support};
    use super::*;

    /// Enough ids for whole tiles and a rest.
    const NUM_IDS: usize = 3_001;

    fn noise(seed: u64) -> Vec<f32> {
        (1..=3_001_u64)
            .map(|i| (i * seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48)
            .map(|bits| f32::from(u16::try_from(bits).unwrap()) / 9_000.0)
            .collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (cond, uncond, words) = (noise(3), noise(5), [0xFFFF_F0FF_u32; 94]);
        let inputs = RowInputs {
            streams: Streams::<F32>::new([(2.5, cond.as_slice())].into_iter(), Some(&uncond)),
            support: Support::Bits(Bits::new(&words, 1)),
            penalty: Some(Penalty {
                seen: Bits::new(&[0x0F0F_3333; 94], 2),
                factor: 1.3,
                offset: 0.0,
            }),
        };
        let (mut keys, mut plain_keys) = (vec![0; NUM_IDS], vec![0; NUM_IDS]);
        let (mut loaded, mut plain_loaded) = (Loaded::default(), Loaded::default());
        loaded.maxima.resize(512, 0);
        plain_loaded.maxima.resize(512, 0);
        load(&inputs, 0, &mut keys, &mut loaded);
        load::load(&inputs, 0, &mut plain_keys, &mut plain_loaded);
        assert_eq!(keys, plain_keys);
        assert_eq!(loaded.maxima, plain_loaded.maxima);

        let scale = Scale {
            top: logit_of(*loaded.maxima.iter().max().unwrap()),
            bits_per_logit: 1.3,
        };
        let (mut masses, mut plain_masses) = (Vec::new(), Vec::new());
        let num_kept = weigh(&keys, 1, scale, &mut masses);
        assert_eq!(num_kept, masses::weigh(&keys, 1, scale, &mut plain_masses));
        assert_eq!(masses, plain_masses);

        let (mut buckets, mut edge) = (Buckets::default(), Vec::new());
        let bound = kth_highest(&loaded.maxima, 200, &mut buckets, &mut edge);
        let plain = select::kth_highest(&loaded.maxima, 200, &mut buckets, &mut edge);
        assert_eq!(bound, plain);
        let (mut found, mut plain_found) = (Vec::new(), Vec::new());
        collect(&keys, 7, bound.unwrap(), &mut found);
        select::collect(&keys, 7, bound.unwrap(), &mut plain_found);
        assert_eq!(found, plain_found);
        assert!(found.len() >= 200);

        let lowest = Ranked::lowest_of(1);
        let (mut weights, mut plain_weights) = (Vec::new(), Vec::new());
        let mass = weigh_each(&found, lowest, scale, &mut weights);
        let plain = masses::weigh_each(&found, lowest, scale, &mut plain_weights);
        assert_eq!((mass, &weights), (plain, &plain_weights));
        let (weighed, mut edge) = ((&found[..], &weights[..]), Vec::new());
        let last = last_of_nucleus(weighed, lowest, scale, mass / 3, &mut buckets, &mut edge);
        let plain =
            select::last_of_nucleus(weighed, lowest, scale, mass / 3, &mut buckets, &mut edge);
        assert_eq!(last, plain);
        let kept = cut_weights(&found, last, &mut weights);
        assert_eq!(kept, masses::cut_weights(&found, last, &mut plain_weights));
        assert_eq!(weights, plain_weights);
        let place = place_of(&weights, kept.0 / 2);
        assert_eq!(place, masses::place_of(&weights, kept.0 / 2));
        assert!(weights[place.unwrap()] > 0);
    }
}
