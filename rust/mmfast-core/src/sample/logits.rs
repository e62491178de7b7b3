//! Number formats of logits, and the integer keys that order them.

/// Bits of a float without its sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
const SIGN: u32 = 0x8000_0000;
const SMALLEST_NORMAL: u32 = 0x0080_0000;
const INFINITY: u32 = 0x7F80_0000;

/// Key of an id that does not exist: not allowed, NaN or -inf.
pub(super) const ABSENT: u32 = 0;
/// Smallest key of a logit above -inf.
pub(super) const SMALLEST: u32 = SMALLEST_NORMAL;
/// Key of +inf.
pub(super) const INFINITE: u32 = INFINITY | SIGN;

/// A number format that logits come in.
pub trait Format: Copy {
    /// How one logit lies in memory.
    type Bits: Copy + Send + Sync;

    /// The same number in 32 bits, exactly.
    fn widen(bits: Self::Bits) -> f32;
}

/// `float32`
#[derive(Debug, Clone, Copy)]
pub struct F32;

/// `float16`
#[derive(Debug, Clone, Copy)]
pub struct F16;

/// `bfloat16`
#[derive(Debug, Clone, Copy)]
pub struct Bf16;

impl Format for F32 {
    type Bits = f32;

    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }
}

impl Format for Bf16 {
    type Bits = u16;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Format for F16 {
    type Bits = u16;

    /// Without the processor's conversion, whose treatment of small numbers a flag can change, and
    /// without a float32 subnormal on the way.
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        const TO_FLOAT_BIAS: u32 = 112 << 23;
        const SMALLEST_STEP: f32 = 1.0 / 16_777_216.0;
        let bits = u32::from(bits);
        let (exponent, mantissa) = (bits & 0x7C00, bits & 0x03FF);
        let shifted = (bits & 0x7FFF) << 13;
        #[expect(clippy::cast_precision_loss, reason = "ten bits fit")]
        let small = (mantissa as f32 * SMALLEST_STEP).to_bits();
        let magnitude = match exponent {
            0 => small,
            0x7C00 => shifted | INFINITY,
            _ => shifted + TO_FLOAT_BIAS,
        };
        f32::from_bits(magnitude | ((bits & 0x8000) << 16))
    }
}

/// Subnormals and -0 become +0, by a bit test, so that flush-to-zero hardware agrees.
#[inline(always)]
pub(super) fn flush(value: f32) -> f32 {
    if value.to_bits() & MAGNITUDE < SMALLEST_NORMAL {
        0.0
    } else {
        value
    }
}

/// Key of a flushed logit: larger for larger logits; [`ABSENT`] for NaN and -inf.
#[inline(always)]
pub(super) fn key_of(logit: f32) -> u32 {
    let bits = logit.to_bits();
    // All bits of a negative number, the sign of a positive one.
    #[expect(
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "the sign in every bit"
    )]
    let flipped = ((bits as i32) >> 31) as u32 | SIGN;
    let ordered = bits ^ flipped;
    if logit > f32::NEG_INFINITY {
        ordered
    } else {
        ABSENT
    }
}

/// The logit of a key that [`key_of`] gave and that is not [`ABSENT`].
#[inline(always)]
pub(super) fn logit_of(key: u32) -> f32 {
    f32::from_bits(if key & SIGN == 0 { !key } else { key ^ SIGN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_widened_exactly() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 2f32.powi(-24)),
            (0x03FF, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3C00, 1.0),
            (0x3555, 0.333_251_95),
            (0x7BFF, 65_504.0),
            (0x7C00, f32::INFINITY),
        ] {
            assert_eq!(F16::widen(bits).to_bits(), value.to_bits(), "{bits:04x}");
            let negative = F16::widen(bits | 0x8000);
            assert_eq!(negative.to_bits(), (-value).to_bits(), "{bits:04x}");
        }
        assert!(F16::widen(0x7E00).is_nan());
        assert!(F16::widen(0xFC01).is_nan());
        assert_eq!(Bf16::widen(0x3F80).to_bits(), 1f32.to_bits());
    }

    #[test]
    fn keys_order_logits_and_lead_back_to_them() {
        let ascending = [
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            0.0,
            f32::MIN_POSITIVE,
            1.0,
            f32::MAX,
            f32::INFINITY,
        ];
        let keys = ascending.map(key_of);
        assert!(keys.is_sorted());
        assert_eq!(
            keys.map(logit_of).map(f32::to_bits),
            ascending.map(f32::to_bits)
        );
        assert_eq!(keys[0], SMALLEST);
        assert_eq!(keys[7], INFINITE);
        assert_eq!(key_of(f32::NAN), ABSENT);
        assert_eq!(key_of(-f32::NAN), ABSENT);
        assert_eq!(key_of(f32::NEG_INFINITY), ABSENT);
    }

    #[test]
    fn subnormals_and_negative_zero_become_zero() {
        for tiny in [-0.0, f32::from_bits(1), f32::from_bits(0x807F_FFFF)] {
            assert_eq!(flush(tiny).to_bits(), 0);
        }
        for kept in [f32::MIN_POSITIVE, -f32::MIN_POSITIVE, f32::INFINITY] {
            assert_eq!(flush(kept).to_bits(), kept.to_bits());
        }
        assert!(flush(f32::NAN).is_nan());
    }
}
