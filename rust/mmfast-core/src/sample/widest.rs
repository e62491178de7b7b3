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
        inputs: &RowInputs<'_, F>, start: usize, keys: &mut [u32], tile: usize, loaded: &mut Loaded,
    ) = load::load;
    /// [`load::load_experts`]
    fn load_experts<F: Format>(
        inputs: &RowInputs<'_, F>, start: usize, keys: (&mut [u32], &mut [u32]), tile: usize,
        loaded: &mut Loaded,
    ) = load::load_experts;
    /// [`load::cut_experts`]
    fn cut_experts(
        penalty: Option<Penalty<'_>>, start: usize, keys: (&mut [u32], &[u32]), threshold: u32, tile: usize,
        loaded: &mut Loaded,
    ) = load::cut_experts;
    /// [`masses::weigh`]
    fn weigh<E: Entry>(entries: &[E], bound: E, scale: Scale, masses: &mut Vec<u64>) -> usize = masses::weigh;
    /// [`select::collect`]
    fn collect(keys: &[u32], first_id: usize, bound: u32, found: &mut Vec<Ranked>) = select::collect;
    /// [`select::kth_highest`]
    fn kth_highest<E: Entry>(
        entries: &[E], k: usize, buckets: &mut Buckets, edge: &mut Vec<E>,
    ) -> Option<E> = select::kth_highest;
    /// [`select::last_of_nucleus`]
    fn last_of_nucleus(
        entries: &[Ranked], bound: Ranked, scale: Scale, needed: u64, buckets: &mut Buckets,
        edge: &mut Vec<Ranked>,
    ) -> Ranked = select::last_of_nucleus;
}
