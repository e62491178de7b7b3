//! Loops over ids that are worth wider registers than every x86-64 processor has: compiled for AVX2 and
//! AVX-512 as well, and chosen when they run. All of them compute the same, whatever is chosen.

/// Compiles a loop three times; `$name` runs the widest form that the processor has.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        #[inline]
        $vis fn $name $(<$t: $bound>)? ($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn plain $(<$t: $bound>)? ($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$t: $bound>)? ($($arg: $type),*) $(-> $out)? { plain($($arg),*) }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$t: $bound>)? ($($arg: $type),*) $(-> $out)? { plain($($arg),*) }

                match width() {
                    Width::Avx512 => {
                        #[expect(unsafe_code, reason = "the processor is asked first")]
                        // SAFETY: `width` has found every feature that `avx512` is compiled for.
                        return unsafe { avx512($($arg),*) };
                    }
                    Width::Avx2 => {
                        #[expect(unsafe_code, reason = "the processor is asked first")]
                        // SAFETY: `width` has found the feature that `avx2` is compiled for.
                        return unsafe { avx2($($arg),*) };
                    }
                    Width::Plain => {}
                }
            }
            plain($($arg),*)
        }
    };
}

/// What the processor has.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Plain,
    Avx2,
    Avx512,
}

#[cfg(target_arch = "x86_64")]
fn width() -> Width {
    // The standard library keeps what it has found out.
    let has_512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (has_512, is_x86_feature_detected!("avx2")) {
        (true, _) => Width::Avx512,
        (false, true) => Width::Avx2,
        (false, false) => Width::Plain,
    }
}

widest! {
    /// Copies numbers to 64 bits, as many as both hold.
    pub(crate) fn widen<T: Narrow>(narrow: &[T], wide: &mut [i64]) {
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = (*narrow).into();
        }
    }
}

/// Number types that widen to 64 bits.
pub(crate) trait Narrow: Copy + Into<i64> {}
impl<T: Copy + Into<i64>> Narrow for T {}

widest! {
    /// Fills numbers with one value.
    pub(crate) fn fill<T: Copy>(numbers: &mut [T], value: T) {
        for slot in numbers.iter_mut() {
            *slot = value;
        }
    }
}

widest! {
    /// Whether all ids are in `0..size`.
    pub(crate) fn are_below(ids: &[i64], size: i64) -> bool {
        // The sign of `id | last - id` says whether an id is outside of 0..=last.
        let last = size.saturating_sub(1);
        let signs = ids
            .iter()
            .fold(0, |signs, id| signs | id | last.wrapping_sub(*id));
        signs >= 0
    }
}

widest! {
    /// Writes 0, 1, 2, ….
    pub(crate) fn count_up(numbers: &mut [i32]) {
        for (slot, number) in numbers.iter_mut().zip(0..) {
            *slot = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_offset_is_as_one_by_one() {
        let ids: Vec<i32> = (0..200).map(|i| (i - 100) * 21_474_836).collect();
        for start in 0..9 {
            for end in start..ids.len() {
                let narrow = &ids[start..end];
                let mut wide = vec![0; narrow.len()];
                widen(narrow, &mut wide);
                assert!(
                    wide.iter().eq(narrow
                        .iter()
                        .map(|&id| i64::from(id))
                        .collect::<Vec<_>>()
                        .iter())
                );
                let mut numbers = vec![-1; narrow.len()];
                count_up(&mut numbers);
                assert!((0..).zip(&numbers).all(|(i, number)| i == *number));
                fill(&mut numbers, 7);
                assert!(numbers.iter().all(|number| *number == 7));
            }
        }
        let mut bytes = [0; 3];
        widen(&[255_u8, 0, 7], &mut bytes);
        assert_eq!(bytes, [255, 0, 7]);
    }

    #[test]
    fn one_id_outside_is_found_wherever_it_stands() {
        for size in [1, 5, 65_000, i64::MAX] {
            for outside in [-1, i64::MIN, size, size.saturating_add(1)] {
                for position in 0..70 {
                    let mut ids = vec![size - 1; 70];
                    assert!(are_below(&ids, size));
                    ids[position] = outside;
                    assert_eq!(
                        are_below(&ids, size),
                        (0..size).contains(&outside),
                        "{outside}"
                    );
                }
            }
        }
        assert!(are_below(&[], 0));
        assert!(!are_below(&[0], 0));
    }
}
