//! Sixteen `f32` lanes at a time, on whichever instruction set this processor has.
//!
//! A [`Kernel`] is written once over [`Vector`] and compiled for AVX-512, for AVX2 with FMA and for the build's baseline;
//! [`Simd::run`] enters the best one. AVX-512 needs intrinsics (left alone, LLVM scatters the accumulators over the stack:
//! measured 20 times slower); AVX2 and the baseline come out well from plain arrays.

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Sixteen values, one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lanes(pub(super) [f32; LANES]);

impl Lanes {
    /// All zero.
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    /// The values of some lanes one after the other.
    pub(super) fn flat_mut(lanes: &mut [Self]) -> &mut [f32] {
        // SAFETY: `repr(C)`: sixteen values and nothing else, so that slices of both are the same memory.
        unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * LANES) }
    }
}

/// Arithmetic on sixteen lanes.
///
/// # Safety
/// Every method may only run where the processor has the instruction set of the implementing type.
pub(super) trait Vector: Copy {
    /// Of values that need not be aligned.
    unsafe fn load(from: &[f32; LANES]) -> Self;
    /// Of fewer values than lanes, the others zero.
    unsafe fn load_part(from: &[f32]) -> Self;
    unsafe fn store(self, to: &mut Lanes);
    unsafe fn splat(value: f32) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// The lanes of `yes` where `self` is greater than `than`, elsewhere, and where either is NaN, those of `no`.
    unsafe fn pick(self, than: Self, yes: Self, no: Self) -> Self;
    /// `2^n` of `n + ROUND`, whose low bits are the integer n: -126 to 127.
    unsafe fn power(self) -> Self;
    /// The sum of the lanes of each: of four neighbours, then of these fours, by twos.
    unsafe fn sums<const N: usize>(of: [Self; N]) -> [f32; N];
    /// Has a cache line brought nearer, where the instruction set can ask for it.
    #[inline(always)]
    fn prefetch(_from: &f32) {}
}

/// Added to a small number it rounds it to an integer, which the low bits of the sum are.
pub(super) const ROUND: f32 = 12_582_912.0;

/// A loop written over [`Vector`]. `ROWS` rows or `VECTORS` vectors of features share one pass, as many as the registers hold.
pub(super) trait Kernel {
    /// # Safety
    /// Only [`Simd::run`] may call this. Implementations are `#[inline(always)]`, so that they are compiled with the
    /// instruction set of the caller.
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self);
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Simd(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

impl Simd {
    /// Every instruction set that this processor has, best first.
    pub(super) fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self(Level::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self(Level::Avx2));
            }
        }
        levels.push(Self(Level::Baseline));
        levels
    }

    /// The best instruction set that this processor has.
    pub(super) fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self(Level::Baseline))
    }

    /// Runs a kernel with it.
    pub(super) fn run(self, kernel: impl Kernel) {
        match self.0 {
            // SAFETY: `available` is the only maker of these levels and has asked the processor.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::avx2(kernel) },
            // SAFETY: arrays need nothing beyond the build's own instruction set.
            Level::Baseline => unsafe { kernel.run::<Plain<BASELINE_FMA>, 1, 1>() },
        }
    }
}

/// Whether the build itself may use fused multiply-add; elsewhere `f32::mul_add` would be a slow library call.
const BASELINE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Lanes as a plain array, for the compiler to vectorize.
#[derive(Clone, Copy)]
struct Plain<const FMA: bool>([f32; LANES]);

impl<const FMA: bool> Plain<FMA> {
    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = operation(*a, b);
        }
        Self(out)
    }
}

impl<const FMA: bool> Vector for Plain<FMA> {
    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    unsafe fn load_part(from: &[f32]) -> Self {
        let mut out = [0.0; LANES];
        out.iter_mut().zip(from).for_each(|(out, &value)| *out = value);
        Self(out)
    }
    #[inline(always)]
    unsafe fn store(self, to: &mut Lanes) {
        to.0 = self.0;
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut out = addend.0;
        for ((sum, a), b) in out.iter_mut().zip(self.0).zip(factor.0) {
            *sum = if FMA { a.mul_add(b, *sum) } else { a * b + *sum };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        self.zip(self, |a, _| a.sqrt())
    }
    #[inline(always)]
    unsafe fn pick(self, than: Self, yes: Self, no: Self) -> Self {
        let mut out = no.0;
        for (((out, a), b), yes) in out.iter_mut().zip(self.0).zip(than.0).zip(yes.0) {
            *out = if a > b { yes } else { *out };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn power(self) -> Self {
        self.zip(self, |a, _| f32::from_bits((a.to_bits() << 23).wrapping_add(1.0_f32.to_bits())))
    }
    #[inline(always)]
    unsafe fn sums<const N: usize>(of: [Self; N]) -> [f32; N] {
        let mut out = [0.0; N];
        for (out, Self(a)) in out.iter_mut().zip(of) {
            let mut fours = [0.0; 4];
            for (four, part) in fours.iter_mut().zip(a.as_chunks::<4>().0) {
                *four = (part[0] + part[2]) + (part[1] + part[3]);
            }
            *out = (fours[0] + fours[2]) + (fours[1] + fours[3]);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, _CMP_GT_OQ, _MM_HINT_T0, _mm_add_ps, _mm_prefetch, _mm_storeu_ps, _mm256_add_ps, _mm256_castpd_ps,
        _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
        _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_div_ps,
        _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_sqrt_ps, _mm512_store_ps, _mm512_sub_ps,
        _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    use super::{Kernel, LANES, Lanes, Plain, Vector};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(kernel: impl Kernel) {
        // SAFETY: this function has the instruction set. 32 registers: four by five sums want nine loads for twenty
        // multiply-adds, which hide their own latency.
        unsafe { kernel.run::<Avx512, 4, 4>() }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(kernel: impl Kernel) {
        // SAFETY: this function has the instruction set. 16 registers of half the width.
        unsafe { kernel.run::<Plain<true>, 1, 1>() }
    }

    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    impl Avx512 {
        /// # Safety
        /// As of the trait's methods.
        #[inline(always)]
        unsafe fn sums4(of: [Self; 4]) -> [f32; 4] {
            unsafe {
                let [a, b, c, d] = of.map(|one| one.0);
                // In each quarter: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                let fours = _mm512_add_ps(low, high);
                let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(fours)));
                let twos = _mm256_add_ps(_mm512_castps512_ps256(fours), upper);
                let sum = _mm_add_ps(_mm256_castps256_ps128(twos), _mm256_extractf128_ps::<1>(twos));
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sum);
                out
            }
        }
    }

    // SAFETY, for every block below: the trait demands the instruction set of the caller, and `Lanes` is aligned to 64 bytes.
    impl Vector for Avx512 {
        #[inline(always)]
        unsafe fn load(from: &[f32; LANES]) -> Self {
            Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
        }
        #[inline(always)]
        unsafe fn load_part(from: &[f32]) -> Self {
            let mask = (1_u32 << from.len().min(LANES)) - 1;
            Self(unsafe { _mm512_maskz_loadu_ps(mask as u16, from.as_ptr()) })
        }
        #[inline(always)]
        unsafe fn store(self, to: &mut Lanes) {
            unsafe { _mm512_store_ps(to.0.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            Self(unsafe { _mm512_sqrt_ps(self.0) })
        }
        #[inline(always)]
        unsafe fn pick(self, than: Self, yes: Self, no: Self) -> Self {
            Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, than.0), no.0, yes.0) })
        }
        #[inline(always)]
        unsafe fn power(self) -> Self {
            unsafe {
                let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
                Self(_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(1.0_f32.to_bits() as i32))))
            }
        }
        #[inline(always)]
        unsafe fn sums<const N: usize>(of: [Self; N]) -> [f32; N] {
            let mut out = [0.0; N];
            for (out, of) in out.chunks_mut(4).zip(of.chunks(4)) {
                unsafe {
                    let mut four = [Self(_mm512_setzero_ps()); 4];
                    four[..of.len()].copy_from_slice(of);
                    out.copy_from_slice(&Self::sums4(four)[..of.len()]);
                }
            }
            out
        }
        #[inline(always)]
        fn prefetch(from: &f32) {
            // SAFETY: a hint; it reads nothing, and every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(from).cast()) }
        }
    }
}
