//! Sixteen `f32` lanes at a time, on whichever instruction set this processor has.
//!
//! A [`Kernel`] is written once over [`Vector`] and compiled for AVX-512, for AVX2 with FMA and for the build's baseline;
//! [`Simd::run`] enters the best one. AVX-512 needs intrinsics (left alone, LLVM scatters the sixteen accumulators of the
//! backward pass: measured 20 times slower); AVX2 and the baseline come out well from plain arrays.

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Sixteen values, one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lanes(pub(super) [f32; LANES]);

impl Lanes {
    /// All zero.
    pub(super) const ZERO: Self = Self([0.0; LANES]);
}

/// Arithmetic on sixteen lanes.
///
/// # Safety
/// Every method may only run where the processor has the instruction set of the implementing type.
pub(super) trait Vector: Copy {
    unsafe fn load(from: &Lanes) -> Self;
    unsafe fn store(self, to: &mut Lanes);
    unsafe fn splat(value: f32) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// Has a cache line brought nearer, where the instruction set can ask for it.
    #[inline(always)]
    fn prefetch(_from: &f32) {}
}

/// A loop written over [`Vector`]. `ROWS` samples or `FEATURES` features share one pass, as many as the registers hold.
pub(super) trait Kernel {
    /// # Safety
    /// Only [`Simd::run`] may call this. Implementations are `#[inline(always)]`, so that they are compiled with the
    /// instruction set of the caller.
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self);
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
            Level::Baseline => unsafe { kernel.run::<Plain<BASELINE_FMA>, 2, 2>() },
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
    unsafe fn load(from: &Lanes) -> Self {
        Self(from.0)
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
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_sqrt_ps, _mm512_store_ps, _mm512_sub_ps,
    };

    use super::{Kernel, Lanes, Plain, Vector};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(kernel: impl Kernel) {
        // SAFETY: this function has the instruction set. 32 registers: 8 rows hide the latency of the multiply-adds,
        // 16 features use a whole cache line of each row.
        unsafe { kernel.run::<Avx512, 8, 16>() }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(kernel: impl Kernel) {
        // SAFETY: this function has the instruction set. 16 registers of half the width.
        unsafe { kernel.run::<Plain<true>, 4, 4>() }
    }

    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    // SAFETY, for every block below: the trait demands the instruction set of the caller, and `Lanes` is aligned to 64 bytes.
    impl Vector for Avx512 {
        #[inline(always)]
        unsafe fn load(from: &Lanes) -> Self {
            Self(unsafe { _mm512_load_ps(from.0.as_ptr()) })
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
        fn prefetch(from: &f32) {
            // SAFETY: a hint; it reads nothing, and every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(from).cast()) }
        }
    }
}
